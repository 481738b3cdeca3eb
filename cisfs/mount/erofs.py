"""Mounting the EROFS in a decrypted image, so that only the file system itself can be seen.

The image is served over FUSE as a single file, and that mount covers the layer's own file, in a
mount namespace that lasts as long as the mounting takes.  So the image can be reached by no path,
and the mount table says "erofs" on the mount point, from the layer.  The kernel reads the image as
a file (Linux 6.12) or else through a loop device.

Does not know keys or FUSE requests.  `mount` changes namespaces, so it is for a process forked for
it, with one thread; and never for one that answers the requests, which it waits for.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cisfs.errors import MountError
from cisfs.mount import newmount, records, syscalls
from cisfs.mount.points import EROFS, FSTYPE

_BDI = Path("/sys/class/bdi")
_READ_AHEAD_KIB = "1024"

# linux/loop.h
_LOOP_CONTROL = "/dev/loop-control"
_LOOP_CTL_GET_FREE = 0x4C82
_LOOP_CONFIGURE = 0x4C0A
_LO_READ_ONLY, _LO_AUTOCLEAR, _LO_DIRECT_IO = 1, 4, 16
_LOOP_NAME_SIZE = 64
_LOOP_CONFIG = struct.Struct(f"=II40xIIII{_LOOP_NAME_SIZE}s{_LOOP_NAME_SIZE}s32x16x64x")
_LOOP_ATTEMPTS = 16


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
    syscalls.unshare(syscalls.CLONE_NEWNS)
    # Slave, not private: what the host unmounts meanwhile must not stay busy because of us.
    syscalls.mount("none", "/", flags=syscalls.MS_SLAVE | syscalls.MS_REC)
    options = f"fd={plan.device},rootmode=100000,user_id=0,group_id=0,default_permissions"
    syscalls.mount("cisfs", str(plan.layer), FSTYPE, syscalls.MS_RDONLY, options)
    os.close(plan.device)  # or requests would wait for this process when all the others are dead
    serve()
    _read_ahead(_device_name(plan.layer))
    before = _erofs_bdis()
    mounted, source = _through_loop(plan) if plan.through_loop else _from_file(plan)
    syscalls.enter_namespace(original, syscalls.CLONE_NEWNS)
    if plan.recorded:
        # Before it shows: should all of us be killed now, it is known to be ours.
        records.announce(_device_name_of(os.fstat(mounted).st_dev), source)
    newmount.place(mounted, plan.mountpoint)
    # The kernel names these by number and tells nobody whose they are.
    for name in _erofs_bdis() - before:
        _read_ahead(name)


def _from_file(plan: Plan) -> tuple[int, str]:
    """Make a file-backed mount, or one through a loop device where the kernel takes no file."""
    configured = newmount.Configured(EROFS)
    try:
        configured.string("source", plan.layer)
        with contextlib.suppress(OSError):  # Linux 6.15; without it pages are cached twice
            configured.flag("directio")
        return configured.mount(), str(plan.layer)
    except OSError as error:
        if error.errno not in (errno.ENOTBLK, errno.EINVAL):
            raise MountError(_refusal(plan, error)) from None
    finally:
        configured.close()
    return _through_loop(plan)


def _through_loop(plan: Plan) -> tuple[int, str]:
    """Make a mount through a loop device that goes when the mount goes."""
    loop = _attach(plan.layer)
    try:
        name = os.readlink(f"/proc/self/fd/{loop}")
        _read_ahead(_device_name_of(os.fstat(loop).st_rdev))
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


def _attach(file: Path) -> int:
    """Return the descriptor of a loop device that reads `file`; it goes with its last user."""
    image = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    name = os.fsencode(file)[: _LOOP_NAME_SIZE - 1]
    flags = _LO_READ_ONLY | _LO_AUTOCLEAR | _LO_DIRECT_IO
    try:
        for _ in range(_LOOP_ATTEMPTS):
            loop = _free_loop()
            config = _LOOP_CONFIG.pack(image, 0, 0, 0, 0, flags, name, b"")
            try:
                fcntl.ioctl(loop, _LOOP_CONFIGURE, config)
            except OSError as error:
                os.close(loop)
                if error.errno != errno.EBUSY:  # somebody else was quicker
                    raise
            else:
                return loop
    finally:
        os.close(image)
    raise MountError("no loop device is free")


def _free_loop() -> int:
    try:
        control = os.open(_LOOP_CONTROL, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise MountError(
            f"this kernel mounts no EROFS from a file, and {_LOOP_CONTROL} cannot be opened "
            f"({error.strerror}): load the kernel module with modprobe loop"
        ) from None
    try:
        number = fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
    finally:
        os.close(control)
    return os.open(f"/dev/loop{number}", os.O_RDONLY | os.O_CLOEXEC)


def _refusal(plan: Plan, error: OSError) -> str:
    if error.errno == errno.ENODEV:
        return "this kernel has no EROFS: load the kernel module with modprobe erofs"
    return f"the kernel cannot mount the image in {plan.layer}: {error.strerror}"


def _device_name(path: Path) -> str:
    return _device_name_of(path.stat().st_dev)


def _device_name_of(device: int) -> str:
    return f"{os.major(device)}:{os.minor(device)}"


def _erofs_bdis() -> set[str]:
    try:
        return {name for name in os.listdir(_BDI) if name.startswith(EROFS)}
    except OSError:
        return set()


def _read_ahead(name: str) -> None:
    """Make the kernel read ahead 1 MiB instead of 128 KiB; it is as well that it may refuse."""
    with contextlib.suppress(OSError):
        (_BDI / name / "read_ahead_kb").write_text(_READ_AHEAD_KIB)
