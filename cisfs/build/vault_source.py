"""A vault as a source: an index of what is in it, without mounting it.

Metadata is read at once, content when it is asked for, each through the vault's tree.  One thread
makes the index.  Forked processes can read content at the same time: each has a copy of the tree's
memory, and of the descriptors they share, none is read by its offset once all directories are
listed.
"""

from __future__ import annotations

import os
import stat

from cisfs.build.attributes import proper
from cisfs.build.index import NO_XATTRS, Bytes, Directory, Entry, Index, quoted
from cisfs.build.whiteouts import Whiteouts, is_metadata
from cisfs.errors import CisfsError, FormatError, UsageError
from cisfs.format.erofs_chunks import WORTHWHILE
from cisfs.layer.tree import ROOT, Attr
from cisfs.layer.vault import Vault
from cisfs.layer.wholetree import WholeTree

_SECTOR = 512  # bytes, which st_blocks counts (stat(2))


def index_vault(vault: Vault) -> Index:
    """Take over a vault that was opened for reading, and return the index of what is in it.

    The vault is closed with the index, or at once if this fails.  Raises FormatError or
    IntegrityError, naming the entry, for what is damaged, UsageError for a whiteout that nothing
    can be meant by, OSError.
    """
    tree = WholeTree(vault)
    try:
        return Index(_Walk(tree).read(), tree.close)
    except BaseException:
        tree.close()
        raise


class _Walk:
    """Reads a tree's metadata."""

    def __init__(self, tree: WholeTree) -> None:
        self._tree = tree
        self._reader = _Reader(tree)
        self._whiteouts = Whiteouts()
        self._links: dict[int, Entry] = {}  # the files with more than one name, by node

    def read(self) -> Directory:
        """Read it all, apply whiteouts, and keep a reference to each directory's node."""
        attr = self._tree.getattr(ROOT)
        root = Directory(attr.mode)
        self._describe(root, attr, b"/")
        waiting = [(ROOT, b"", root)]
        while waiting:
            node, path, directory = waiting.pop()
            handle = self._tree.opendir(node)
            for name, attr, _ in self._tree.readdir(handle, 0):
                if is_metadata(name):
                    continue
                place = path + b"/" + name
                entry = self._links.get(attr.node) or self._entry(node, name, attr, place)
                self._add(directory, name, entry, place)
                if isinstance(entry, Directory):
                    self._tree.hold(attr.node)
                    waiting.append((attr.node, place, entry))
                elif attr.nlink > 1:
                    self._links[attr.node] = entry
            self._tree.releasedir(handle)
        self._whiteouts.apply()
        return root

    def _add(self, directory: Directory, name: bytes, entry: Entry, place: bytes) -> None:
        try:
            if not self._whiteouts.take(directory, name, entry):
                directory.children[name] = entry
        except UsageError as error:
            raise UsageError(f"{quoted(place)}: {error}") from None

    def _entry(self, directory: int, name: bytes, attr: Attr, place: bytes) -> Entry:
        entry = Directory(attr.mode) if stat.S_ISDIR(attr.mode) else Entry(attr.mode)
        self._describe(entry, attr, place)
        if stat.S_ISREG(attr.mode):
            entry.size = attr.size
            entry.content = _FileContent(self._reader, directory, name, attr.size)
            if attr.size - attr.blocks * _SECTOR >= WORTHWHILE:
                entry.extents = self._reader.extents(entry.content)
        elif stat.S_ISLNK(attr.mode):
            entry.target = self._tree.readlink(attr.node)
        return entry

    def _describe(self, entry: Entry, attr: Attr, place: bytes) -> None:
        entry.uid, entry.gid = attr.uid, attr.gid
        entry.mtime_ns = attr.mtime_ns
        entry.rdev = attr.rdev
        names = self._tree.listxattr(attr.node)
        if names:
            xattrs = {name: self._tree.getxattr(attr.node, name) for name in names}
            try:
                entry.xattrs = proper(attr.mode, xattrs) or NO_XATTRS
            except FormatError as error:
                raise FormatError(f"{quoted(place)}: {error}") from None


class _Reader:
    """Reads files, and keeps the last one open: it is read on, if it is a large one."""

    def __init__(self, tree: WholeTree) -> None:
        self._tree = tree
        self._file: _FileContent | None = None
        self._handle = 0  # its node, too

    def read(self, file: _FileContent, offset: int, size: int) -> memoryview:
        """See `Content`."""
        self._turn_to(file)
        return self._tree.read(self._handle, offset, size)

    def extents(self, file: _FileContent) -> list[tuple[int, int]]:
        """Return where a file has data; IntegrityError for a hole that is none."""
        self._turn_to(file)
        return [(start, end - start) for start, end in self._tree.data_spans(self._handle)]

    def _turn_to(self, file: _FileContent) -> None:
        if file is not self._file:
            self._close()
            self._open(file)

    def _open(self, file: _FileContent) -> None:
        attr = self._tree.lookup(file.directory, file.name)
        try:
            self._handle = self._tree.open(attr.node, os.O_RDONLY)
        except BaseException:
            self._tree.forget(attr.node, 1)
            raise
        self._file = file
        if self._tree.getattr(self._handle).size != file.size:
            self._close()
            raise CisfsError(
                f"{quoted(file.name)} changed while it was being sealed: seal it again"
            )

    def _close(self) -> None:
        if self._file is not None:
            self._file = None
            self._tree.release(self._handle)
            self._tree.forget(self._handle, 1)


class _FileContent:
    """A file's content, found again by the node of its directory and its name."""

    __slots__ = ("_reader", "directory", "name", "size")

    def __init__(self, reader: _Reader, directory: int, name: bytes, size: int) -> None:
        self._reader = reader
        self.directory = directory
        self.name = name
        self.size = size

    def read(self, offset: int, size: int) -> Bytes:
        """See `Content`; IntegrityError or FormatError, naming the file, if it is damaged."""
        return self._reader.read(self, offset, size)
