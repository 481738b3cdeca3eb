"""What is left of a container in the control groups, and which of them there are at all.

Reads the mount table and removes directories; making the groups is the engine's work.  Does not
know containers beyond the path of their groups.  Any number of runs may call this side by side.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

_POLL = 0.005  # seconds: a group's last process leaves it a moment after it was reaped


def hierarchies(mountinfo: str) -> Iterator[tuple[Path, frozenset[str]]]:
    """Yield mount point and superblock options of every cgroup mount in a mountinfo text.

    proc(5): the options of a version 1 hierarchy name its controllers.
    """
    for line in mountinfo.splitlines():
        fields, _, rest = line.partition(" - ")
        kind, _, options = rest.split(" ")[:3]
        if kind in ("cgroup", "cgroup2"):
            yield Path(fields.split(" ")[4]), frozenset(options.split(","))


def can_limit_pids() -> bool:
    """Tell whether some hierarchy has the pids controller."""
    for top, options in hierarchies(_mountinfo()):
        if "pids" in options or "pids" in _controllers(top):
            return True
    return False


def remove(path: str, seconds: float = 1.0) -> bool:
    """Remove the group `path` from every hierarchy, with all below it; True when none is left.

    Waits up to `seconds` for the last processes to be gone.  An emptied parent group goes as well.
    """
    deadline = time.monotonic() + seconds
    gone = True
    for top, _ in hierarchies(_mountinfo()):
        group = top / path.lstrip("/")
        while not _remove_tree(group) and time.monotonic() < deadline:
            time.sleep(_POLL)
        gone = gone and not group.exists()
        if group.parent != top:
            _remove_empty(group.parent)
    return gone


def _mountinfo() -> str:
    return Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="surrogateescape")


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
