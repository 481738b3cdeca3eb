"""Locks that a process holds for as long as it has a descriptor open: flock(2), without waiting.

A lock belongs to what was opened, forks share it, and it goes with the last of their descriptors.
Knows nothing of what is locked.  Safe anywhere.
"""

from __future__ import annotations

import fcntl


def try_lock(fd: int, *, shared: bool = False) -> bool:
    """Take the lock, or change it to this kind; tells whether nobody else was in the way."""
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_locked(fd: int) -> bool:
    """Tell whether somebody else has it for himself; if nobody has, it is shared from here on.

    For a descriptor that is opened to ask this, and closed soon.
    """
    return not try_lock(fd, shared=True)
