"""What a directory tree looks like from outside, for comparing a mount with an ordinary directory.

Knows nothing of cisfs.  Read-only; leaves access times as the file system will have it.
"""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import NamedTuple


class Seen(NamedTuple):
    """All of an object that ought to be the same on every file system."""

    kind: int
    mode: int
    nlink: int
    owner: tuple[int, int]
    size: int
    mtime_ns: int
    content: str
    xattrs: dict[str, bytes]


def snapshot(root: Path, *, times: bool = False) -> dict[str, Seen]:
    """Every object below `root`, by its relative path; modification times if asked for."""
    found = {}
    for directory, names, files in os.walk(root):
        for name in (*names, *files):
            path = Path(directory, name)
            found[str(path.relative_to(root))] = look(path, times=times)
    return found


def look(path: Path, *, times: bool = False) -> Seen:
    """One object."""
    status = path.lstat()
    kind = stat.S_IFMT(status.st_mode)
    directory = kind == stat.S_IFDIR
    return Seen(
        kind=kind,
        mode=stat.S_IMODE(status.st_mode),
        nlink=0 if directory else status.st_nlink,  # file systems count those as they like
        owner=(status.st_uid, status.st_gid),
        size=0 if directory else status.st_size,
        mtime_ns=status.st_mtime_ns if times and not directory else 0,
        content=_content(path, kind, status),
        xattrs={
            name: os.getxattr(path, name, follow_symlinks=False)
            for name in sorted(os.listxattr(path, follow_symlinks=False))
        },
    )


def _content(path: Path, kind: int, status: os.stat_result) -> str:
    if kind == stat.S_IFREG:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    if kind == stat.S_IFLNK:
        return os.readlink(path)
    return str(status.st_rdev) if kind in (stat.S_IFCHR, stat.S_IFBLK) else ""


def assert_same(one: dict[str, Seen], other: dict[str, Seen]) -> None:
    """Fail with the first few differences."""
    differences = [
        f"{path}: {one.get(path)} / {other.get(path)}"
        for path in sorted(one.keys() | other.keys())
        if one.get(path) != other.get(path)
    ]
    assert not differences, "\n".join(differences[:5])
