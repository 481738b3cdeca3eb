"""Loop devices: attaching a file to a free one, which goes with its last user.

Does not know what is in the file or mounts it.  Stateless; safe anywhere, but for a process that
answers the requests of the file's own file system.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct

from cisfs.errors import MountError

# linux/loop.h
_LOOP_CONTROL = "/dev/loop-control"
_LOOP_CTL_GET_FREE = 0x4C82
_LOOP_CONFIGURE = 0x4C0A
_LO_READ_ONLY, _LO_AUTOCLEAR, _LO_DIRECT_IO = 1, 4, 16
_NAME_SIZE = 64
_CONFIG = struct.Struct(f"=II40xIIII{_NAME_SIZE}s{_NAME_SIZE}s32x16x64x")
_ATTEMPTS = 16


def attach(file: int, name: bytes, *, read_only: bool, block_size: int = 0) -> int:
    """Return the descriptor of a loop device on the open file `file`.

    `name` is what losetup(8) shows.  `block_size` is in bytes, 0 for what the kernel takes.
    Raises MountError, OSError.
    """
    flags = _LO_AUTOCLEAR | _LO_DIRECT_IO | (_LO_READ_ONLY if read_only else 0)
    shown = name[: _NAME_SIZE - 1]
    config = _CONFIG.pack(file, block_size, 0, 0, 0, flags, shown, b"")
    for _ in range(_ATTEMPTS):
        loop = _free(os.O_RDONLY if read_only else os.O_RDWR)
        try:
            fcntl.ioctl(loop, _LOOP_CONFIGURE, config)
        except OSError as error:
            os.close(loop)
            if error.errno != errno.EBUSY:  # somebody else was quicker
                raise
        else:
            return loop
    raise MountError("no loop device is free")


def _free(how: int) -> int:
    try:
        control = os.open(_LOOP_CONTROL, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        raise MountError(
            f"{_LOOP_CONTROL} cannot be opened ({error.strerror}): "
            "load the kernel module with modprobe loop"
        ) from None
    try:
        number = fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
    finally:
        os.close(control)
    return os.open(f"/dev/loop{number}", how | os.O_CLOEXEC)


def path_of(loop: int) -> str:
    """Return the path of a loop device."""
    return os.readlink(f"/proc/self/fd/{loop}")
