"""The kernel's interface for mounts that have no place yet: fsopen(2), fsmount(2), move_mount(2).

A file system is configured by options, made, and put somewhere in three steps, so that it can be
made in one mount namespace and put into another.  Or a mount is taken that is there, open_tree(2),
and its copy put elsewhere.  Linux 5.2; the numbers are the same on every
architecture (include/uapi/asm-generic/unistd.h).  Knows nothing of what is mounted.  Safe anywhere.
"""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

_OPEN_TREE, _MOVE_MOUNT, _FSOPEN, _FSCONFIG, _FSMOUNT = 428, 429, 430, 431, 432
_MOUNT_SETATTR = 442  # Linux 5.12
_OPEN_TREE_CLONE, _OPEN_TREE_CLOEXEC = 1, os.O_CLOEXEC
_MOUNT_ATTR_IDMAP = 0x100000
_FSOPEN_CLOEXEC = _FSMOUNT_CLOEXEC = 1
_SET_FLAG, _SET_STRING, _CREATE = 0, 1, 6  # enum fsconfig_command
ATTR_RDONLY, ATTR_NOATIME = 1, 16
_AT_FDCWD = -100
_AT_EMPTY_PATH, _AT_RECURSIVE = 0x1000, 0x8000
_FROM_EMPTY_PATH = 4

_libc = ctypes.CDLL(None, use_errno=True)


class _MountAttr(ctypes.Structure):
    """struct mount_attr, mount_setattr(2)."""

    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


class Configured:
    """A file system that is being configured; `close` it, whatever became of it."""

    def __init__(self, fstype: str) -> None:
        """Begin.  Raises OSError, ENODEV if the kernel has no such file system."""
        self._fd = _call(_FSOPEN, fstype.encode(), _FSOPEN_CLOEXEC)

    def flag(self, name: str) -> None:
        """Set an option that has no value.  Raises OSError, EINVAL for an unknown one."""
        _call(_FSCONFIG, self._fd, _SET_FLAG, name.encode(), None, 0)

    def string(self, name: str, value: str | os.PathLike[str]) -> None:
        """Set an option to a value.  Raises OSError."""
        _call(_FSCONFIG, self._fd, _SET_STRING, name.encode(), os.fsencode(value), 0)

    def mount(self, *, read_only: bool = True, attributes: int = 0) -> int:
        """Make the file system; return the descriptor of a mount of it without a place.

        `attributes` are flags ATTR_... of the mount.  Raises OSError with what the kernel had to
        say, if it said anything.
        """
        if read_only:
            self.flag("ro")
            attributes |= ATTR_RDONLY
        try:
            _call(_FSCONFIG, self._fd, _CREATE, None, None, 0)
        except OSError as error:
            raise OSError(
                error.errno, self._complaints() or os.strerror(error.errno or 0)
            ) from None
        return _call(_FSMOUNT, self._fd, _FSMOUNT_CLOEXEC, attributes)

    def close(self) -> None:
        """Let the configuration go; a mount that was made of it stays."""
        os.close(self._fd)

    def _complaints(self) -> str:
        """What the kernel logged about this file system: lines that begin "e ", "w " or "i "."""
        said: list[str] = []
        while True:
            try:
                line = os.read(self._fd, 4096)
            except OSError:
                return "; ".join(said)
            said.append(line[2:].decode(errors="replace").strip())


def fuse_file(device: int, *, read_only: bool) -> int:
    """Make a FUSE file system that is one file; return the descriptor of a mount without a place.

    `device` is /dev/fuse, opened for it.  Raises OSError.
    """
    configured = Configured("fuse")
    try:
        options = {"source": "cisfs", "subtype": "cisfs", "fd": str(device), "rootmode": "100000"}
        for name, value in (options | {"user_id": "0", "group_id": "0"}).items():
            configured.string(name, value)
        return configured.mount(read_only=read_only)
    finally:
        configured.close()


def clone(path: str | os.PathLike[str], *, recursive: bool = False) -> int:
    """Return the descriptor of a copy, without a place, of the mount that shows `path`.

    `recursive`: and of what is mounted below.  Raises OSError.
    """
    flags = _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC | (_AT_RECURSIVE if recursive else 0)
    return _call(_OPEN_TREE, _AT_FDCWD, os.fsencode(path), flags)


def map_owners(mount: int, namespace: int, *, recursive: bool = False) -> None:
    """Have a mount without a place show owners as a user namespace maps them.  Raises OSError."""
    attr = _MountAttr(_MOUNT_ATTR_IDMAP, 0, 0, namespace)
    flags = _AT_EMPTY_PATH | (_AT_RECURSIVE if recursive else 0)
    _call(_MOUNT_SETATTR, mount, b"", flags, ctypes.byref(attr), ctypes.sizeof(attr))


def place(mount: int, mountpoint: Path) -> None:
    """Put a mount that has no place yet on `mountpoint`.  Raises OSError."""
    _call(_MOVE_MOUNT, mount, b"", _AT_FDCWD, os.fsencode(mountpoint), _FROM_EMPTY_PATH)


def _call(number: int, *arguments: object) -> int:
    return _checked(int(_libc.syscall(ctypes.c_long(number), *arguments)))


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno() or errno.EIO
        raise OSError(number, os.strerror(number))
    return result
