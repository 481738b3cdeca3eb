"""renameat2(2), which Python does not offer: two entries that change places, and its other ways.

Knows nothing of what is renamed.  Safe anywhere.
"""

from __future__ import annotations

import ctypes
import os

# linux/fs.h
RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
RENAME_WHITEOUT = 4

_libc = ctypes.CDLL(None, use_errno=True)


def renameat2(old_fd: int, old: bytes, new_fd: int, new: bytes, flags: int) -> None:
    """Rename `old` in a directory to `new` in another.  Raises OSError: EINVAL if it cannot."""
    if _libc.renameat2(old_fd, old, new_fd, new, flags):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
