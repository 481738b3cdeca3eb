"""The bytes of a tar, in order: read in place, or once, with what is to be kept put in a scratch.

A plain tar that can be read at any place is left where it is, and content is read from it again
when it is asked for.  Knows no headers, names or compression.  One thread; the content may be read
in forked processes afterwards.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

from cisfs.build.decompress import CUT_SHORT, Unpacked
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

    @abstractmethod
    def digest(self) -> str:
        """Return the digest of the whole tar, which has been read to its end: "sha256:...".

        A plain one is read once more; of a stream it is known only if it was made `hashed`.
        """

    def check_size(self, size: int) -> None:
        """Raise UsageError if `size` bytes are more than may be."""
        if size > self._max_size:
            raise UsageError(
                f"more than {self._max_size} bytes: raise --max-size if it is meant to be so large"
            )

    def _pass(self, size: int) -> None:
        self.check_size(self.position + size)
        self.position += size


class PlainArchive(Archive):
    """A plain tar that can be read at any place: `size` bytes of `whole` from `start` on."""

    def __init__(
        self,
        whole: Content,
        start: int,
        size: int,
        max_size: int,
        close: Callable[[], None] = lambda: None,
    ) -> None:
        """`close` lets go of `whole`."""
        super().__init__(max_size)
        self._whole = whole
        self._start = start
        self._length = size
        self._close = close

    def read(self, size: int) -> bytes:
        """See `Archive`."""
        start = self._start + self.position
        self.skip(size)
        return bytes(self._whole.read(start, size))

    def keep(self, size: int) -> Content:
        """See `Archive`."""
        start = self._start + self.position
        self.skip(size)
        return Slice(self._whole, start)

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
        self._close()

    def digest(self) -> str:
        """See `Archive`."""
        found = hashlib.sha256()
        for at in range(0, self._length, _PIECE):
            found.update(self._whole.read(self._start + at, min(_PIECE, self._length - at)))
        return f"sha256:{found.hexdigest()}"


class StreamArchive(Archive):
    """A tar that passes by once."""

    def __init__(
        self, source: Unpacked, scratch: Scratch, max_size: int, *, hashed: bool = False
    ) -> None:
        """Read `source`, and keep in `scratch`; `close` closes both."""
        super().__init__(max_size)
        self._source = source
        self._scratch = scratch
        self._hash = hashlib.sha256() if hashed else None

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
        while piece := self._read(_PIECE):
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

    def digest(self) -> str:
        """See `Archive`."""
        if self._hash is None:
            raise ValueError("nobody wanted the digest of the stream")
        return f"sha256:{self._hash.hexdigest()}"

    def _pieces(self, size: int) -> Iterator[bytes]:
        self._pass(size)
        while size:
            piece = self._read(min(size, _PIECE))
            if not piece:
                raise FormatError(CUT_SHORT)
            size -= len(piece)
            yield piece

    def _read(self, most: int) -> bytes:
        piece = self._source.read(most)
        if self._hash is not None:
            self._hash.update(piece)
        return piece
