"""The directory of one run, /run/cisfs/run-ID, and the removal of what killed runs left behind.

The directory is an empty mount point: all content is in a tmpfs that only the run's own mount
namespace sees.  A lock on it, held by every process of the run, tells a live run from a dead one.
Does not know what happens inside.  Any number of runs may start and sweep side by side.
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from cisfs.mount import rundir
from cisfs.runtime import cgroup
from cisfs.runtime.bundle import cgroup_path

BASE = Path("/run/cisfs")
_PREFIX = "run-"
_ID_BYTES = 16


@dataclass(frozen=True, slots=True)
class Workspace:
    """A claimed directory.  `lock` is the descriptor that keeps it claimed, in forks too."""

    identifier: str
    lock: int

    @property
    def path(self) -> Path:
        """The directory itself."""
        return BASE / f"{_PREFIX}{self.identifier}"

    def remove(self) -> None:
        """Remove the directory and the run's control groups; a second time does nothing."""
        _remove(self.identifier)


def claim() -> Workspace:
    """Make and lock the directory of a new run.  Raises OSError when /run cannot be written."""
    while True:
        identifier = secrets.token_hex(_ID_BYTES)
        lock = rundir.try_claim(BASE, BASE / f"{_PREFIX}{identifier}")
        if lock is not None:  # else a sweep came between mkdir and the lock
            return Workspace(identifier, lock)


def sweep() -> None:
    """Remove what runs that were killed with SIGKILL could not remove themselves."""
    try:
        leftovers = [path for path in BASE.iterdir() if path.name.startswith(_PREFIX)]
    except FileNotFoundError:
        return
    for path in leftovers:
        lock = rundir.abandoned(path)
        if lock is not None:
            try:
                _remove(path.name.removeprefix(_PREFIX))
            finally:
                os.close(lock)


def remove_empty(directory: Path) -> None:
    """Remove a directory in /run/cisfs, and that one, too, unless others have something there."""
    rundir.remove(directory, BASE)


def _remove(identifier: str) -> None:
    cgroup.remove(cgroup_path(identifier))
    remove_empty(BASE / f"{_PREFIX}{identifier}")
