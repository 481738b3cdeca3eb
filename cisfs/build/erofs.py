"""An EROFS image that is stored nowhere: laid out first, then made at any offset that is asked for.

What comes before the content of files is in memory; the content is read from where the index has
it, when it is asked for.

Does not know keys, layers or the sources of content.  One thread makes an image; it does not change
afterwards, so that forked processes can each read a part of it.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections import Counter

from cisfs.build.erofs_layout import Layout
from cisfs.build.index import Directory, Entry, Index
from cisfs.format.erofs import (
    BLOCK_SIZE,
    FLAT_INLINE,
    Dirent,
    Inode,
    Superblock,
    block_at,
    block_offset,
    nid_at,
    pack_directory,
    pack_xattrs,
    within_block,
)

INLINE_LIMIT = 512  # bytes; with more, asking for sizes got slower and reading got no faster

_ZEROS = memoryview(bytes(BLOCK_SIZE))


class ErofsImage:
    """The image of an index; `size` in bytes, a multiple of 4096.

    `entries` counts the inodes, `content_bytes` the bytes in files, `metadata_size` those before
    the content of files: they are held in memory, and all that find needs.
    """

    def __init__(
        self,
        index: Index,
        *,
        inline_limit: int = INLINE_LIMIT,
        build_time_ns: int | None = None,
        uuid: bytes | None = None,
    ) -> None:
        """Lay out an image; the same tree always gives the same bytes.

        The content of files of up to `inline_limit` bytes (below 4096) lies beside their inodes.
        Inodes of the time `build_time_ns`, since the epoch, take half as much room: by default it
        is the commonest.  `uuid` is 16 bytes, by default made of the metadata: overlayfs tells its
        layers apart by it.  Raises UsageError, naming the entry, for what EROFS has no room for.
        """
        if build_time_ns is None:
            build_time_ns = _commonest_time(index)
        layout = Layout(index, inline_limit, build_time_ns)
        self.size = layout.size
        self.entries = len(index.entries)
        self.content_bytes = index.totals.content
        self.metadata_size = layout.metadata_size
        self._starts, self._sizes, self._contents = layout.starts, layout.sizes, layout.contents
        self._metadata = memoryview(_pack_metadata(index, layout))
        if uuid is None:
            uuid = hashlib.blake2b(self._metadata, digest_size=16).digest()
        root_nid = nid_at(layout.inodes[index.root.node])
        superblock = Superblock(
            block_at(self.size), self.entries, root_nid, build_time_ns, uuid, bool(layout.maps)
        )
        self._metadata[:BLOCK_SIZE] = superblock.pack()

    def read_into(self, offset: int, out: memoryview) -> None:
        """Fill `out` with what the image has from `offset` on.

        Raises ValueError if that is past its end, and what reading the content of files raises.
        """
        end = offset + len(out)
        if not 0 <= offset <= end <= self.size:
            raise ValueError(f"bytes {offset} to {end} of an image of {self.size} bytes")
        metadata = self._metadata[offset:end]
        out[: len(metadata)] = metadata
        filled = offset + len(metadata)
        for number in range(max(0, bisect_right(self._starts, offset) - 1), len(self._starts)):
            start = self._starts[number]
            if start >= end:
                break
            first, last = max(offset, start), min(end, start + self._sizes[number])
            if first >= last:
                continue
            if first > filled:
                out[filled - offset : first - offset] = _ZEROS[: first - filled]
            content = self._contents[number].read(first - start, last - first)
            out[first - offset : last - offset] = content
            filled = max(filled, last)
        out[filled - offset :] = _ZEROS[: end - filled]


def _commonest_time(index: Index) -> int:
    """The modification time of the most inodes; of several such times the earliest."""
    counts = Counter(entry.mtime_ns for entry in index.entries)
    return min(counts, key=lambda time: (-counts[time], time))


def _pack_metadata(index: Index, layout: Layout) -> bytearray:
    """The metadata; where the superblock and files' content belong there are zeros."""
    metadata = bytearray(layout.metadata_size)
    parents = {index.root.node: index.root}
    for entry in index.entries:  # parents come first
        beside = entry.target
        if isinstance(entry, Directory):
            beside = _pack_names(entry, parents.pop(entry.node), layout)
            for child in entry.children.values():
                if isinstance(child, Directory):
                    parents[child.node] = entry
        _put(metadata, layout, entry, beside)
    return metadata


def _pack_names(directory: Directory, parent: Directory, layout: Layout) -> bytes:
    named: dict[bytes, Entry] = {**directory.children, b".": directory, b"..": parent}
    return pack_directory(
        Dirent(name, nid_at(layout.inodes[named[name].node]), named[name].mode)
        for name in sorted(named)
    )


def _put(metadata: bytearray, layout: Layout, entry: Entry, content: bytes) -> None:
    """Put an inode where it belongs, with its xattrs and its dirents or its target, if any."""
    node = entry.node
    start = layout.inodes[node]
    xattrs = pack_xattrs(entry.xattrs)
    inode = Inode(
        nid=nid_at(start),
        mode=entry.mode,
        uid=entry.uid,
        gid=entry.gid,
        links=entry.links,
        size=len(content) or entry.size,
        mtime_ns=entry.mtime_ns,
        layout=layout.layouts[node],
        place=layout.places[node],
        xattrs_size=len(xattrs),
    )
    blocks = len(content)
    if inode.layout == FLAT_INLINE:
        blocks -= within_block(blocks)
    if blocks:
        at = block_offset(inode.place)
        metadata[at : at + blocks] = content[:blocks]
    beside = layout.maps.get(node, content[blocks:])
    record = inode.pack(layout.lengths[node]) + xattrs + beside
    metadata[start : start + len(record)] = record
