"""System calls that Python 3.11 has no name for, and the mount table.

Knows nothing of cisfs, so that it can judge it.  Stateless; safe anywhere.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
RENAME_WHITEOUT = 4

CLONE_NEWNS = 0x00020000
MS_BIND = 0x1000
MS_REC = 0x4000
MS_PRIVATE = 1 << 18
MNT_FORCE = 1
MNT_DETACH = 2

_AT_FDCWD = -100
_PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None, use_errno=True)


def _checked(result: int, *paths: Path | str) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), *map(str, paths[:1]))


def renameat2(old: Path, new: Path, flags: int) -> None:
    """renameat2(2).  Raises OSError."""
    _checked(_libc.renameat2(_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), flags), old)


def mount(source: str, target: Path, fstype: str, flags: int = 0, options: str = "") -> None:
    """mount(2).  Raises OSError."""
    arguments = [os.fsencode(word) for word in (source, target, fstype)]
    _checked(_libc.mount(*arguments, ctypes.c_ulong(flags), options.encode()), target)


def umount(target: Path, flags: int = 0) -> None:
    """umount2(2).  Raises OSError."""
    _checked(_libc.umount2(os.fsencode(target), flags), target)


def unshare_mounts() -> None:
    """Give this process, which must have one thread, a mount namespace of its own."""
    _checked(_libc.unshare(CLONE_NEWNS))
    mount("none", Path("/"), "", MS_REC | MS_PRIVATE)


def adopt_orphans(*, adopt: bool = True) -> None:
    """Become the parent of every descendant whose own parent ends (prctl(2)), or be so no more."""
    _checked(_libc.prctl(_PR_SET_CHILD_SUBREAPER, int(adopt), 0, 0, 0))


def drop_caches(what: int, *, sync: bool = True) -> None:
    """Let the kernel forget pages (1), directory entries and inodes (2), or both (3).

    Without `sync` it keeps what has not been written back.
    """
    if sync:
        os.sync()
    Path("/proc/sys/vm/drop_caches").write_text(str(what))


class Mounted(NamedTuple):
    """One line of the mount table."""

    path: Path
    fstype: str


def mounts_below(base: Path) -> list[Mounted]:
    """What is mounted at `base` or below it, in the order of mounting."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        before, _, after = line.partition(" - ")
        path = Path(re.sub(r"\\(\d{3})", lambda match: chr(int(match[1], 8)), before.split()[4]))
        if path.is_relative_to(base):
            found.append(Mounted(path, after.split()[0]))
    return found


def detach_all(base: Path) -> list[Mounted]:
    """Unmount all there is below `base`, in use or not; returns what it was."""
    found = mounts_below(base)
    for mounted in reversed(found):
        with contextlib.suppress(OSError):
            umount(mounted.path, MNT_DETACH)
    return found


@contextlib.contextmanager
def fails(*numbers: int) -> Iterator[None]:
    """Demand an OSError with one of these errnos; any at all if none is given."""
    wanted = [os.strerror(each) for each in numbers]
    found: OSError | None = None
    try:
        yield
    except OSError as error:
        found = error
    assert found is not None, f"this did not fail with {wanted}"
    assert not numbers or found.errno in numbers, f"{found} instead of {wanted}"
