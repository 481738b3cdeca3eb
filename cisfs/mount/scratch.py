"""Mounting a scratch: a container's writable layer, an ext4 on an encrypted image.

The image is served over FUSE as one file, by a process of its own; a loop device reads and writes
that file, and the kernel mounts the ext4 from the loop device.  The FUSE mount has no place in any
mount namespace: only the loop device holds it.  Each goes with its user, so that when the ext4 goes
nothing is left.

Does not know keys.  `start` forks, so it is for a process with one thread.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from dataclasses import dataclass
from pathlib import Path

from cisfs.errors import MountError
from cisfs.layer.block_image import BlockImage
from cisfs.mount import (
    bdi,
    ext4,
    loopdevice,
    newmount,
    points,
    process,
    scratch_serving,
    syscalls,
    unmount,
)
from cisfs.mount.assignment import MountOptions, forked
from cisfs.mount.server import Server

UPPER, WORK = "upper", "work"  # directories in the mounted scratch, for an overlay
_LOOP_NAME = b"cisfs scratch"
_LAST_WAIT = 5.0  # seconds to end in after SIGTERM


@dataclass(frozen=True)
class Scratch(Server):
    """A mounted scratch, and the process, a child of this one, that serves its image."""

    loop: str  # the path of the loop device

    def destroy(self) -> None:
        """Have the key forgotten: reads that reach the image fail now, and writes are dropped."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, scratch_serving.DESTROY_SIGNAL)

    def stop(self, timeout: float = 30.0) -> None:
        """Unmount, also when in use, and wait until the image is let go of.  Raises MountError.

        Whoever still uses the file system gets EIO then.
        """
        code = self.exit_code(timeout) if self._unmount() else None
        for number in (signal.SIGTERM, signal.SIGKILL):
            if code is None:
                os.kill(self.pid, number)
                code = self.exit_code(_LAST_WAIT)
        self.leave_loop()
        if code:
            raise MountError(f"the server of the scratch {self.mountpoint} {process.ending(code)}")

    def leave_loop(self) -> None:
        """Leave the loop device as it was found, after the server's end; `stop` does it, too."""
        bdi.restore(bdi.name_of(os.stat(self.loop).st_rdev))

    def _unmount(self) -> bool:
        """Unmount; False if it is still in use somewhere, and only written back."""
        try:
            return unmount.leave(self.mountpoint)
        except OSError as error:
            if error.errno == errno.EINVAL:  # it is not mounted here any more
                return True
            raise


def start(image: BlockImage, mountpoint: Path, options: MountOptions) -> Scratch:
    """Mount `image` at `mountpoint`, in the current mount namespace; see `Scratch`.

    An image that is all holes is given its file system first.  Raises MountError, NoFuseError,
    OSError.  Whatever comes of it, this process's copy of the image is abandoned.
    """
    try:
        points.require_fuse()
        if not ext4.is_on(image):
            ext4.make(image)
        device, root = _mount_fuse()
        try:
            pid = _fork(image, device, mountpoint, options)
        finally:
            os.close(device)  # or requests would wait for this process when the server is dead
    finally:
        image.abandon()
    try:
        return Scratch(pid, mountpoint, _mount_image(root, mountpoint, durable=image.durable))
    except BaseException:
        os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)
        raise
    finally:
        os.close(root)


def _mount_fuse() -> tuple[int, int]:
    """Open /dev/fuse and make a mount with it that has no place; return descriptors of both."""
    device = os.open(points.FUSE_DEVICE, os.O_RDWR | os.O_CLOEXEC)
    try:
        return device, newmount.fuse_file(device, read_only=False)
    except BaseException:
        os.close(device)
        raise


def _fork(image: BlockImage, device: int, mountpoint: Path, options: MountOptions) -> int:
    parent = os.getpid()
    return forked(lambda: scratch_serving.serve(image, device, mountpoint, options, parent), None)


def _mount_image(root: int, mountpoint: Path, *, durable: bool) -> str:
    """Mount the ext4 in the file `root`, with its directories; return the loop device's path."""
    loop = _attach(root)
    try:
        name = bdi.name_of(os.fstat(loop).st_rdev)
        bdi.read_ahead(name)
        bdi.write_soon(name)
        path = loopdevice.path_of(loop)
        ext4.mount(path, mountpoint, durable=durable)
    finally:
        os.close(loop)
    try:
        for name in (UPPER, WORK):
            (mountpoint / name).mkdir(mode=0o755, exist_ok=True)
    except BaseException:
        syscalls.unmount(str(mountpoint), syscalls.MNT_DETACH)
        raise
    return path


def _attach(root: int) -> int:
    """Return the descriptor of a loop device on the file that is the root of a FUSE mount."""
    try:
        file = os.open(f"/proc/self/fd/{root}", os.O_RDWR | os.O_CLOEXEC)
        try:
            os.fstat(file)  # until it is asked for, the kernel takes the size for 0
            return loopdevice.attach(file, _LOOP_NAME, read_only=False, block_size=ext4.BLOCK_SIZE)
        finally:
            os.close(file)
    except OSError as error:
        if error.errno in (errno.ENOTCONN, errno.ECONNABORTED):
            raise MountError("the server of the scratch died at once: see the log") from None
        raise
