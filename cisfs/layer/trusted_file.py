"""Files that decide whom to trust: read only if nobody else can have written them.

Nobody else than this user and root: not the group, not others, not another owner.  The same is
asked of every directory and symlink on the way, where whoever can write can put another file in
this one's place.  Does not know what is in them.  Safe anywhere.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from cisfs.errors import UntrustedError

MAX_SIZE = 1 << 20  # bytes

_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK  # no waiting for a FIFO
_LOOSE = stat.S_IWGRP | stat.S_IWOTH
_MOST_LINKS = 40  # as the kernel has it


def read(path: Path) -> bytes:
    """Return what is in a file that only this user or root can have written.

    Raises FileNotFoundError if there is none; UntrustedError, which names the file, if it may not
    be read, if others could have written it, or if it is too large.
    """
    try:
        fd = os.open(_resolved(path), _FLAGS)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UntrustedError(f"cannot read {path}: {error.strerror}") from None
    try:
        _check(path, os.fstat(fd))
        with open(fd, "rb", closefd=False) as file:
            data = file.read(MAX_SIZE + 1)
    finally:
        os.close(fd)
    if len(data) > MAX_SIZE:
        raise UntrustedError(f"{path} is too large")
    return data


def _resolved(path: Path) -> Path:
    """Return the path without symlinks; every directory and symlink on the way is checked."""
    at, links = Path("/"), 0
    ahead = list(reversed(path.absolute().parts[1:]))
    while ahead:
        part = ahead.pop()
        if part == "..":
            at = at.parent
            continue
        _check_directory(path, at)
        try:
            status = (at / part).lstat()
        except FileNotFoundError:
            if not links:
                raise
            # Somebody meant a file to be there: a disk that is not mounted must not mean "none".
            raise UntrustedError(f"{path} leads nowhere: there is no {at / part}") from None
        if not stat.S_ISLNK(status.st_mode):
            at /= part
            continue
        links += 1
        if links > _MOST_LINKS or _is_foreign(status):
            raise UntrustedError(f"{path} decides whom to trust: {at / part} leads astray")
        target = Path(os.readlink(at / part))
        if target.is_absolute():
            at = Path("/")
        ahead += reversed(target.parts[1 if target.is_absolute() else 0 :])
    return at


def _check(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise UntrustedError(f"{path} is not a regular file")
    if status.st_mode & _LOOSE:
        raise UntrustedError(f"{path} decides whom to trust, and others can write it: chmod 644 it")
    if _is_foreign(status):
        raise UntrustedError(f"{path} decides whom to trust, and belongs to another user")


def _check_directory(path: Path, above: Path) -> None:
    status = above.stat()
    # In a sticky directory (/tmp) others cannot remove or rename what is not theirs.
    if status.st_mode & _LOOSE and not status.st_mode & stat.S_ISVTX:
        raise UntrustedError(
            f"{path} decides whom to trust, and others can replace it: they can write to {above}"
        )
    if _is_foreign(status):
        raise UntrustedError(
            f"{path} decides whom to trust, and others can replace it: {above} is another user's"
        )


def _is_foreign(status: os.stat_result) -> bool:
    return status.st_uid not in (0, os.geteuid())
