"""Where the bytes of an upload come from: anything that can be read at an offset, again if need be.

Does not know where they go.  A source may be read by one thread at a time.
"""

from __future__ import annotations

import os
from typing import Protocol


class Source(Protocol):
    """`size` bytes; what is read at an offset is always the same."""

    @property
    def size(self) -> int:
        """In bytes."""

    def read(self, offset: int, size: int) -> bytes:
        """Return up to `size` bytes from `offset`, none only at the end."""


class BytesSource:
    """Bytes that are at hand."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    @property
    def size(self) -> int:
        """In bytes."""
        return len(self._content)

    def read(self, offset: int, size: int) -> bytes:
        """See `Source`."""
        return self._content[offset : offset + size]


class FileSource:
    """A regular file that is open for reading, up to the size that it has now."""

    def __init__(self, fd: int) -> None:
        """`fd` stays the caller's; it is read where asked, its position is not moved."""
        self._fd = fd
        self._size = os.fstat(fd).st_size

    @property
    def size(self) -> int:
        """In bytes."""
        return self._size

    def read(self, offset: int, size: int) -> bytes:
        """See `Source`."""
        return os.pread(self._fd, min(size, self._size - offset), offset)


class PartSource:
    """`size` bytes of another source, from `offset`."""

    def __init__(self, whole: Source, offset: int, size: int) -> None:
        if not 0 <= offset <= offset + size <= whole.size:
            raise ValueError(f"{size} bytes from {offset} of {whole.size}")
        self._whole = whole
        self._offset = offset
        self._size = size

    @property
    def size(self) -> int:
        """In bytes."""
        return self._size

    def read(self, offset: int, size: int) -> bytes:
        """See `Source`."""
        return self._whole.read(self._offset + offset, min(size, self._size - offset))
