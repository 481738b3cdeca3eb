"""Containers under comparison: runc over a plain overlay, over gocryptfs, and `cisfs-runtime`.

Each has a root filesystem of busybox, sees the sources at /source, and writes to /target.  Knows
nothing of what is measured.  One thread; the containers are no children of this process.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.programs import cisfs
from benchmarks.servers import Server, Usage, usage_of, with_descendants
from benchmarks.systems import System

PATIENCE = 60.0
RUNC = ("runc",)
OURS = (sys.executable, "-m", "cisfs.runtime.oci.main")


def root_filesystem(path: Path) -> None:
    """Make one of busybox."""
    for name in ("bin", "source", "target", "tmp"):
        (path / name).mkdir(parents=True)
    shutil.copy2("/bin/busybox", path / "bin/busybox")
    subprocess.run(["chroot", str(path), "/bin/busybox", "--install", "-s", "/bin"], check=True)


@dataclass
class Box(System):
    """A container that does nothing until it is told to."""

    rootfs: Path
    source: Path  # a directory
    runtime: ClassVar[Sequence[str]] = RUNC

    def __post_init__(self) -> None:
        super().__post_init__()
        self.place = self.work / self.name
        self._identifiers: list[str] = []

    # -- bundles -----------------------------------------------------------------------------

    @property
    @abstractmethod
    def root(self) -> Path:
        """The bundle's root filesystem."""

    def mounts(self) -> list[dict[str, object]]:
        """What the container sees beside its root."""
        return [_bind(self.source, "/source", "ro")]

    def environment(self) -> list[str]:
        """What the container's environment adds."""
        return []

    def bundle(self, name: str, *command: str) -> Path:
        """Make a bundle that runs a command."""
        path = self.place / name
        path.mkdir(parents=True, exist_ok=True)
        (path / "config.json").unlink(missing_ok=True)
        subprocess.run(["runc", "spec", "--bundle", str(path)], check=True)
        config: dict[str, Any] = json.loads((path / "config.json").read_text())
        config["process"] |= {"terminal": False, "args": list(command)}
        config["process"]["env"] += self.environment()
        config["root"] = {"path": str(self.root), "readonly": False}
        config["mounts"] += self.mounts()
        (path / "config.json").write_text(json.dumps(config))
        return path

    # -- the containers ----------------------------------------------------------------------

    def start(self) -> None:
        """Start the container."""
        self.prepare()
        self.start_one("box")

    def prepare(self) -> None:
        """Make everything that is not part of a container's start."""

    def start_one(self, name: str) -> None:
        """Start a container that sleeps."""
        bundle = self.bundle(name, "sleep", "100000")
        identifier = self._identifier(name)
        self._identifiers.append(identifier)
        with (bundle / "log").open("wb") as log:  # no pipe: the container keeps it open
            subprocess.run(
                [*self.words(), "run", "--detach", "--bundle", str(bundle), identifier],
                check=True,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                timeout=PATIENCE,
            )

    def words(self) -> list[str]:
        """The runtime's command line, up to its command."""
        return list(self.runtime)

    def exec_command(self, script: str) -> str:
        """Return the shell command that runs a script in the container, and makes all durable.

        Twice, as what the first writes may be written to another file system that it has passed.
        """
        words = [*self.words(), "exec", self._identifier("box"), "sh", "-c", script]
        return f"{shlex.join(words)} && sync && sync"

    def run_command(self) -> str:
        """Return the shell command that runs /bin/true in a container of its own."""
        bundle = self.bundle("true", "/bin/true")
        return shlex.join([*self.words(), "run", "--bundle", str(bundle), self._identifier("true")])

    def stop(self) -> None:
        """End the containers."""
        while self._identifiers:
            words = [*self.words(), "delete", "--force", self._identifiers.pop()]
            subprocess.run(words, check=False, capture_output=True)
        self.clean_up()
        self._clear()

    def clean_up(self) -> None:
        """Undo `prepare`."""

    def mount(self, parts: Sequence[str] = ()) -> None:
        """Nothing more to mount."""

    def unmount(self) -> None:
        """Nothing to unmount."""

    def usage(self) -> Usage:
        """No server, no use."""
        return Usage()

    def _identifier(self, name: str) -> str:
        return f"bench-{os.getpid()}-{self.name}-{name}"


class PlainBox(Box):
    """runc over an overlay whose upper directory is on the disk."""

    name = "runc"

    @property
    def root(self) -> Path:
        """The mounted overlay."""
        return self.place / "root"

    def prepare(self) -> None:
        """Mount the overlay."""
        for name in ("upper", "work", "root"):
            (self.place / name).mkdir(parents=True)
        upper, work = self.place / "upper", self.place / "work"
        options = f"lowerdir={self.rootfs},upperdir={upper},workdir={work}"
        subprocess.run(
            ["mount", "-t", "overlay", "overlay", "-o", options, str(self.root)], check=True
        )

    def clean_up(self) -> None:
        """Unmount the overlay."""
        if self.root.is_mount():
            subprocess.run(["umount", "--lazy", str(self.root)], check=True)


class GocryptfsBox(PlainBox):
    """The same, with /target in gocryptfs."""

    name = "gocryptfs"

    def __post_init__(self) -> None:
        super().__post_init__()
        self._server: Server | None = None

    def prepare(self) -> None:
        """Mount both."""
        super().prepare()
        for path in (self.place / "cipher", self._target):
            path.mkdir()
        password = self.place / "password"
        password.write_text("benchmark\n")
        options = ["-q", "-passfile", str(password)]
        store = str(self.place / "cipher")
        subprocess.run(
            ["gocryptfs", *options, "-init", "-scryptn", "10", store],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        words = ["gocryptfs", *options, "-fg", "-allow_other", store, str(self._target)]
        self._server = Server(words, self._target)
        self._server.start()

    def mounts(self) -> list[dict[str, object]]:
        """The target, too."""
        return [*super().mounts(), _bind(self._target, "/target", "rw")]

    def clean_up(self) -> None:
        """Unmount both."""
        if self._server is not None:
            self._server.stop()
            self._server = None
        super().clean_up()

    def usage(self) -> Usage:
        """The server's."""
        return self._server.usage() if self._server else Usage()

    @property
    def _target(self) -> Path:
        return self.place / "target"


class CisfsBox(Box):
    """`cisfs-runtime` with a sealed layer and an ephemeral scratch on the same disk."""

    name = "cisfs"
    runtime = OURS

    @property
    def root(self) -> Path:
        """The root filesystem itself: the runtime makes the overlay."""
        return self.rootfs

    def words(self) -> list[str]:
        """With a store of its own."""
        return [*self.runtime, "--store", str(self.place / "store")]

    def environment(self) -> list[str]:
        """Names the layer."""
        return [f"CISFS_LAYERS={self._layer}"]

    def prepare(self) -> None:
        """Seal and unlock a layer."""
        private, key = self.place / "private", self.place / "key"
        private.mkdir(parents=True)
        (private / "secret").write_text("secret\n")
        key.write_bytes(os.urandom(32))
        key.chmod(0o600)
        with_key = ["--key-file", str(key)]
        subprocess.run(
            cisfs("seal", "--quiet", *with_key, str(private), "-o", str(self._layer)), check=True
        )
        subprocess.run(
            cisfs("unlock", *with_key, str(self._layer)), check=True, stdout=subprocess.DEVNULL
        )

    def clean_up(self) -> None:
        """Lock the layer."""
        if self._layer.exists():
            subprocess.run(cisfs("lock", str(self._layer)), check=True, stdout=subprocess.DEVNULL)

    def usage(self) -> Usage:
        """All servers of all its containers."""
        return Usage.total(usage_of(pid) for pid in self.servers())

    def servers(self) -> list[int]:
        """The processes that serve its containers: their keepers, and what those started."""
        found = []
        for path in Path("/run/cisfs/containers").glob(f"bench-{os.getpid()}-*/record.json"):
            found += with_descendants(json.loads(path.read_text())["keeper"])
        return found

    @property
    def _layer(self) -> Path:
        return self.place / "layer.cis"


def _bind(source: Path, target: str, mode: str) -> dict[str, object]:
    return {
        "destination": target,
        "source": str(source),
        "type": "bind",
        "options": ["bind", mode],
    }
