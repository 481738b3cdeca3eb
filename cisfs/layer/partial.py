"""Where a rotation works: beside what it rotates, under a name of its own, one at a time.

Knows nothing of what is in it.  The lock goes with the descriptor, so a killed process leaves
none.  One thread.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from cisfs.errors import BusyError, UsageError
from cisfs.layer.locking import try_lock

# Seconds to wait for the lock: the workers of a killed process hold it until they have done the
# piece at hand.
PATIENCE = 5.0

_FILE_FLAGS = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NAME_MAX = 255
_FOREIGN = frozenset({errno.ELOOP, errno.ENOTDIR, errno.EISDIR, errno.ENXIO})


@dataclass(frozen=True, slots=True)
class Partial:
    """A partial file or directory, `name` in the `directory` of what is rotated, locked by `fd`."""

    path: Path
    directory: int
    name: bytes
    fd: int


def partial_file(path: Path) -> Path:
    """The path of the file in which a new layer is made for the one at `path`."""
    return path.with_name(_fitting(".", path.name))


def partial_directory(path: Path) -> Path:
    """The path of the directory in which a new vault is made for the one at `path`."""
    return path.with_name(_fitting("", path.name))


@contextmanager
def claimed_file(path: Path) -> Iterator[Partial]:
    """Yield the partial file for the layer at `path`, an empty one if there was none.

    It stays, unless it is empty when the block ends.  Raises BusyError if another process works
    there, UsageError if something else is in the way, OSError.
    """
    partial = partial_file(path)
    with _claimed(path, partial, _made_file) as claim:
        if not stat.S_ISREG(os.fstat(claim.fd).st_mode):
            raise _in_the_way(partial)
        try:
            yield claim
        finally:
            if os.fstat(claim.fd).st_size == 0:
                os.unlink(claim.name, dir_fd=claim.directory)


@contextmanager
def claimed_directory(path: Path) -> Iterator[Partial]:
    """Yield the partial directory for the vault at `path`, an empty one if there was none.

    It stays, unless it is empty when the block ends.  Raises as `claimed_file` does.
    """
    partial = partial_directory(path)
    with _claimed(path, partial, _made_directory) as claim:
        try:
            yield claim
        finally:
            with suppress(OSError):  # it is not empty
                os.rmdir(claim.name, dir_fd=claim.directory)


@contextmanager
def _claimed(path: Path, partial: Path, opened: Callable[[bytes, int], int]) -> Iterator[Partial]:
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    with ExitStack() as undo:
        undo.callback(os.close, directory)
        name = os.fsencode(partial.name)
        with _in_the_way_of(partial):
            fd = opened(name, directory)
        undo.callback(os.close, fd)
        _check_ours(fd, path, partial)
        _lock(fd, directory, name, path)
        yield Partial(partial, directory, name, fd)


@contextmanager
def _in_the_way_of(partial: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in _FOREIGN:
            raise _in_the_way(partial) from None
        raise


def _made_file(name: bytes, at: int) -> int:
    return os.open(name, _FILE_FLAGS, 0o600, dir_fd=at)


def _made_directory(name: bytes, at: int) -> int:
    with suppress(FileExistsError):
        os.mkdir(name, 0o700, dir_fd=at)
    fd = os.open(name, _DIRECTORY_FLAGS, dir_fd=at)
    with suppress(OSError):  # inherited; what is copied brings its own
        os.removexattr(fd, "system.posix_acl_default")
    return fd


def _check_ours(fd: int, path: Path, partial: Path) -> None:
    """Take nothing that somebody else put there, nor a file that has another name elsewhere."""
    status = os.fstat(fd)
    linked = stat.S_ISREG(status.st_mode) and status.st_nlink != 1
    if status.st_uid not in (os.geteuid(), os.stat(path).st_uid) or linked:
        raise _in_the_way(partial)


def _lock(fd: int, directory: int, name: bytes, path: Path) -> None:
    busy = BusyError(f"{path} is being rotated by another cisfs command")
    patient_until = time.monotonic() + PATIENCE
    while not try_lock(fd):
        if time.monotonic() > patient_until:
            raise busy
        time.sleep(0.01)
    # What was opened may have become the new layer since: then it is not to be written.
    try:
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        raise busy from None
    if not os.path.samestat(status, os.fstat(fd)):
        raise busy


def _in_the_way(partial: Path) -> UsageError:
    return UsageError(f"{partial} is in the way, which cisfs did not make: remove it")


def _fitting(prefix: str, name: str) -> str:
    whole = f"{prefix}{name}.rotating"
    if len(os.fsencode(whole)) <= _NAME_MAX:
        return whole
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
    start = os.fsdecode(os.fsencode(name)[:200])
    return f"{prefix}{start}.{digest}.rotating"
