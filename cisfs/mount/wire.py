"""The FUSE kernel protocol, version 7.31 and later: requests and replies as bytes.

Only what serving a single file takes, to read or to write.  Facts from the kernel's own description
of the interface, include/uapi/linux/fuse.h.  Knows no descriptors and no files.  Pure functions;
safe anywhere.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NamedTuple

Bytes = bytes | bytearray | memoryview

MAJOR = 7
MINOR = 31  # the first with everything that is used here; the kernel speaks down to it
ROOT_NODE = 1

# Opcodes.
LOOKUP = 1
FORGET = 2
GETATTR = 3
OPEN = 14
READ = 15
WRITE = 16
STATFS = 17
RELEASE = 18
FSYNC = 20
FLUSH = 25
INIT = 26
OPENDIR = 27
READDIR = 28
RELEASEDIR = 29
INTERRUPT = 36
DESTROY = 38
BATCH_FORGET = 42
FALLOCATE = 43

# Flags of INIT: what the kernel offers, and this side takes.
ASYNC_READ = 1 << 0
BIG_WRITES = 1 << 5
ASYNC_DIO = 1 << 15
PARALLEL_DIROPS = 1 << 18
MAX_PAGES = 1 << 22
_WANTED = ASYNC_READ | ASYNC_DIO | PARALLEL_DIROPS | MAX_PAGES | BIG_WRITES

# Flags of a reply to OPEN and OPENDIR.
FOPEN_DIRECT_IO = 1 << 0
FOPEN_KEEP_CACHE = 1 << 1
FOPEN_CACHE_DIR = 1 << 3
FOPEN_NOFLUSH = 1 << 5
FOPEN_PARALLEL_DIRECT_WRITES = 1 << 6

# Modes of FALLOCATE, linux/falloc.h.
FALLOC_KEEP_SIZE = 1
FALLOC_PUNCH_HOLE = 2
FALLOC_ZERO_RANGE = 16

# FUSE_NOTIFY_RESEND, Linux 6.9: a reply to no request, whose error field holds the code.
NOTIFY_RESEND = struct.pack("<IiQ", 16, 7, 0)

MAX_READ = 1 << 20  # bytes in one READ: 256 pages of 4 KiB, the most without further agreement
# The kernel refuses to fill a smaller buffer (FUSE_MIN_READ_BUFFER).
REQUEST_BUFFER = 8192
MAX_WRITE = 1 << 20  # bytes in one WRITE

_IN_HEADER = struct.Struct("=IIQQIIIHH")
_OUT_HEADER = struct.Struct("=IiQ")
_INIT_IN = struct.Struct("=IIII")
_INIT_OUT = struct.Struct("=IIIIHHIIHHI28x")
_READ_IN = struct.Struct("=QQI")
_WRITE_IN = struct.Struct("=QQIIQII")
_WRITE_OUT = struct.Struct("=II")
_FALLOCATE_IN = struct.Struct("=QQQII")
_ATTR = struct.Struct("=QQQQQQIIIIIIIIII")
_ATTR_OUT = struct.Struct("=QII")
_ENTRY_OUT = struct.Struct("=QQQQII")
_OPEN_OUT = struct.Struct("=QIi")
_STATFS_OUT = struct.Struct("=QQQQQIIII24x")
_DIRENT = struct.Struct("=QQII")

IN_HEADER_SIZE = _IN_HEADER.size
_WRITE_DATA = IN_HEADER_SIZE + _WRITE_IN.size
# The kernel fills no smaller buffer than the largest WRITE takes.
WRITE_BUFFER = _WRITE_DATA + MAX_WRITE
_A_YEAR = 365 * 86_400  # seconds for which the kernel may keep what never changes
_BLOCK = 4096


class Request(NamedTuple):
    """The header of a request: what is asked (an opcode), about which node, and its number."""

    opcode: int
    unique: int
    node: int


class ReadRequest(NamedTuple):
    """The body of READ and READDIR: bytes asked for at an offset."""

    offset: int
    size: int


class WriteRequest(NamedTuple):
    """The body of WRITE: `data` is a part of the request's buffer."""

    offset: int
    data: memoryview


class FallocateRequest(NamedTuple):
    """The body of FALLOCATE: bytes at an offset, and a mode of flags FALLOC_..."""

    offset: int
    size: int
    mode: int


@dataclass(frozen=True, slots=True)
class Attr:
    """What stat(2) of a node says; `mtime` in seconds stands for all three times."""

    node: int
    mode: int
    size: int
    mtime: int
    links: int = 1
    uid: int = 0
    gid: int = 0

    def pack(self) -> bytes:
        """Return the 88 bytes of struct fuse_attr."""
        sectors = -(-self.size // 512)
        return _ATTR.pack(
            *(self.node, self.size, sectors),
            *(self.mtime, self.mtime, self.mtime, 0, 0, 0),
            *(self.mode, self.links, self.uid, self.gid, 0, _BLOCK, 0),
        )


def parse_request(data: Bytes) -> Request:
    """Read the header at the start of a request."""
    _, opcode, unique, node, _, _, _, _, _ = _IN_HEADER.unpack_from(data)
    return Request(opcode, unique, node)


def parse_read(data: Bytes) -> ReadRequest:
    """Read the body of a READ or READDIR request."""
    _, offset, size = _READ_IN.unpack_from(data, IN_HEADER_SIZE)
    return ReadRequest(offset, size)


def parse_write(data: memoryview) -> WriteRequest:
    """Read the body of a WRITE request."""
    _, offset, size, _, _, _, _ = _WRITE_IN.unpack_from(data, IN_HEADER_SIZE)
    return WriteRequest(offset, data[_WRITE_DATA : _WRITE_DATA + size])


def parse_fallocate(data: Bytes) -> FallocateRequest:
    """Read the body of a FALLOCATE request."""
    _, offset, size, mode, _ = _FALLOCATE_IN.unpack_from(data, IN_HEADER_SIZE)
    return FallocateRequest(offset, size, mode)


def parse_name(data: Bytes, length: int) -> bytes:
    """Read the name in a LOOKUP request of `length` bytes."""
    return bytes(data[IN_HEADER_SIZE : length - 1])


def init_reply(data: Bytes, *, background: int, max_write: int = _BLOCK) -> bytes | None:
    """Return the body that answers INIT, or None if the kernel is too old to talk to.

    `background` is how many requests may be under way that nobody waits for, such as read-ahead;
    `max_write` is the most bytes that one WRITE may bring.
    """
    major, minor, read_ahead, offered = _INIT_IN.unpack_from(data, IN_HEADER_SIZE)
    if major != MAJOR or minor < MINOR:
        return None
    return _INIT_OUT.pack(
        *(MAJOR, MINOR, max(read_ahead, MAX_READ), offered & _WANTED),
        *(background, background * 3 // 4),
        *(max_write, 1, MAX_READ // _BLOCK, 0, 0),
    )


def attr_reply(attr: Attr) -> bytes:
    """Return the body that answers GETATTR."""
    return _ATTR_OUT.pack(_A_YEAR, 0, 0) + attr.pack()


def entry_reply(attr: Attr) -> bytes:
    """Return the body that answers LOOKUP."""
    return _ENTRY_OUT.pack(attr.node, 0, _A_YEAR, _A_YEAR, 0, 0) + attr.pack()


def open_reply(flags: int) -> bytes:
    """Return the body that answers OPEN and OPENDIR; no handle is ever needed."""
    return _OPEN_OUT.pack(0, flags, 0)


def write_reply(size: int) -> bytes:
    """Return the body that answers WRITE: so many bytes were written."""
    return _WRITE_OUT.pack(size, 0)


def statfs_reply(size: int) -> bytes:
    """Return the body that answers STATFS for a full file system of `size` bytes."""
    blocks = -(-size // _BLOCK)
    return _STATFS_OUT.pack(blocks, 0, 0, 1, 0, _BLOCK, 255, _BLOCK, 0)


def dirent(node: int, kind: int, name: bytes, following: int) -> bytes:
    """Return one entry of a READDIR reply; `following` is the offset to go on at."""
    padding = -len(name) % 8
    return _DIRENT.pack(node, following, len(name), kind) + name + bytes(padding)


def reply_header(unique: int, length: int) -> bytes:
    """Return the header of a reply whose body has `length` bytes."""
    return _OUT_HEADER.pack(_OUT_HEADER.size + length, 0, unique)


def error_reply(unique: int, number: int) -> bytes:
    """Return the whole reply that fails a request with an errno."""
    return _OUT_HEADER.pack(_OUT_HEADER.size, -number, unique)
