"""Further systems under comparison: images that are made in one go and then only read.

Knows nothing of what is measured on them.  One thread; the servers are child processes.
"""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from benchmarks.loops import mount_image, unmount_image
from benchmarks.programs import cisfs, cisfs_in_shell, missing, unit_size
from benchmarks.servers import Server, Usage
from benchmarks.systems import PARTS, QuickGocryptfs, System


class Sealed(System):
    """Sealed layers of this checkout, one for each part, with as many workers as cisfs likes."""

    name = "sealed"
    workers: ClassVar[Sequence[str]] = ()  # options of seal and mount
    compression: ClassVar[Sequence[str]] = ()  # options of seal

    def __post_init__(self) -> None:
        super().__post_init__()
        self._key_file = self.work / self.name / "key"
        self._servers: dict[str, Server] = {}

    @classmethod
    def lacks(cls) -> str:
        """It needs a kernel that mounts EROFS."""
        return _lacks_in_kernel("erofs")

    def start(self) -> None:
        """Make a place for the layers, and a key."""
        self.backing.mkdir(parents=True)
        self.view.mkdir()
        self._key_file.write_bytes(bytes(range(32)))
        self._key_file.chmod(0o600)

    def stop(self) -> None:
        """Unmount, and delete the layers."""
        self.unmount()
        self._clear()

    def store_command(self, part: str) -> str:
        """cisfs seal."""
        chosen = [*self.compression, *self.workers]
        options = shlex.join(["--key-file", str(self._key_file), *chosen])
        seal = cisfs_in_shell("seal", f'"${part.upper()}"', "-o", f'"$BACKING/{part}.cis"')
        return f'{seal} {options} && sync -f "$BACKING"'

    def mount(self, parts: Sequence[str] = PARTS) -> None:
        """cisfs mount --foreground, once for each part."""
        self.unmount()
        for part in parts:
            (self.view / part).mkdir(exist_ok=True)
            options = ["--foreground", "--key-file", str(self._key_file), *self.workers]
            command = cisfs("mount", *options, str(self._layer(part)), str(self.view / part))
            self._servers[part] = Server(command, self.view / part)
            self._servers[part].start()

    def unmount(self) -> None:
        """Unmount them, and wait for the servers."""
        while self._servers:
            part = next(iter(self._servers))
            self._servers[part].stop()
            del self._servers[part]

    def usage(self) -> Usage:
        """Ask all servers' processes."""
        return Usage.total(server.usage() for server in self._servers.values())

    def details(self) -> dict[str, str]:
        """Their unit size."""
        layer = next((path for path in map(self._layer, PARTS) if path.exists()), None)
        return {"unit size of sealed layers": unit_size(layer)} if layer else {}

    def _layer(self, part: str) -> Path:
        return self.backing / f"{part}.cis"


class SealedOneWorker(Sealed):
    """The same with a single worker, sealing and serving."""

    name = "sealed-1-worker"
    workers = ("--workers", "1")


class SealedLz4(Sealed):
    """The same, compressed."""

    name = "sealed-lz4"
    compression = ("--compression", "lz4")

    @classmethod
    def lacks(cls) -> str:
        """It needs what compresses, too."""
        return missing("mkfs.erofs") or super().lacks()


class SquashfsOverGocryptfs(QuickGocryptfs):
    """What others do for a compressed, encrypted, read-only tree: squashfs images in gocryptfs."""

    name = "squashfs+gocryptfs"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.served = self.work / self.name / "images"

    @classmethod
    def lacks(cls) -> str:
        """It needs both programs and the kernel's squashfs."""
        return missing("gocryptfs", "mksquashfs") or _lacks_in_kernel("squashfs")

    def start(self) -> None:
        """Make the gocryptfs directory, and mount it for writing."""
        super().start()
        self.view.mkdir()

    def store_command(self, part: str) -> str:
        """mksquashfs, with the compression that it takes by itself."""
        image = f'"{self._image(part)}"'
        make = f'mksquashfs "${part.upper()}" {image} -noappend -quiet -no-progress'
        return f'{make} && sync {image} && sync -f "$BACKING"'

    def mount(self, parts: Sequence[str] = PARTS) -> None:
        """Mount gocryptfs, and through loop devices the images in it."""
        super().mount(parts)
        for part in parts:
            mount_image(self._image(part), self.view / part, "-o", "ro", "-t", "squashfs")

    def unmount(self) -> None:
        """Unmount the images, then gocryptfs."""
        for part in PARTS:
            unmount_image(self._image(part), self.view / part)
        super().unmount()

    def details(self) -> dict[str, str]:
        """Its version and compression."""
        done = subprocess.run(
            ["mksquashfs", "-version"], capture_output=True, text=True, check=False
        )
        return {"mksquashfs": f"{done.stdout.split()[2]} (gzip)"}

    def _image(self, part: str) -> Path:
        return self.served / f"{part}.squashfs"


def _lacks_in_kernel(filesystem: str) -> str:
    """Tell that the kernel lacks a filesystem, or nothing."""
    known = Path("/proc/filesystems")
    if filesystem not in known.read_text().split() and not missing("modprobe"):
        subprocess.run(["modprobe", "--quiet", filesystem], check=False)
    return "" if filesystem in known.read_text().split() else f"{filesystem} in the kernel"
