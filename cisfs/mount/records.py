"""Which EROFS mounts are ours, and whether anybody still serves them.

The mount table says "erofs" and a source for anybody's.  So each supervisor keeps a record in
/run/cisfs/mounts, named after the mounted device, that says what it mounted, and holds a lock on it
for as long as it lives.  Does not know how anything is mounted.  Any number of processes at once;
only root writes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from cisfs.layer.locking import is_locked
from cisfs.layer.renaming import is_at
from cisfs.mount import rundir
from cisfs.mount.points import MountEntry

DIRECTORY = Path("/run/cisfs/mounts")
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC


class Record:
    """The record of a mount that this process serves."""

    def __init__(self, entry: MountEntry, layer: Path | None = None) -> None:
        """Write and lock it; what a dead supervisor left under the name is replaced.

        Raises OSError.
        """
        self._path = DIRECTORY / entry.device
        self._fd = _recorded(self._path, _text(entry.source, layer))

    def remove(self) -> None:
        """Remove it: the mount is gone, or nobody will serve it any more."""
        forget(self._path.name)
        os.close(self._fd)


def announce(device: str, source: str, layer: Path) -> None:
    """Say that `device` is ours before it is mounted anywhere; nobody serves it yet.

    Raises OSError.
    """
    os.close(_recorded(DIRECTORY / device, _text(source, layer)))


def is_ours(entry: MountEntry) -> bool:
    """Whether a cisfs supervisor, dead or alive, mounted `entry`."""
    return layer_of(entry) is not None


def layer_of(entry: MountEntry) -> Path | None:
    """Return the path of the layer that a cisfs supervisor mounted as `entry`; None if none did.

    The source itself is a loop device's, if it is mounted through one.
    """
    try:
        source, *layer = (DIRECTORY / entry.device).read_bytes().split(b"\0")
    except OSError:
        return None
    return Path(os.fsdecode(*layer or [source])) if os.fsdecode(source) == entry.source else None


def is_served(device: str) -> bool:
    """Whether the supervisor of the mounted `device` ("major:minor") lives."""
    try:
        fd = os.open(DIRECTORY / device, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return is_locked(fd)
    finally:
        os.close(fd)


def _text(source: str, layer: Path | None) -> bytes:
    return os.fsencode(source) + (b"\0" + os.fsencode(layer) if layer is not None else b"")


def _recorded(path: Path, text: bytes) -> int:
    """Write a record; returns a descriptor of it that holds its lock."""
    fd = _locked(path)
    # What was announced stays as it is: to be killed between two calls must not lose it.
    if os.pread(fd, len(text) + 1, 0) != text:
        os.ftruncate(fd, 0)
        os.pwrite(fd, text, 0)
    return fd


def _locked(path: Path) -> int:
    """Return a descriptor of the file at `path` that holds its lock.

    The kernel may have given the device's number away already, while its last user has yet to
    remove the record: what was waited for may have lost its name meanwhile.
    """
    while True:
        fd = _opened(path)
        fcntl.flock(fd, fcntl.LOCK_EX)
        if is_at(path, fd):
            return fd
        os.close(fd)


def _opened(path: Path) -> int:
    while True:
        try:
            rundir.make(DIRECTORY.parent, DIRECTORY)
            return os.open(path, _FLAGS, 0o600)
        except FileNotFoundError:
            continue  # somebody's `forget` removed the empty directory just now


def forget(device: str) -> None:
    """Remove the record of a device, if there is one."""
    with contextlib.suppress(OSError):
        (DIRECTORY / device).unlink()
    rundir.remove(DIRECTORY, DIRECTORY.parent)
