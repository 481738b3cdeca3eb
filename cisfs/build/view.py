"""An index as a read-only file system, with the methods of `VaultTree` that reading takes.

Knows no FUSE; `cisfs.mount.pyfuse` is the adapter, as it is of vaults.  Node numbers are those of
the index and stay for good, so nothing has to be remembered of what the kernel knows.  Every method
raises OSError with the errno that the caller is to see, or what reading content raises.  One thread
at a time.
"""

from __future__ import annotations

import errno
import itertools
import os
from collections.abc import Iterator

from cisfs.build.index import ROOT, Bytes, Directory, Entry, Index
from cisfs.layer.nodes import Attr

__all__ = ["ROOT", "SourceTree"]

_NAME_MAX = 255
_BLOCK_SIZE = 4096
_SECTOR_BITS = 9  # of the 512 bytes that st_blocks counts in


class SourceTree:
    """The tree of a finished index, which the caller closes afterwards."""

    def __init__(self, index: Index) -> None:
        self._index = index
        self._listings: dict[int, list[tuple[bytes, Entry]]] = {}
        self._handles = itertools.count(1)

    def lookup(self, parent: int, name: bytes) -> Attr:
        """Find an entry; FileNotFoundError if there is none."""
        child = self._directory(parent).children.get(name)
        if child is None:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        return _attr(child)

    def hold(self, node: int) -> None:
        """The kernel refers to a node once more, which makes no difference here."""

    def forget(self, node: int, count: int) -> None:
        """The kernel gives references back, which makes no difference here."""

    def getattr(self, node: int) -> Attr:
        """Return a node's attributes."""
        return _attr(self._entry(node))

    def readlink(self, node: int) -> bytes:
        """Return a symlink's target."""
        return self._entry(node).target

    def statfs(self) -> os.statvfs_result:
        """statvfs(3): all there is to know is how long a name may be."""
        return os.statvfs_result((_BLOCK_SIZE, _BLOCK_SIZE, 0, 0, 0, 0, 0, 0, 0, _NAME_MAX))

    def open(self, node: int, flags: int) -> int:
        """Open a regular file; returns a handle."""
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        return self._entry(node).node

    def read(self, handle: int, offset: int, size: int) -> Bytes:
        """Return up to `size` bytes, valid until the next call into the tree.

        Raises IntegrityError or FormatError where the scratch was altered, CisfsError where a
        source was.
        """
        entry = self._entry(handle)
        size = min(size, entry.size - offset)
        if entry.content is None or size <= 0:
            return b""
        return entry.content.read(offset, size)

    def release(self, handle: int) -> None:
        """The last descriptor of an open was closed."""

    def opendir(self, node: int) -> int:
        """Open a directory for listing; returns a handle."""
        handle = next(self._handles)
        self._listings[handle] = list(self._directory(node).children.items())
        return handle

    def readdir(self, handle: int, start: int) -> Iterator[tuple[bytes, Attr, int]]:
        """Yield (name, attributes, cookie of the next entry) from cookie `start` on."""
        entries = self._listings[handle]
        for index in range(start, len(entries)):
            name, entry = entries[index]
            yield name, _attr(entry), index + 1

    def releasedir(self, handle: int) -> None:
        """Close a directory."""
        del self._listings[handle]

    def getxattr(self, node: int, name: bytes) -> bytes:
        """Return an extended attribute; OSError ENODATA if it is absent."""
        try:
            return self._entry(node).xattrs[name]
        except KeyError:
            raise OSError(errno.ENODATA, os.strerror(errno.ENODATA)) from None

    def listxattr(self, node: int) -> list[bytes]:
        """Return the names of all extended attributes."""
        return list(self._entry(node).xattrs)

    def _entry(self, node: int) -> Entry:
        try:
            return self._index.entries[node - ROOT]
        except IndexError:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE)) from None

    def _directory(self, node: int) -> Directory:
        entry = self._entry(node)
        if not isinstance(entry, Directory):
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        return entry


def _attr(entry: Entry) -> Attr:
    size = entry.size or len(entry.target)
    return Attr(
        entry.node,
        entry.mode,
        entry.links,
        entry.uid,
        entry.gid,
        entry.rdev,
        size,
        _BLOCK_SIZE,
        (size + (1 << _SECTOR_BITS) - 1) >> _SECTOR_BITS,
        entry.mtime_ns,
        entry.mtime_ns,
        entry.mtime_ns,
    )
