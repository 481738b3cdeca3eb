"""The index of a source: every entry of the layer to be, in memory, and where its content lies.

Does not know tars, file systems or FUSE, and does no I/O.  One thread builds an index; a finished
one does not change, so that a forked process can serve it.  An entry takes some 400 bytes.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Protocol, Self

from cisfs.format.erofs_chunks import Extents

Bytes = bytes | bytearray | memoryview

ROOT = 1  # the root's node number, as FUSE has it
NO_XATTRS: Mapping[bytes, bytes] = MappingProxyType({})

_QUOTED = 200  # characters
_BLOCK = 4096  # of an EROFS image
_INODE = 64
_DIRENT = 12
_XATTR = 16  # an attribute's own header, its share of the inode's, and their alignment
_IMAGE_BASE = 1 << 16


class Content(Protocol):
    """The bytes of a file."""

    def read(self, offset: int, size: int) -> Bytes:
        """Return `size` bytes from `offset`, which the file is known to have.

        They are valid until the next read of any file.  Raises CisfsError, OSError.
        """


@dataclass(slots=True, eq=False)
class Entry:
    """One inode.  Hard links are the same object under several names.

    `mode` has the type bits; `mtime_ns` is ns since the epoch; `size` is the content's in bytes,
    `target` a symlink's; `extents` is where the content is not zeros, if that is known.  `node` and
    `links` are set by the finished `Index`.
    """

    mode: int
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    rdev: int = 0
    size: int = 0
    target: bytes = b""
    xattrs: Mapping[bytes, bytes] = field(default_factory=lambda: NO_XATTRS)
    content: Content | None = None
    extents: Extents | None = None
    node: int = 0
    links: int = 0


@dataclass(slots=True, eq=False)
class Directory(Entry):
    """A directory, and what is in it by name.

    An `implied` one was only ever named in a path, so nothing is known of it but that.
    """

    children: dict[bytes, Entry] = field(default_factory=dict)
    implied: bool = False


@dataclass(slots=True)
class Totals:
    """What a source amounts to; a file with several hard links counts once.

    `content` is the bytes in files, `image` an upper estimate of the size in bytes of an EROFS
    image of it all.
    """

    entries: int = 0
    content: int = 0
    image: int = _IMAGE_BASE

    def count(self, mode: int, size: int, xattrs: int) -> None:
        """Count one inode: the bytes of its content, target or names, and of its attributes.

        What fills no whole block lies beside the inode, if there is room for both in one block.
        All blocks of inodes but one are at least half full, because a new one is begun only for
        what fits into none.  A compressed file has an index of eight bytes for each block.
        """
        self.entries += 1
        tail = size & (_BLOCK - 1)
        beside = _INODE + xattrs + tail <= _BLOCK
        self.image += 2 * (_INODE + xattrs) + size + (size >> 8)
        self.image += tail if beside else _BLOCK
        if stat.S_ISREG(mode):
            self.content += size


class Index:
    """A finished index: `entries` are all inodes, the one with node number n at n - 1.

    A context manager: `close` lets go of what the content is read from.
    """

    def __init__(self, root: Directory, close: Callable[[], None] = lambda: None) -> None:
        """Number what is below `root`, parents first."""
        self.close = close
        root.node = ROOT
        self.root = root
        self.entries: list[Entry] = [root]
        self.totals = Totals()
        for entry in self.entries:  # which grows meanwhile
            if isinstance(entry, Directory):
                self._number(entry)
            self.totals.count(entry.mode, _size(entry), xattrs_size(entry.xattrs))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def _number(self, directory: Directory) -> None:
        directory.links += 2  # its name and its "."
        for child in directory.children.values():
            if not child.node:
                self.entries.append(child)
                child.node = len(self.entries)
            if isinstance(child, Directory):
                directory.links += 1
            else:
                child.links += 1


def quoted(name: bytes) -> str:
    """A name or path for a message: in quotes, on one line, and not too long."""
    text = repr(os.fsdecode(name))
    return text if len(text) <= _QUOTED else f"{text[: _QUOTED // 2]}...{text[-_QUOTED // 2 :]}"


def names_size(names: int, length: int) -> int:
    """An upper estimate of what a directory of `names` names of `length` bytes in all takes.

    A name is not cut at the end of a block, so 267 bytes of each 4096 may stay empty.
    """
    return (2 * _DIRENT + 3 + names * _DIRENT + length) * 15 // 14


def xattrs_size(xattrs: Mapping[bytes, bytes]) -> int:
    """An upper estimate of what an inode's extended attributes take, in bytes."""
    return sum(_XATTR + len(name) + len(value) for name, value in xattrs.items())


def _size(entry: Entry) -> int:
    if isinstance(entry, Directory):
        return names_size(len(entry.children), sum(map(len, entry.children)))
    return entry.size or len(entry.target)
