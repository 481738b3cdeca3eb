"""How much memory there is, and whether what lies in it can get to a disk.

Reads /proc and the control groups anew in each call (proc(5), cgroups(7)), and changes nothing.
Does not know what the memory is wanted for.  Safe from any thread.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_SWAPS = Path("/proc/swaps")
_CGROUP = Path("/proc/self/cgroup")
_GROUPS = Path("/sys/fs/cgroup")


def available() -> int:
    """Return the bytes of memory that can be had without swapping, or that we may have in all."""
    return min([_free(), *_limits()])


def is_swapped() -> bool:
    """Return whether there is swap space in use, so that anything in memory may be written to it.

    What cannot be known counts as a yes.
    """
    try:
        return len(_SWAPS.read_text().splitlines()) > 1  # the first line is a heading
    except OSError:
        return True


def _free() -> int:
    for line in _MEMINFO.read_text().splitlines():
        name, _, amount = line.partition(":")
        if name == "MemAvailable":
            return int(amount.split()[0]) << 10
    return 0


def _limits() -> Iterator[int]:
    """The limits of our control groups and of those above them, of both versions."""
    for line in _CGROUP.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers:
            tops, name = [_GROUPS, _GROUPS / "unified"], "memory.max"
        elif "memory" in controllers.split(","):
            tops, name = [_GROUPS / "memory"], "memory.limit_in_bytes"
        else:
            continue
        for top in tops:
            group = Path(os.path.normpath(top / path.lstrip("/")))
            for level in (group, *group.parents):  # above the top there are no such files
                yield from _limit(level / name)


def _limit(file: Path) -> Iterator[int]:
    try:
        text = file.read_text().strip()
    except OSError:
        return  # the top has none, and in a container ours may be out of sight
    if text.isdigit():  # or "max"
        yield int(text)
