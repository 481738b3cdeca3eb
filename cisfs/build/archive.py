"""The bytes of a tar, in order: read in place, or once, with what is to be kept put in a scratch.

A plain tar in a regular file is left where it is, and content is read from it again when it is
asked for.  Knows no headers, names or compression.  One thread; the content may be read in forked
processes afterwards.
"""

from __future__ import annotations

import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

from cisfs.build.decompress import CUT_SHORT, Unpacked
from cisfs.build.files import OpenFile
from cisfs.build.index import Bytes, Content
from cisfs.build.scratch import Scratch
from cisfs.errors import FormatError, UsageError

_PIECE = 1 << 20


class Slice:
    """A file's content inside a larger one."""

    __slots__ = ("_start", "_whole")

    def __init__(self, whole: Content, start: int) -> None:
        self._whole = whole
        self._start = start

    def read(self, offset: int, size: int) -> Bytes:
        """See `Content`."""
        return self._whole.read(self._start + offset, size)


class Archive(ABC):
    """A tar's bytes; `position` is how many have passed.

    `read`, `keep`, `skip` and `rest` raise FormatError where the tar is cut short or its
    compression damaged, UsageError when more than `max_size` bytes have passed, OSError.
    """

    def __init__(self, max_size: int) -> None:
        self.position = 0
        self._max_size = max_size

    @abstractmethod
    def read(self, size: int) -> bytes:
        """Return the next `size` bytes, no fewer."""

    @abstractmethod
    def keep(self, size: int) -> Content:
        """Pass over the next `size` bytes; returns what reads them once all is finished."""

    @abstractmethod
    def skip(self, size: int) -> None:
        """Pass over the next `size` bytes."""

    @abstractmethod
    def rest(self) -> Iterator[bytes]:
        """The bytes up to the end, in pieces."""

    @abstractmethod
    def finish(self) -> None:
        """Make what was kept readable.  Raises OSError."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the tar and of what was kept."""

    def check_size(self, size: int) -> None:
        """Raise UsageError if `size` bytes are more than may be."""
        if size > self._max_size:
            raise UsageError(
                f"more than {self._max_size} bytes: raise --max-size if it is meant to be so large"
            )

    def _pass(self, size: int) -> None:
        self.check_size(self.position + size)
        self.position += size


class FileArchive(Archive):
    """A plain tar in a regular file, from the descriptor's position on."""

    def __init__(self, fd: int, label: str, max_size: int) -> None:
        """Read through a duplicate of `fd`; `label` is for the message that it has changed."""
        super().__init__(max_size)
        self._start = os.lseek(fd, 0, os.SEEK_CUR)
        self._file = OpenFile(fd, label)
        self._length = self._file.state.size - self._start

    def read(self, size: int) -> bytes:
        """See `Archive`."""
        start = self._start + self.position
        self.skip(size)
        return self._file.read(start, size)

    def keep(self, size: int) -> Content:
        """See `Archive`."""
        start = self._start + self.position
        self.skip(size)
        return Slice(self._file, start)

    def skip(self, size: int) -> None:
        """See `Archive`."""
        if self.position + size > self._length:
            raise FormatError(CUT_SHORT)
        self._pass(size)

    def rest(self) -> Iterator[bytes]:
        """See `Archive`."""
        while self.position < self._length:
            yield self.read(min(_PIECE, self._length - self.position))

    def finish(self) -> None:
        """See `Archive`."""

    def close(self) -> None:
        """See `Archive`."""
        self._file.close()


class StreamArchive(Archive):
    """A tar that passes by once."""

    def __init__(self, source: Unpacked, scratch: Scratch, max_size: int) -> None:
        """Read `source`, and keep in `scratch`; `close` closes both."""
        super().__init__(max_size)
        self._source = source
        self._scratch = scratch

    def read(self, size: int) -> bytes:
        """See `Archive`."""
        return b"".join(self._pieces(size))

    def keep(self, size: int) -> Content:
        """See `Archive`."""
        start = self._scratch.size
        for piece in self._pieces(size):
            self._scratch.append(piece)
        return Slice(self._scratch, start)

    def skip(self, size: int) -> None:
        """See `Archive`."""
        for _ in self._pieces(size):
            pass

    def rest(self) -> Iterator[bytes]:
        """See `Archive`."""
        while piece := self._source.read(_PIECE):
            self._pass(len(piece))
            yield piece

    def finish(self) -> None:
        """See `Archive`."""
        self._source.close()
        self._scratch.finish()

    def close(self) -> None:
        """See `Archive`."""
        self._source.close()
        self._scratch.close()

    def _pieces(self, size: int) -> Iterator[bytes]:
        self._pass(size)
        while size:
            piece = self._source.read(min(size, _PIECE))
            if not piece:
                raise FormatError(CUT_SHORT)
            size -= len(piece)
            yield piece


def open_archive(fd: int, label: str, max_size: int, scratch_directory: Path) -> Archive:
    """Read a tar from `fd`, plain or compressed; `label` is what messages call it later on.

    `max_size` is in bytes after decompression.  A scratch, where one is needed, is made on the file
    system of `scratch_directory`.  Raises FormatError, UsageError, OSError.
    """
    source = Unpacked(fd)
    try:
        if stat.S_ISREG(os.fstat(fd).st_mode) and not source.compressed:
            source.close()
            return FileArchive(fd, label, max_size)
        return StreamArchive(source, Scratch(scratch_directory), max_size)
    except BaseException:
        source.close()
        raise
