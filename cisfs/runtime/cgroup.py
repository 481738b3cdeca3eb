"""What is left of a container in the control groups, and which of them there are at all.

Reads the mount table and removes directories; making the groups is the engine's work.  Does not
know containers beyond the path of their groups.  Any number of runs may call this side by side.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cisfs.mount import points
from cisfs.mount.points import MountEntry

Hierarchy = tuple[Path, frozenset[str]]

_POLL = 0.005  # seconds: a group's last process leaves it a moment after it was reaped


def hierarchies(table: Iterable[MountEntry] | None = None) -> Iterator[Hierarchy]:
    """Yield mount point and options of every hierarchy in a mount table, by default this process's.

    proc(5): the options of a version 1 hierarchy name its controllers.
    """
    for entry in points.mounts() if table is None else table:
        if entry.fstype in ("cgroup", "cgroup2"):
            yield entry.mountpoint, entry.super_options


def can_limit(controller: str) -> bool:
    """Tell whether some hierarchy has the controller: "pids", "memory", "cpu"."""
    for top, options in hierarchies():
        if controller in options or controller in _controllers(top):
            return True
    return False


def can_limit_swap() -> bool:
    """Tell whether swap is accounted; a kernel without that has none of these files."""
    for top, options in hierarchies():
        if "memory" in options:
            return (top / "memory.memsw.limit_in_bytes").exists()
        if "memory" in _controllers(top):
            return any(top.glob("*/memory.swap.max"))
    return False


@contextmanager
def frozen(path: str, seconds: float = 5.0) -> Iterator[None]:
    """Keep every process of the group `path` from running while the block does.

    Raises OSError where there is no such group, or no freezer; TimeoutError (an OSError) when they
    have not all stopped in time.  cgroup-v1/freezer-subsystem.rst, cgroup-v2.rst "cgroup.freeze".
    """
    group, files = _freezer(path)
    control, on, off, state, reached = files
    try:
        (group / control).write_text(on)
        deadline = time.monotonic() + seconds
        while reached not in (group / state).read_text():
            if time.monotonic() > deadline:
                raise TimeoutError(errno.ETIMEDOUT, "the container's processes do not stop")
            time.sleep(_POLL)
        yield
    finally:
        with suppress(FileNotFoundError):  # it was killed meanwhile
            (group / control).write_text(off)


def thaw(path: str) -> None:
    """Let every process of the group `path` run on.  Raises OSError."""
    group, (control, _, off, _, _) = _freezer(path)
    (group / control).write_text(off)


def _freezer(path: str) -> tuple[Path, tuple[str, str, str, str, str]]:
    for top, options in hierarchies():
        group = top / path.lstrip("/")
        if "freezer" in options and group.is_dir():
            return group, ("freezer.state", "FROZEN", "THAWED", "freezer.state", "FROZEN")
        if (group / "cgroup.freeze").exists():
            return group, ("cgroup.freeze", "1", "0", "cgroup.events", "frozen 1")
    raise FileNotFoundError(errno.ENOENT, "no control group to freeze", path)


def remove(path: str, seconds: float = 1.0) -> bool:
    """Remove the group `path` from every hierarchy, with all below it; True when none is left.

    Waits up to `seconds` for the last processes to be gone.  An emptied parent group goes as well.
    """
    deadline = time.monotonic() + seconds
    gone = True
    for top, _ in hierarchies():
        group = top / path.lstrip("/")
        while not _remove_tree(group) and time.monotonic() < deadline:
            time.sleep(_POLL)
        gone = gone and not group.exists()
        if group.parent != top:
            _remove_empty(group.parent)
    return gone


def _controllers(top: Path) -> list[str]:
    try:
        return (top / "cgroup.controllers").read_text().split()
    except OSError:
        return []  # a version 1 hierarchy


def _remove_tree(group: Path) -> bool:
    """Remove a group and those below it, deepest first; False when something is still inside."""
    walk = os.walk(group, topdown=False)
    return all(_remove_empty(Path(directory)) for directory, _, _ in walk)


def _remove_empty(group: Path) -> bool:
    try:
        group.rmdir()
    except FileNotFoundError:
        return True
    except OSError:
        return False  # busy, or not ours to remove: the caller looks again or reports it
    return True
