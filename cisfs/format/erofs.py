"""The structures of an uncompressed EROFS image as bytes.

Source: the kernel's fs/erofs/erofs_fs.h and Documentation/filesystems/erofs.rst; compared with what
mkfs.erofs 1.5 writes.  Packs only, for the kernel is the reader.  Does not know where in an image a
structure goes (`cisfs.build.erofs_layout` does), and does no I/O.  Pure functions; safe anywhere.
"""

from __future__ import annotations

import stat
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

BLOCK_SIZE = 4096
SLOT_SIZE = 32  # an inode begins at a multiple of it, and is known by that multiple, its nid
COMPACT_SIZE = 32
EXTENDED_SIZE = 64
MAX_BLOCKS = (1 << 32) - 1
NAME_MAX = 255  # bytes

# Where the bytes of a file, a directory or a symlink are: all of them in whole blocks, or those
# after the last whole block behind the inode and its xattrs, not across the end of a block.
FLAT_PLAIN = 0
FLAT_INLINE = 2
NO_BLOCKS = (1 << 32) - 1  # the place of a FLAT_INLINE inode without whole blocks

_SUPER_OFFSET = 1024
_MAGIC = 0xE0F5E1E2
_CHECKSUM_OFFSET = 4
# The superblock has a checksum, and the times in inodes are of modification.  A sealed layer needs
# no checksum, but fsck.erofs, blkid and the kernel compare it, and so find our mistakes.
_FEATURES = 1 | 2
_CHUNKED = 4  # there are sparse files, which Linux 5.15 learned to read
_EXTENDED = 1
_SECOND = 1_000_000_000
_NO_ID = (1 << 32) - 1  # the kernel's word for no user or group
_END_OF_TIME_NS = (1 << 63) * _SECOND  # seconds have 64 bits, one of them for the sign

# magic, checksum, features, log2 of the block size, extension slots, root nid, inodes, build time
# (s, ns), blocks, addresses of nid 0 and of shared xattrs, uuid, label, features that a reader has
# to know, and what is not used
_SUPERBLOCK = struct.Struct("<IIIBBHQqIIII16s16s48s")
# form, units of xattrs, mode, links, size, zeros, place, number for 32-bit stat, uid, gid, zeros
_COMPACT_INODE = struct.Struct("<HHHHIIIIHHI")
# form, units of xattrs, mode, zeros, size, place, number, uid, gid, mtime (s, ns), links, zeros
_EXTENDED_INODE = struct.Struct("<HHHHQIIIIqII16s")
_DIRENT = struct.Struct("<QHBB")  # nid, where in the block the name begins, file type, zero
_XATTRS_HEADER = bytes(12)  # no filter of names, no shared xattrs
_XATTR = struct.Struct("<BBH")  # bytes in the name's rest, index of its prefix, bytes in the value

_XATTR_UNIT = 4
_MAX_XATTRS_SIZE = len(_XATTRS_HEADER) + _XATTR_UNIT * 0xFFFE
_MAX_XATTR_VALUE = 0xFFFF
_XATTR_PREFIXES = {b"user": 1, b"trusted": 4, b"security": 6}
_ACLS = {b"system.posix_acl_access": 2, b"system.posix_acl_default": 3}

_FILE_TYPES = {
    stat.S_IFREG: 1,
    stat.S_IFDIR: 2,
    stat.S_IFCHR: 3,
    stat.S_IFBLK: 4,
    stat.S_IFIFO: 5,
    stat.S_IFSOCK: 6,
    stat.S_IFLNK: 7,
}


def whole_blocks(length: int) -> int:
    """Round a length in bytes up to whole blocks."""
    return (length + BLOCK_SIZE - 1) & -BLOCK_SIZE


def within_block(offset: int) -> int:
    """How far into its block the byte at `offset` lies; the bytes after a length's last block."""
    return offset % BLOCK_SIZE


def block_at(offset: int) -> int:
    """The address of the block that holds the byte at `offset`."""
    return offset // BLOCK_SIZE


def block_offset(address: int) -> int:
    """Where the block with this address begins."""
    return address * BLOCK_SIZE


def whole_slots(length: int) -> int:
    """Round a length in bytes up, so that an inode can begin after it."""
    return (length + SLOT_SIZE - 1) & -SLOT_SIZE


def nid_at(offset: int) -> int:
    """The nid of the inode at `offset`, a multiple of 32."""
    return offset // SLOT_SIZE


# -- the superblock ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Superblock:
    """What an image says of itself; `build_time_ns`, since the epoch, is compact inodes' mtime."""

    blocks: int
    inodes: int
    root_nid: int  # at most 65535
    build_time_ns: int
    uuid: bytes  # 16 bytes
    is_chunked: bool = False  # there are inodes of the layout CHUNK_BASED

    def pack(self) -> bytes:
        """Return the first block of the image."""
        log2 = BLOCK_SIZE.bit_length() - 1
        start = (_MAGIC, 0, _FEATURES, log2, 0, self.root_nid, self.inodes)
        time = divmod(self.build_time_ns, _SECOND)
        needed = bytes([_CHUNKED if self.is_chunked else 0])
        fields = _SUPERBLOCK.pack(*start, *time, self.blocks, 0, 0, self.uuid, b"", needed)
        covered = bytearray(fields.ljust(BLOCK_SIZE - _SUPER_OFFSET, b"\0"))
        covered[_CHECKSUM_OFFSET : _CHECKSUM_OFFSET + 4] = crc32c(covered).to_bytes(4, "little")
        return bytes(_SUPER_OFFSET) + covered


def crc32c(data: bytes | bytearray) -> int:
    """CRC-32C (RFC 3720, appendix B.4) as EROFS has it: without the complement at the end."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC_TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc


def _crc_step(value: int) -> int:
    for _ in range(8):
        value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
    return value


_CRC_TABLE = tuple(map(_crc_step, range(256)))


# -- inodes --------------------------------------------------------------------------------


class Inode(NamedTuple):
    """One inode, without what follows it.

    `mode` has the type bits; `mtime_ns` is ns since the epoch; `place` is the address of the first
    block, or what `device_place` says; `xattrs_size` is the length of what `pack_xattrs` returns.
    """

    nid: int
    mode: int
    uid: int
    gid: int
    links: int
    size: int
    mtime_ns: int
    layout: int
    place: int
    xattrs_size: int

    def pack(self, length: int) -> bytes:
        """Return the `length` bytes, 32 or 64, that `inode_size` asked for."""
        units = 0
        if self.xattrs_size:
            units = 1 + (self.xattrs_size - len(_XATTRS_HEADER)) // _XATTR_UNIT
        start = (self.layout << 1, units, self.mode)
        middle = (self.place, self.nid & 0xFFFFFFFF, self.uid, self.gid)
        if length == COMPACT_SIZE:
            return _COMPACT_INODE.pack(*start, self.links, self.size, 0, *middle, 0)
        start = (self.layout << 1 | _EXTENDED, units, self.mode)
        time = divmod(self.mtime_ns, _SECOND)
        return _EXTENDED_INODE.pack(*start, 0, self.size, *middle, *time, self.links, b"")


def inode_size(uid: int, gid: int, links: int, size: int, mtime_ns: int, build_time_ns: int) -> int:
    """How many bytes an inode with these takes: 32 if all are small and the time is the image's.

    Raises ValueError for what no inode has room for.
    """
    if not (0 <= uid < _NO_ID and 0 <= gid < _NO_ID):
        raise ValueError(f"owner {uid}:{gid} is not between 0 and {_NO_ID - 1}")
    if not -_END_OF_TIME_NS <= mtime_ns < _END_OF_TIME_NS:
        raise ValueError(f"modification time {mtime_ns // _SECOND} s has more than 64 bits")
    if mtime_ns == build_time_ns and max(uid, gid, links) < 1 << 16 and size < 1 << 32:
        return COMPACT_SIZE
    return EXTENDED_SIZE


def device_place(rdev: int) -> int:
    """What stands in a device's inode; `rdev` is as stat(2) has it.

    Raises ValueError for a major number above 4095 or a minor number above 2**20 - 1; below, the
    kernel's new_encode_dev spells it as the C library does.
    """
    if not 0 <= rdev < 1 << 32:
        raise ValueError(f"device number {rdev:#x} has more than 32 bits")
    return rdev


# -- extended attributes -------------------------------------------------------------------


def xattrs_size(xattrs: Mapping[bytes, bytes]) -> int:
    """How many bytes `pack_xattrs` returns.

    Raises ValueError for a name outside user, trusted, security and the POSIX ACLs, and for what
    is too long.
    """
    if not xattrs:
        return 0
    size = len(_XATTRS_HEADER)
    for name, value in xattrs.items():
        _, rest = _split_name(name)
        if len(rest) > NAME_MAX or len(value) > _MAX_XATTR_VALUE:
            raise ValueError(f"extended attribute {name!r} of {len(value)} bytes is too long")
        size += _padded(_XATTR.size + len(rest) + len(value))
    if size > _MAX_XATTRS_SIZE:
        raise ValueError(f"extended attributes of {size} bytes; at most {_MAX_XATTRS_SIZE} fit")
    return size


def pack_xattrs(xattrs: Mapping[bytes, bytes]) -> bytes:
    """Return what follows an inode with these extended attributes, in the order of their names."""
    if not xattrs:
        return b""
    packed = bytearray(_XATTRS_HEADER)
    for name, value in sorted(xattrs.items()):
        index, rest = _split_name(name)
        packed += _XATTR.pack(len(rest), index, len(value)) + rest + value
        packed += bytes(-len(packed) % _XATTR_UNIT)
    return bytes(packed)


def _split_name(name: bytes) -> tuple[int, bytes]:
    """The index of an attribute's prefix, and the rest of its name."""
    if name in _ACLS:
        return _ACLS[name], b""
    prefix, _, rest = name.partition(b".")
    if prefix not in _XATTR_PREFIXES or not rest:
        raise ValueError(f"EROFS has no room for an extended attribute {name!r}")
    return _XATTR_PREFIXES[prefix], rest


def _padded(length: int) -> int:
    return (length + _XATTR_UNIT - 1) & -_XATTR_UNIT


# -- directories ---------------------------------------------------------------------------


class Dirent(NamedTuple):
    """One name in a directory; `mode` has the type bits."""

    name: bytes
    nid: int
    mode: int


def directory_size(names: Iterable[bytes]) -> int:
    """How many bytes `pack_directory` returns for these names: sorted, "." and ".." among them.

    Raises ValueError for a name of more than 255 bytes.
    """
    full = used = 0
    for name in names:
        if len(name) > NAME_MAX:
            raise ValueError(f"name of {len(name)} bytes in it; at most {NAME_MAX} fit")
        taken = _DIRENT.size + len(name)
        if used + taken > BLOCK_SIZE:
            full, used = full + BLOCK_SIZE, 0
        used += taken
    return full + used


def pack_directory(dirents: Iterable[Dirent]) -> bytes:
    """Return the content of a directory: dirents sorted by name, with "." and ".." among them.

    In each block are the dirents, then their names; the last block ends with the last name.
    """
    packed, block, used = bytearray(), list[Dirent](), 0
    for dirent in dirents:
        taken = _DIRENT.size + len(dirent.name)
        if used + taken > BLOCK_SIZE:
            packed += _pack_block(block).ljust(BLOCK_SIZE, b"\0")
            block, used = [], 0
        block.append(dirent)
        used += taken
    return bytes(packed) + _pack_block(block)


def _pack_block(dirents: list[Dirent]) -> bytes:
    heads, at = bytearray(), len(dirents) * _DIRENT.size
    for name, nid, mode in dirents:
        heads += _DIRENT.pack(nid, at, _FILE_TYPES[stat.S_IFMT(mode)], 0)
        at += len(name)
    return bytes(heads) + b"".join(dirent.name for dirent in dirents)
