"""Names that come to mean something else: renameat2(2), which Python does not offer, and who sees.

Knows nothing of what is renamed.  Safe anywhere.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

# linux/fs.h
RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
RENAME_WHITEOUT = 4

_libc = ctypes.CDLL(None, use_errno=True)


def is_at(path: Path, fd: int) -> bool:
    """Tell whether `path` still leads to what `fd` was opened from.  Raises OSError."""
    try:
        return os.path.samestat(os.stat(path), os.fstat(fd))
    except (FileNotFoundError, NotADirectoryError):
        return False


def renameat2(old_fd: int, old: bytes, new_fd: int, new: bytes, flags: int) -> None:
    """Rename `old` in a directory to `new` in another.  Raises OSError: EINVAL if it cannot."""
    if _libc.renameat2(old_fd, old, new_fd, new, flags):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
