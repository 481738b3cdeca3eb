"""fallocate(2), which Python offers only in part: space for a file, and holes in it.

Not os.posix_fallocate: where a file system lacks the call, glibc writes to each block instead.
Knows nothing of what is in a file.  Safe anywhere.
"""

from __future__ import annotations

import ctypes
import errno
import os

# linux/falloc.h
KEEP_SIZE = 1
PUNCH_HOLE = 2
_UNSUPPORTED = frozenset({errno.EOPNOTSUPP, errno.ENOSYS})

_libc = ctypes.CDLL(None, use_errno=True)


def allocate(fd: int, size: int) -> None:
    """Make a new file `size` bytes long, with the space for them where the file system can.

    A full disk is noticed before the work, and parallel writers need not wait for each other's
    blocks.  Raises OSError.
    """
    if not _fallocate(fd, 0, 0, size):
        os.ftruncate(fd, size)


def punch(fd: int, offset: int, size: int) -> bool:
    """Give back the space of some bytes, which read as zeros then; False where that cannot be.

    Raises OSError.
    """
    return _fallocate(fd, PUNCH_HOLE | KEEP_SIZE, offset, size)


def _fallocate(fd: int, mode: int, offset: int, size: int) -> bool:
    """Tell whether the file system can; raises OSError if it could but failed."""
    if not _libc.fallocate(fd, mode, ctypes.c_int64(offset), ctypes.c_int64(size)):
        return True
    error = ctypes.get_errno()
    if error in _UNSUPPORTED:
        return False
    raise OSError(error, os.strerror(error))
