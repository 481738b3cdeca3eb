"""Where everything goes in an EROFS image, before a byte of it is made.

    superblock | directories | other inodes, with the content of small files | content of files

The names in a directory lie beside its inode, so find reads the directories and nothing else.
Inodes and content are in the order in which tar and find walk the tree.

Knows sizes and no bytes: those are for `cisfs.build.erofs`.  One thread makes a layout, and then it
does not change.
"""

from __future__ import annotations

import stat
from array import array
from collections.abc import Iterator

from cisfs.build.index import Bytes, Content, Directory, Entry, Index, quoted
from cisfs.errors import UsageError
from cisfs.format.erofs import (
    BLOCK_SIZE,
    FLAT_INLINE,
    FLAT_PLAIN,
    MAX_BLOCKS,
    NO_BLOCKS,
    block_at,
    device_place,
    directory_size,
    inode_size,
    whole_blocks,
    whole_slots,
    within_block,
    xattrs_size,
)
from cisfs.format.erofs_chunks import CHUNK_BASED, Chunks, chunks


class Layout:
    """The layout of an index; `size` and `metadata_size`, what is before the content, in bytes.

    By the nodes of inodes: the offsets of the `inodes` in the image, their `lengths`, and the
    `layouts` and `places` that stand in them, and the `maps` of sparse files' chunks.  Of the
    pieces of content, in the order of the image: `starts`, `sizes` and `contents`.
    """

    def __init__(self, index: Index, inline_limit: int, build_time_ns: int) -> None:
        """See `ErofsImage`.  Raises UsageError, naming the entry, for what does not fit."""
        nodes = len(index.entries) + 1
        self.inodes = array("Q", bytes(8 * nodes))
        self.lengths, self.layouts = bytearray(nodes), bytearray(nodes)
        self.places = array("I", bytes(4 * nodes))
        self.starts, self.sizes = array("Q"), array("Q")
        self.contents: list[Content] = []
        self.maps: dict[int, bytes] = {}
        self._inline_limit = inline_limit
        self._build_time_ns = build_time_ns
        self._space = _Space(BLOCK_SIZE)
        self._chunks: dict[int, Chunks] = {}
        walk = list(_walk(index))
        for directories in (True, False):
            for entry in walk:
                if isinstance(entry, Directory) is directories:
                    self._place_named(index, entry)
        self.metadata_size = self.size = self._space.end
        for entry in walk:
            if entry.node in self._chunks:
                self._place_chunks(entry, self._chunks[entry.node])
            elif stat.S_ISREG(entry.mode) and self.layouts[entry.node] == FLAT_PLAIN and entry.size:
                self._place_content(entry)

    def _place_named(self, index: Index, entry: Entry) -> None:
        try:
            self._place(entry)
        except ValueError as error:
            raise UsageError(f"{quoted(_path(index.root, entry))}: {error}") from None

    def _place(self, entry: Entry) -> None:
        """Find room for an inode and what goes with it, but for the blocks of files."""
        node, size = entry.node, _stored_size(entry)
        length = inode_size(
            entry.uid, entry.gid, entry.links, size, entry.mtime_ns, self._build_time_ns
        )
        fixed = length + xattrs_size(entry.xattrs)
        if entry.extents is not None and (sparse := chunks(size, entry.extents)):
            self.inodes[node] = self._space.take(fixed + sparse.map_size)
            self.lengths[node], self.layouts[node] = length, CHUNK_BASED
            self.places[node], self._chunks[node] = sparse.place, sparse
            return
        beside = self._beside(entry.mode, size)
        if fixed + beside > BLOCK_SIZE:
            beside = 0
        start = self._space.take(fixed + beside)
        self.inodes[node], self.lengths[node] = start, length
        if beside:
            self.layouts[node], self.places[node] = FLAT_INLINE, NO_BLOCKS
        if stat.S_ISREG(entry.mode):
            if beside:
                self._add_content(start + fixed, entry)
        elif size > beside:
            self.places[node] = block_at(self._space.take_blocks(size - beside))
        elif stat.S_ISCHR(entry.mode) or stat.S_ISBLK(entry.mode):
            self.places[node] = device_place(entry.rdev)

    def _beside(self, mode: int, size: int) -> int:
        """How many bytes, the last of `size`, lie beside the inode if there is room in its block.

        Not the ends of larger files: whoever asks for no more than sizes would read past them.
        """
        if stat.S_ISREG(mode) and size > self._inline_limit:
            return 0
        return within_block(size)

    def _place_content(self, entry: Entry) -> None:
        self.places[entry.node] = block_at(self.size)
        self._add_content(self.size, entry)
        self._grow(entry.size)

    def _place_chunks(self, entry: Entry, sparse: Chunks) -> None:
        """Place what is stored of a sparse file, and make its map."""
        starts = []
        for offset, length in sparse.pieces():
            starts.append(self.size)
            self._add_piece(self.size, length, _Rest(_content(entry), offset))
            self._grow(length)
        self.maps[entry.node] = sparse.pack_map(starts)

    def _grow(self, length: int) -> None:
        self.size += whole_blocks(length)
        if block_at(self.size) > MAX_BLOCKS:
            raise UsageError("this is too much for one layer: an image has room for 16 TiB")

    def _add_content(self, start: int, entry: Entry) -> None:
        self._add_piece(start, entry.size, _content(entry))

    def _add_piece(self, start: int, size: int, content: Content) -> None:
        self.starts.append(start)
        self.sizes.append(size)
        self.contents.append(content)


def _content(entry: Entry) -> Content:
    if entry.content is None:
        raise TypeError(f"entry {entry.node} has a size and no content")
    return entry.content


class _Rest:
    """Content from an offset on."""

    __slots__ = ("_content", "_offset")

    def __init__(self, content: Content, offset: int) -> None:
        self._content = content
        self._offset = offset

    def read(self, offset: int, size: int) -> Bytes:
        """See `Content`."""
        return self._content.read(self._offset + offset, size)


class _Space:
    """Gives out the metadata's blocks, whole or in parts, from the front; `end` is after the last.

    Parts are of one block until it is full, also when whole ones are taken in between.
    """

    __slots__ = ("_at", "_stop", "end")

    def __init__(self, start: int) -> None:
        """Begin at the offset of a block."""
        self.end = self._at = self._stop = start

    def take(self, length: int) -> int:
        """Take `length` bytes and return their offset; up to a block of them lie in one block."""
        length = whole_slots(length)
        if length > self._stop - self._at:
            self._at = self.take_blocks(length)
            self._stop = self.end
        self._at += length
        return self._at - length

    def take_blocks(self, length: int) -> int:
        """Take as many blocks as `length` bytes need, and return their offset."""
        start = self.end
        self.end += whole_blocks(length)
        return start


def _walk(index: Index) -> Iterator[Entry]:
    """Every inode once, as tar and find come by: depth first, in the order of names."""
    met = bytearray(len(index.entries) + 1)
    waiting: list[Entry] = [index.root]
    while waiting:
        entry = waiting.pop()
        if met[entry.node]:
            continue  # another name of a file
        met[entry.node] = True
        yield entry
        if isinstance(entry, Directory):
            waiting += (entry.children[name] for name in sorted(entry.children, reverse=True))


def _stored_size(entry: Entry) -> int:
    """How many bytes an inode has: of dirents, target or content."""
    if isinstance(entry, Directory):
        return directory_size(sorted((b".", b"..", *entry.children)))
    return len(entry.target) or entry.size


def _path(root: Directory, wanted: Entry) -> bytes:
    """A path of an entry in the tree, for messages."""
    waiting: list[tuple[bytes, Entry]] = [(b"", root)]
    for path, entry in waiting:  # which grows meanwhile
        if entry is wanted:
            return path or b"/"
        if isinstance(entry, Directory):
            waiting += ((path + b"/" + name, child) for name, child in entry.children.items())
    raise ValueError("the entry is not in the tree")
