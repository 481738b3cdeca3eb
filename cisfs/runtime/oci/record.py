"""What is known of a container that `cisfs-runtime` made: /run/cisfs/containers/NAME.

    record.json   what was mounted for it, and who serves that
    log           what its servers have to say
    mnt           where everything is mounted, in a namespace that only the container's making sees

A lock on the directory, held by the keeper and every server, tells a live container's from one that
a crash left behind.  Does not know how anything is mounted.  Any number of processes at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cisfs.errors import BusyError
from cisfs.layer.locking import is_locked
from cisfs.mount import rundir

BASE = Path("/run/cisfs/containers")
MOUNTS, ROOT = "mnt", "root"
_RECORD, _LOG = "record.json", "log"
_PATIENCE = 15.0  # seconds: a container that is started again may still be going
_POLL = 0.02


@dataclass(frozen=True, slots=True)
class Place:
    """A container's directory; `lock` is the descriptor that keeps it, in forks too."""

    path: Path
    lock: int

    @property
    def mounts(self) -> Path:
        """The directory to mount below."""
        return self.path / MOUNTS

    @property
    def log(self) -> Path:
        """The file that servers log to."""
        return self.path / _LOG

    def write(self, record: Mapping[str, object]) -> None:
        """Say what is there, whole or not at all.  Raises OSError."""
        temporary = self.path / f"{_RECORD}.part"
        temporary.write_text(json.dumps(record, indent=1) + "\n")
        temporary.rename(self.path / _RECORD)

    def remove(self) -> None:
        """Forget the container.  The lock goes with the descriptor's last copy."""
        _remove(self.path)


def name_of(container: str, root: str) -> str:
    """Return a directory's name: ids are unique only among the containers of one runtime root.

    The root is one however it is spelled, and ids differ that begin with the same 64 characters.
    """
    digest = hashlib.sha256(os.fsencode(f"{os.path.realpath(root)}/{container}")).hexdigest()
    return f"{container[:64]}-{digest[:8]}"


def claim(name: str) -> Place:
    """Make and lock the directory `name`, waiting for an earlier container of that name to be gone.

    Raises BusyError, OSError.
    """
    path, end = BASE / name, time.monotonic() + _PATIENCE
    while (lock := rundir.try_claim(BASE.parent, BASE, path)) is None:
        if time.monotonic() > end:
            raise BusyError(
                f"the servers of an earlier container {name} still run: look into {path}"
            )
        time.sleep(_POLL)
    place = Place(path, lock)
    for left in (path / _RECORD, path / _LOG):
        left.unlink(missing_ok=True)
    # `runc exec` starts in the directory that is the container's root (libcontainer,
    # commandTemplate), although it only sees an empty one of that name.
    (place.mounts / ROOT).mkdir(mode=0o700, parents=True, exist_ok=True)
    return place


def sweep() -> None:
    """Remove what was left by keepers that were killed."""
    for path in _paths():
        lock = rundir.abandoned(path)
        if lock is not None:
            try:
                _remove(path)
            finally:
                os.close(lock)


def records() -> Iterator[tuple[Path, dict[str, Any]]]:
    """Yield the directory and the record of every container that there is.

    What a keeper that was killed left is none: its device may be another's by now.
    """
    for path in _paths():
        found = read(path)
        if found is not None:
            yield path, found


def read(path: Path) -> dict[str, Any] | None:
    """Return the record in a container's directory; None if it is still being made, or gone."""
    try:
        if _is_abandoned(path):
            return None
        found = json.loads((path / _RECORD).read_text())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _is_abandoned(path: Path) -> bool:
    lock = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return not is_locked(lock)
    finally:
        os.close(lock)


def _paths() -> list[Path]:
    try:
        return sorted(BASE.iterdir())
    except FileNotFoundError:
        return []


def _remove(path: Path) -> None:
    """Remove a container's directory, by name: below `mnt` may be what is not ours to delete."""
    for file in (_RECORD, f"{_RECORD}.part", _LOG):
        with contextlib.suppress(OSError):
            (path / file).unlink()
    rundir.remove(path / MOUNTS / ROOT, path / MOUNTS, path, BASE, BASE.parent)
