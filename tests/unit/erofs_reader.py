"""A reader of uncompressed EROFS images, written from the kernel's documentation.

It refuses what the kernel or fsck.erofs would refuse, and what costs them more than need be.  Knows
nothing of how cisfs makes images, so that it can judge them.  Pure functions of bytes.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

BLOCK = 4096
HOLE = -1  # the place of what is nowhere
PREFIXES = {
    1: b"user.",
    2: b"system.posix_acl_access",
    3: b"system.posix_acl_default",
    4: b"trusted.",
    6: b"security.",
}
TYPES = (0, 0o10, 0o04, 0o02, 0o06, 0o01, 0o14, 0o12)  # file types, by dirents' numbers for them


class Place(NamedTuple):
    """Where some of an inode's bytes lie in the image."""

    start: int
    length: int


@dataclass
class Inode:
    """All that an inode says, and where it lies."""

    nid: int
    offset: int
    length: int
    inline: bool
    mode: int
    uid: int
    gid: int
    links: int
    size: int
    mtime_ns: int
    rdev: int
    xattrs: dict[bytes, bytes]
    places: list[Place]
    map_size: int = 0
    children: dict[bytes, Inode] = field(default_factory=dict)


class Image:
    """A whole image in memory."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        block = data[1024:BLOCK]
        magic, checksum, features, log2, slots, root_nid, self.inodes = struct.unpack_from(
            "<IIIBBHQ", block
        )
        assert (magic, features, log2, slots) == (0xE0F5E1E2, 3, 12, 0)
        (needed,) = struct.unpack_from("<I", block, 80)
        assert checksum == crc32c(block[:4] + bytes(4) + block[8:])
        seconds, nanoseconds, blocks, meta, shared = struct.unpack_from("<qIIII", block, 24)
        assert (meta, shared) == (0, 0)
        assert len(data) == blocks * BLOCK
        assert not any(data[:1024])
        assert not any(block[64:80])  # no label
        assert needed in (0, 4)  # that there are chunks is all that a reader may have to know
        assert not any(block[84:])
        self.build_time_ns = seconds * 10**9 + nanoseconds
        self.uuid = block[48:64]
        self._met: dict[int, Inode] = {}
        self.root = self._inode(root_nid)
        self._list(self.root, self.root)
        assert len(self._met) == self.inodes
        assert any(inode.map_size for inode in self._met.values()) == bool(needed)
        self._check_overlaps()

    def bytes_of(self, inode: Inode) -> bytes:
        """The content, target or dirents of an inode."""
        return b"".join(
            bytes(length) if start == HOLE else self.data[start : start + length]
            for start, length in inode.places
        )

    def walk(self) -> Iterator[tuple[bytes, Inode]]:
        """Every path and its inode, as tar goes."""
        yield from _walk(b"/", self.root)

    def all_inodes(self) -> list[Inode]:
        """Each inode once."""
        return list(self._met.values())

    # -- inodes ------------------------------------------------------------------------------

    def _inode(self, nid: int) -> Inode:
        if nid in self._met:
            return self._met[nid]
        offset = nid * 32
        form, units, mode = struct.unpack_from("<HHH", self.data, offset)
        assert form & ~1 in (0, 4, 8)
        inline = bool(form & 4)
        if form & 1:
            length = 64
            zeros, size, place, number, uid, gid, seconds, nanoseconds, links, more = (
                struct.unpack_from("<HQIIIIqII16s", self.data, offset + 6)
            )
            mtime_ns = seconds * 10**9 + nanoseconds
            assert nanoseconds < 10**9
        else:
            length, mtime_ns = 32, self.build_time_ns
            links, size, zeros, place, number, uid, gid, last = struct.unpack_from(
                "<HIIIIHHI", self.data, offset + 6
            )
            more = last.to_bytes(4, "little")
        assert zeros == 0
        assert not any(more)
        assert number == nid & 0xFFFFFFFF
        assert offset // BLOCK == (offset + length - 1) // BLOCK, "an inode across a block's end"
        xattrs_size = 12 + 4 * (units - 1) if units else 0
        after = offset + length + xattrs_size
        inode = Inode(
            nid=nid,
            offset=offset,
            length=length,
            inline=inline,
            mode=mode,
            uid=uid,
            gid=gid,
            links=links,
            size=size,
            mtime_ns=mtime_ns,
            rdev=place if stat.S_ISCHR(mode) or stat.S_ISBLK(mode) else 0,
            xattrs=self._xattrs(offset + length, xattrs_size),
            places=self._chunks(size, place, after)
            if form & 8
            else self._places(inline, mode, size, place, after),
            map_size=4 * len(self._addresses(size, place, after)) if form & 8 else 0,
        )
        self._met[nid] = inode
        return inode

    def _places(self, inline: bool, mode: int, size: int, place: int, after: int) -> list[Place]:
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode)):
            assert size == 0
            return []
        tail = size % BLOCK if inline else 0
        assert bool(tail) == inline
        places = []
        if size > tail:
            assert place * BLOCK + size - tail <= len(self.data)
            places.append(Place(place * BLOCK, size - tail))
        elif inline:
            assert place == 0xFFFFFFFF
        if tail:
            assert after % BLOCK + tail <= BLOCK, "inline data across a block's end"
            places.append(Place(after, tail))
        return places

    def _addresses(self, size: int, place: int, at: int) -> tuple[int, ...]:
        """The map of chunks, struct erofs_inode_chunk_info: 5 bits of `place`, and no indexes."""
        assert place < 32
        chunk = BLOCK << place
        return struct.unpack_from(f"<{(size + chunk - 1) // chunk}I", self.data, at)

    def _chunks(self, size: int, place: int, at: int) -> list[Place]:
        assert at % 4 == 0
        chunk, places = BLOCK << place, []
        for number, address in enumerate(self._addresses(size, place, at)):
            length = min(chunk, size - number * chunk)
            is_hole = address == 0xFFFFFFFF
            assert is_hole or address * BLOCK + length <= len(self.data)
            places.append(Place(HOLE if is_hole else address * BLOCK, length))
        return places

    def _xattrs(self, at: int, size: int) -> dict[bytes, bytes]:
        if not size:
            return {}
        found: dict[bytes, bytes] = {}
        end = at + size
        assert self.data[at : at + 12] == bytes(12)
        at += 12
        while at < end:
            rest, index, length = struct.unpack_from("<BBH", self.data, at)
            name = PREFIXES[index] + self.data[at + 4 : at + 4 + rest]
            assert name not in found
            at += 4 + rest
            found[name] = self.data[at : at + length]
            at += length
            assert not any(self.data[at : at + -at % 4])
            at += -at % 4
        assert at == end
        return found

    # -- directories -------------------------------------------------------------------------

    def _list(self, directory: Inode, parent: Inode) -> None:
        names = [name for name, _, _ in self._dirents(directory)]
        assert all(one < other for one, other in pairwise(names)), "names are not in order"
        for name, nid, file_type in self._dirents(directory):
            if name in (b".", b".."):
                assert nid == (directory if name == b"." else parent).nid
                assert file_type == 2
                continue
            new = nid not in self._met
            child = self._inode(nid)
            assert child.mode >> 12 == TYPES[file_type]
            directory.children[name] = child
            if stat.S_ISDIR(child.mode):
                assert new, "a directory with two names"
                self._list(child, directory)
        assert {b".", b".."} <= set(names)

    def _dirents(self, directory: Inode) -> Iterator[tuple[bytes, int, int]]:
        content = self.bytes_of(directory)
        for at in range(0, len(content), BLOCK):
            block = content[at : at + BLOCK]
            (first,) = struct.unpack_from("<H", block, 8)
            heads = [struct.unpack_from("<QHBB", block, each) for each in range(0, first, 12)]
            ends = [offset for _, offset, _, _ in heads[1:]] + [len(block.rstrip(b"\0"))]
            for (nid, start, file_type, zero), end in zip(heads, ends, strict=True):
                assert zero == 0
                name = block[start:end]
                assert 0 < len(name) <= 255
                assert b"\0" not in name
                assert b"/" not in name
                yield name, nid, file_type
            if at + BLOCK >= len(content):
                assert ends[-1] == len(block), "bytes after the last name"

    def _check_overlaps(self) -> None:
        """No byte belongs to two things, and all that belong to none are zeros."""
        owned = [Place(1024, 128)]
        for inode in self._met.values():
            extra = sum(_xattr_size(*each) for each in inode.xattrs.items())
            beside = (12 + extra if extra else 0) + inode.map_size
            owned.append(Place(inode.offset, inode.length + beside))
            owned += [place for place in inode.places if place.start != HOLE]
        owned.sort()
        at = 0
        for start, length in owned:
            assert start >= at, f"two things at {start}"
            assert not any(self.data[at:start]), f"something between {at} and {start}"
            at = start + length
        assert not any(self.data[at:])


def _xattr_size(name: bytes, value: bytes) -> int:
    prefix = next(prefix for prefix in PREFIXES.values() if name.startswith(prefix))
    return (4 + len(name) - len(prefix) + len(value) + 3) // 4 * 4


def _walk(path: bytes, inode: Inode) -> Iterator[tuple[bytes, Inode]]:
    yield path, inode
    for name, child in sorted(inode.children.items()):
        yield from _walk(path.rstrip(b"/") + b"/" + name, child)


def crc32c(data: bytes) -> int:
    """CRC-32C bit by bit, without the complement at the end."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc
