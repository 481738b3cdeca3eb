"""Indexes for tests of EROFS images, content that notes how it is read, and whole images.

One test at a time.
"""

from __future__ import annotations

import stat
from collections.abc import Mapping

from cisfs.build.erofs import ErofsImage
from cisfs.build.index import Directory, Entry, Index

TIME = 1_700_000_000_000_000_000


class Stored:
    """Content in memory; `reads` are the (offset, size) that were asked for."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.reads: list[tuple[int, int]] = []

    def read(self, offset: int, size: int) -> bytes:
        assert offset >= 0
        assert 0 < size <= len(self.data) - offset
        self.reads.append((offset, size))
        return self.data[offset : offset + size]


def text(size: int, seed: int = 0) -> bytes:
    """Bytes without zeros, in which no two 16-byte blocks are alike."""
    return b"".join(b"%7d:%07d\n" % (seed, at) for at in range(size // 16 + 1))[:size]


def file(
    data: bytes = b"",
    *,
    mode: int = 0o644,
    owner: tuple[int, int] = (0, 0),
    mtime_ns: int = TIME,
    xattrs: Mapping[bytes, bytes] | None = None,
) -> Entry:
    """A regular file."""
    entry = Entry(stat.S_IFREG | mode, *owner, mtime_ns, size=len(data))
    entry.content = Stored(data) if data else None
    entry.xattrs = xattrs or {}
    return entry


def link(target: bytes) -> Entry:
    """A symlink."""
    return Entry(stat.S_IFLNK | 0o777, mtime_ns=TIME, target=target)


def device(mode: int, rdev: int) -> Entry:
    """A device, or a FIFO or socket without a number."""
    return Entry(mode, mtime_ns=TIME, rdev=rdev)


def directory(children: Mapping[bytes, Entry] | None = None, *, mode: int = 0o755) -> Directory:
    """A directory."""
    return Directory(stat.S_IFDIR | mode, mtime_ns=TIME, children=dict(children or {}))


def read(image: ErofsImage, offset: int, size: int) -> bytes:
    """A part of an image, read into memory that is not zeros before."""
    out = bytearray(b"\xff" * size)
    image.read_into(offset, memoryview(out))
    return bytes(out)


def whole(image: ErofsImage) -> bytes:
    """All of an image."""
    return read(image, 0, image.size)


def image_of(children: Mapping[bytes, Entry], *, inline_limit: int = 512) -> ErofsImage:
    """The image of a root with these entries."""
    return ErofsImage(Index(directory(children)), inline_limit=inline_limit)
