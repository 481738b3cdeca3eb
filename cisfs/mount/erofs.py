"""Mounting the EROFS in a decrypted image, so that only the file system itself can be seen.

The image is served over FUSE as a single file, which has a path only in a mount namespace that
lasts as long as the mounting takes, on a tmpfs that nobody else can write to: whoever can rename
files beside the layer cannot have the kernel mount another image.  The mount table says "erofs" on
the mount point, from the layer.  The kernel reads the image as a file (Linux 6.12) or else through
a loop device.

Does not know keys or FUSE requests.  `mount` changes namespaces, so it is for a process forked for
it, with one thread; and never for one that answers the requests, which it waits for.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cisfs.errors import MountError
from cisfs.mount import bdi, loopdevice, newmount, records, syscalls
from cisfs.mount.points import EROFS

_PRIVATE = Path("/run")  # always there; what is in it is out of sight while we mount


@dataclass(frozen=True, slots=True)
class Plan:
    """What to mount where: paths are resolved, `device` is /dev/fuse, opened for this mount.

    `recorded`: others may be asked to unmount it.
    """

    layer: Path
    mountpoint: Path
    device: int
    through_loop: bool
    recorded: bool


def mount(plan: Plan, serve: Callable[[], None]) -> None:
    """Mount; `serve` is called when requests begin to come, and must see that they are answered.

    Raises MountError in words, OSError.
    """
    original = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    syscalls.leave_mounts()
    image = _show_image(plan)
    os.close(plan.device)  # or requests would wait for this process when all the others are dead
    serve()
    bdi.read_ahead(bdi.name_of(image.stat().st_dev))
    before = bdi.names(EROFS)
    mounted, source = _through_loop(plan) if plan.through_loop else _from_file(plan)
    syscalls.enter_namespace(original, syscalls.CLONE_NEWNS)
    if plan.recorded:
        # Before it shows: should all of us be killed now, it is known to be ours.
        records.announce(bdi.name_of(os.fstat(mounted).st_dev), source, plan.layer)
    newmount.place(mounted, plan.mountpoint)
    # The kernel names these by number and tells nobody whose they are.
    for name in bdi.names(EROFS) - before:
        bdi.read_ahead(name)


def _show_image(plan: Plan) -> Path:
    """Mount the decrypted image where nobody else can reach it; return its path."""
    syscalls.mount("cisfs", str(_PRIVATE), "tmpfs", 0, "mode=0700")
    image = _private(plan)
    image.parent.mkdir(parents=True)
    image.touch()
    mounted = newmount.fuse_file(plan.device, read_only=True)
    try:
        newmount.place(mounted, image)
    finally:
        os.close(mounted)
    return image


def _private(plan: Plan) -> Path:
    return _PRIVATE / plan.layer.relative_to("/")


@contextlib.contextmanager
def _privately() -> Iterator[None]:
    """Let paths begin in the private place: the kernel keeps the one that it is given for show."""
    root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    os.chroot(_PRIVATE)
    try:
        yield
    finally:
        os.fchdir(root)
        os.chroot(".")
        os.close(root)


def _from_file(plan: Plan) -> tuple[int, str]:
    """Make a file-backed mount, or one through a loop device where the kernel takes no file."""
    configured = newmount.Configured(EROFS)
    try:
        configured.string("source", plan.layer)
        with contextlib.suppress(OSError):  # Linux 6.15; without it pages are cached twice
            configured.flag("directio")
        with _privately():
            return configured.mount(), str(plan.layer)
    except OSError as error:
        if error.errno not in (errno.ENOTBLK, errno.EINVAL):
            raise MountError(_refusal(plan, error)) from None
    finally:
        configured.close()
    return _through_loop(plan)


def _through_loop(plan: Plan) -> tuple[int, str]:
    """Make a mount through a loop device that goes when the mount goes."""
    image = os.open(_private(plan), os.O_RDONLY | os.O_CLOEXEC)
    try:
        loop = loopdevice.attach(image, os.fsencode(plan.layer), read_only=True)
    finally:
        os.close(image)
    try:
        name = loopdevice.path_of(loop)
        bdi.read_ahead(bdi.name_of(os.fstat(loop).st_rdev))
        configured = newmount.Configured(EROFS)
        try:
            configured.string("source", name)
            return configured.mount(), name
        except OSError as error:
            raise MountError(_refusal(plan, error)) from None
        finally:
            configured.close()
    finally:
        os.close(loop)


def _refusal(plan: Plan, error: OSError) -> str:
    if error.errno == errno.ENODEV:
        return "this kernel has no EROFS: load the kernel module with modprobe erofs"
    return f"the kernel cannot mount the image in {plan.layer}: {error.strerror}"
