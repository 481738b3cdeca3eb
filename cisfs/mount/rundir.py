"""Directories in /run/cisfs: whoever needs one makes it, whoever leaves it empty removes it.

Both at any moment, by any number of processes.  A lock on a directory tells one that is in use from
one that somebody left who was killed.  Does not know what is kept in them.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from cisfs.layer.locking import try_lock
from cisfs.layer.renaming import is_at

_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def make(*directories: Path) -> None:
    """Make those that are not there, for nobody else to look into: the outer ones first.

    Raises FileNotFoundError if one was removed again just then, for the caller to start anew;
    OSError.  (Of pathlib's mkdir, `exist_ok` takes one that is removed at that moment for a file
    that is in the way.)
    """
    for directory in directories:
        try:
            os.mkdir(directory, 0o700)
        except FileExistsError:
            if not stat.S_ISDIR(os.stat(directory).st_mode):
                raise


def claim(*directories: Path) -> int:
    """Make directories, the outer ones first, and lock the last; return the descriptor.

    Waits for whoever holds the lock.  Raises OSError.
    """
    while True:
        fd = _opened(directories)
        fcntl.flock(fd, fcntl.LOCK_EX)
        if is_at(directories[-1], fd):
            return fd
        os.close(fd)  # removed before we had the lock


def try_claim(*directories: Path) -> int | None:
    """Do as `claim`, but do not wait: None if another holds the lock, or had it just now."""
    fd = _opened(directories)
    if try_lock(fd) and is_at(directories[-1], fd):
        return fd
    os.close(fd)
    return None


def abandoned(path: Path) -> int | None:
    """Lock a directory that nobody holds; return the descriptor, None if somebody does.

    None also for one that is gone, or is no directory.
    """
    try:
        fd = os.open(path, _FLAGS)
    except OSError:
        return None
    if try_lock(fd) and is_at(path, fd):
        return fd
    os.close(fd)  # in use, or removed just now, and what has its name by now may be in use
    return None


def remove(*directories: Path) -> None:
    """Remove those that are empty, the inner ones first."""
    for directory in directories:
        with suppress(OSError):  # gone already, or others have something in it
            directory.rmdir()


def _opened(directories: Sequence[Path]) -> int:
    while True:
        try:
            make(*directories)
            return os.open(directories[-1], _FLAGS)
        except FileNotFoundError:
            continue  # whoever had it before us removed it, or what it lies in, just now
