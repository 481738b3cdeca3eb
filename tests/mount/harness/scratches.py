"""A mounted scratch under test, judged afterwards.

A test fails, whatever it asserts, on a mount, a loop device or a server process left over, and on a
line in the server's log that was not announced by `expect`.  For one process at a time.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from cisfs.layer.block_image import BlockImage
from cisfs.layer.scratch import EphemeralImage
from cisfs.mount import scratch
from cisfs.mount.assignment import MountOptions
from cisfs.mount.scratch import Scratch
from tests.mount.harness import linux, processes
from tests.mount.harness.judged import judged
from tests.mount.harness.processes import wait_until

MIB = 1 << 20
_LOOP_GET_STATUS64 = 0x4C05


class ScratchLab:
    """One scratch with its mount point, log and backing directory, all below `base`."""

    def __init__(self, base: Path, size: int = 256 * MIB) -> None:
        self.base = base
        self.size = size
        self.mountpoint = base / "scratch"
        self.backing = base / "backing"
        self.log = base / "log"
        self.mounted: Scratch | None = None
        self._loops: set[tuple[str, int]] = set()
        self._expected: list[re.Pattern[str]] = []
        self.mountpoint.mkdir()
        self.backing.mkdir()

    def mount(self, image: BlockImage | None = None, *, home: int | None = None) -> Path:
        """Mount; returns the mount point."""
        image = image or EphemeralImage(self.backing, self.size)
        options = MountOptions(log_file=self.log, home=home)
        self.mounted = scratch.start(image, self.mountpoint, options)
        self._loops.add((self.loop, behind(self.loop)))
        return self.mountpoint

    def stop(self) -> None:
        """Unmount, and see that all is gone."""
        assert self.mounted is not None
        mounted, self.mounted = self.mounted, None
        mounted.stop()
        assert linux.mounts_below(self.base / "scratch") == []
        assert not processes.alive(mounted.pid)
        self.wait_for_loops()

    @property
    def loop(self) -> str:
        """The path of the loop device."""
        assert self.mounted is not None
        return self.mounted.loop

    @property
    def server(self) -> int:
        """The process that serves the image."""
        assert self.mounted is not None
        return self.mounted.pid

    def wait_for_loops(self) -> None:
        """Wait until the kernel has let go of the loop devices."""
        wait_until(
            lambda: not any(behind(loop) == device for loop, device in self._loops),
            "no loop device is left",
            patience=10,
        )

    def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End the server with a signal, and wait for it."""
        os.kill(self.server, number)
        os.waitpid(self.server, 0)

    def stored(self) -> Path:
        """The file that an ephemeral image is kept in: it has no name but this."""
        for number, (place, mode) in processes.descriptors(self.server).items():
            if stat.S_ISREG(mode) and place.startswith(str(self.backing)):
                return Path(f"/proc/{self.server}/fd/{number}")
        raise AssertionError("the server has no file open in the backing directory")

    def space(self) -> int:
        """Bytes that the image takes on its disk."""
        return self.stored().stat().st_blocks * 512

    @contextlib.contextmanager
    def unmounted(self) -> Iterator[str]:
        """Unmount the file system, but keep the loop device, whose path this yields."""
        fd = os.open(self.loop, os.O_RDONLY)
        try:
            linux.umount(self.mountpoint)
            yield self.loop
        finally:
            os.close(fd)

    def expect(self, pattern: str) -> None:
        """Allow log lines that have this in them, and demand one."""
        self._expected.append(re.compile(pattern))

    def close(self) -> None:
        """Unmount if need be, clean up whatever is left, and judge."""
        if self.mounted is not None:
            with contextlib.suppress(ChildProcessError):
                self.stop()
        left = linux.detach_all(self.base)
        assert not left, f"left mounted: {left}"
        self.wait_for_loops()
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        surprises = [
            line for line in lines if not any(each.search(line) for each in self._expected)
        ]
        assert not surprises, "the server's log says: " + "\n".join(surprises[:20])
        missing = [
            each.pattern for each in self._expected if not any(each.search(line) for line in lines)
        ]
        assert not missing, f"not logged: {missing}"


def behind(loop: str) -> int:
    """The number of the device that a loop device's file is on; 0 if it has none."""
    status = bytearray(232)  # struct loop_info64
    fd = os.open(loop, os.O_RDONLY)
    try:
        fcntl.ioctl(fd, _LOOP_GET_STATUS64, status)
    except OSError as error:
        if error.errno != errno.ENXIO:
            raise
        return 0
    finally:
        os.close(fd)
    return int.from_bytes(status[:8], sys.byteorder)


def fsck(device: str) -> str:
    """What fsck.ext4 finds on an unmounted device; empty if all is well."""
    words = ["fsck.ext4", "-f", "-n", device]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=90, check=False)
    return "" if ended.returncode == 0 else ended.stdout + ended.stderr


def in_namespace(work: Callable[[], object]) -> object:
    """Run `work` in a process with a mount namespace of its own; return what it returns."""

    def enter_and_work() -> object:
        linux.unshare_mounts()
        return work()

    return processes.Child(enter_and_work).result()


@contextlib.contextmanager
def lab_in(base: Path, size: int = 256 * MIB) -> Iterator[ScratchLab]:
    """A ScratchLab that is closed, and judged, at the end; no failure inside is hidden by that."""
    with judged(ScratchLab(base, size)) as lab:
        yield lab
