"""Files that are read where they lie, and that must stay what they were when they were found.

Does not know what is in them.  Safe in forked processes.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

from cisfs.build.index import quoted
from cisfs.errors import CisfsError

# O_NONBLOCK: what was a file may be a FIFO by now, which would make the reader wait for ever.
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

# Gone, a symlink, below what was a directory, a socket.
_REPLACED = frozenset({errno.ENOENT, errno.ELOOP, errno.ENOTDIR, errno.ENXIO})


class State(NamedTuple):
    """By what a file is known to be the same, with the same content; size in bytes."""

    device: int
    inode: int
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> State:
        """The state that stat(2) tells."""
        return cls(status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)


class OpenFile:
    """A file that is kept open; `state` is how it was found."""

    def __init__(self, fd: int, label: str) -> None:
        """Read through a duplicate of `fd`; `label` is what messages call the file."""
        self.state = State.of(os.fstat(fd))
        self._label = label
        self._fd = os.dup(fd)

    def read(self, offset: int, size: int) -> bytes:
        """See `Content`; CisfsError if the file has changed."""
        return _read(self._fd, self.state, offset, size, self._label)

    def close(self) -> None:
        """Close the duplicate."""
        os.close(self._fd)


class FileAt:
    """A file that is opened for each read, because there may be a million of them."""

    __slots__ = ("_directory", "_name", "_state")

    def __init__(self, directory: bytes, name: bytes, state: State) -> None:
        """The file `name` in `directory`, an absolute path that its neighbours can share."""
        self._directory = directory
        self._name = name
        self._state = state

    def read(self, offset: int, size: int) -> bytes:
        """See `Content`; CisfsError if the file has changed, or is another."""
        with self._opened() as fd:
            return _read(fd, self._state, offset, size, quoted(self._path))

    def extents(self) -> list[tuple[int, int]]:
        """Return where it has data, as lseek(2) tells; CisfsError if it has changed."""
        with self._opened() as fd:
            found = list(_extents(fd, self._state.size))
            if State.of(os.fstat(fd)) != self._state:
                raise _changed(quoted(self._path))
        return found

    @property
    def _path(self) -> bytes:
        return os.path.join(self._directory, self._name)

    @contextmanager
    def _opened(self) -> Iterator[int]:
        # Root may read without leaving traces in the access times, which would cost a write each.
        flags = _FLAGS | (os.O_NOATIME if os.geteuid() == 0 else 0)
        try:
            fd = os.open(self._path, flags)
        except OSError as error:
            if error.errno in _REPLACED:
                raise _changed(quoted(self._path)) from None
            raise
        try:
            yield fd
        finally:
            os.close(fd)


def _read(fd: int, state: State, offset: int, size: int, label: str) -> bytes:
    if State.of(os.fstat(fd)) == state:  # else it may be something that cannot be read at all
        data = os.pread(fd, size, offset)
        # Once more: a change that comes after this was not in what was read.
        if len(data) == size and State.of(os.fstat(fd)) == state:
            return data
    raise _changed(label)


def _extents(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield offset and length of what is no hole: all, where the file system knows of none."""
    end = 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
            end = os.lseek(fd, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno != errno.ENXIO:  # nothing but a hole from here on
                raise
            return
        yield start, end - start


def _changed(label: str) -> CisfsError:
    return CisfsError(f"{label} changed while it was being sealed: seal it again")
