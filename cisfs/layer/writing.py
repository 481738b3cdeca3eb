"""Writing so that nothing is missing: all of the bytes, and the names of files.

Does not know what is written.  Safe anywhere.
"""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

Bytes = bytes | bytearray | memoryview

_libc = ctypes.CDLL(None, use_errno=True)


def write_at(fd: int, data: Bytes, offset: int) -> None:
    """Write all of `data`; a short write is the full disk's way of saying ENOSPC."""
    rest = memoryview(data)
    while rest:
        written = os.pwrite(fd, rest, offset)
        if not written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        rest, offset = rest[written:], offset + written


def write_all(fd: int, data: Bytes) -> None:
    """Write all of `data` where the descriptor is, which may be a pipe.  Raises OSError."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]


def sync_directory(directory: Path) -> None:
    """Make what has happened to the names in a directory durable.  Raises OSError."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_file_system(fd: int) -> None:
    """Make all of the file system that `fd` is of durable, syncfs(2).  Raises OSError."""
    if _libc.syncfs(fd):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
