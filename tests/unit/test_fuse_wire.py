"""The FUSE protocol as bytes, against the layout of the kernel's own include/uapi/linux/fuse.h."""

from __future__ import annotations

import stat
import struct

import pytest

from cisfs.mount import wire
from cisfs.mount.wire import Attr

FILE = Attr(1, stat.S_IFREG | 0o400, 4096 * 3 + 1, 1_700_000_000, uid=7, gid=8)


def request(opcode: int, body: bytes = b"", *, unique: int = 5, node: int = 1) -> bytes:
    """A request as the kernel writes it: struct fuse_in_header, then the opcode's own."""
    return struct.pack("=IIQQIIIHH", 40 + len(body), opcode, unique, node, 0, 0, 99, 0, 0) + body


def init(major: int, minor: int, *, read_ahead: int = 131_072, flags: int = 0xFFFFFFFF) -> bytes:
    return request(wire.INIT, struct.pack("=IIII44x", major, minor, read_ahead, flags))


def test_the_structures_have_the_kernels_sizes() -> None:
    assert len(FILE.pack()) == 88
    assert len(wire.attr_reply(FILE)) == 104
    assert len(wire.entry_reply(FILE)) == 128
    assert len(wire.open_reply(0)) == 16
    assert len(wire.statfs_reply(1)) == 80
    assert len(wire.init_reply(init(7, 31), background=64) or b"") == 64
    assert len(wire.reply_header(1, 0)) == 16
    assert wire.IN_HEADER_SIZE == 40


def test_a_request_is_told_by_its_header() -> None:
    data = request(wire.LOOKUP, b"image.erofs\0", unique=1 << 63 | 42, node=9)
    assert wire.parse_request(data) == (wire.LOOKUP, 1 << 63 | 42, 9)
    assert wire.parse_request(bytearray(data) + bytes(100)).node == 9
    assert wire.parse_name(bytearray(data).ljust(8192, b"x"), len(data)) == b"image.erofs"


def test_a_read_is_told_by_its_body() -> None:
    body = struct.pack("=QQIIQII", 77, 1 << 40, 1 << 20, 0, 0, 0, 0)
    assert wire.parse_read(request(wire.READ, body)) == (1 << 40, 1 << 20)


def test_a_write_is_told_by_its_body_and_brings_its_data() -> None:
    body = struct.pack("=QQIIQII", 77, 1 << 40, 5, 0, 0, 0, 0)
    data = request(wire.WRITE, body + b"bytes")
    assert len(data) == 40 + 40 + 5
    buffer = memoryview(bytearray(data) + b"more")
    offset, written = wire.parse_write(buffer)
    assert offset == 1 << 40
    assert bytes(written) == b"bytes"
    assert written.obj is buffer.obj  # not a copy
    assert struct.unpack("=II", wire.write_reply(5)) == (5, 0)


def test_a_buffer_for_writes_holds_the_largest() -> None:
    """Or the kernel refuses to fill it (fs/fuse/dev.c, fuse_dev_do_read)."""
    reply = wire.init_reply(init(7, 45), background=64, max_write=wire.MAX_WRITE)
    assert reply is not None
    (max_write,) = struct.unpack_from("=I", reply, 20)
    assert max_write == 1 << 20
    assert 40 + 40 + max_write <= wire.WRITE_BUFFER


def test_a_change_of_space_is_told_by_its_body() -> None:
    body = struct.pack("=QQQII", 77, 4096, 1 << 33, 3, 0)
    asked = wire.parse_fallocate(request(wire.FALLOCATE, body))
    assert asked == (4096, 1 << 33, wire.FALLOC_PUNCH_HOLE | wire.FALLOC_KEEP_SIZE)


def test_attributes_lie_where_the_kernel_looks_for_them() -> None:
    ino, size, blocks, atime, mtime, ctime = struct.unpack_from("=6Q", FILE.pack())
    assert (ino, size, blocks) == (1, 12_289, 25)
    assert (atime, mtime, ctime) == (1_700_000_000,) * 3
    nanoseconds, rest = FILE.pack()[48:60], struct.unpack_from("=7I", FILE.pack(), 60)
    assert nanoseconds == bytes(12)
    assert rest == (stat.S_IFREG | 0o400, 1, 7, 8, 0, 4096, 0)
    assert wire.attr_reply(FILE)[16:] == FILE.pack()
    assert wire.entry_reply(FILE)[40:] == FILE.pack()
    assert struct.unpack_from("=QQ", wire.entry_reply(FILE)) == (1, 0)


def test_what_never_changes_may_be_kept_for_long() -> None:
    (attributes,) = struct.unpack_from("=Q", wire.attr_reply(FILE))
    names, entry = struct.unpack_from("=QQ", wire.entry_reply(FILE), 16)
    assert min(attributes, names, entry) >= 86_400


def test_a_full_file_system() -> None:
    blocks, free, available, files = struct.unpack_from("=QQQQ", wire.statfs_reply(4096 * 3 + 1))
    assert (blocks, free, available, files) == (4, 0, 0, 1)
    assert struct.unpack_from("=II", wire.statfs_reply(1), 40) == (4096, 255)


# ---- the first words


def agreed(data: bytes) -> tuple[int, ...]:
    reply = wire.init_reply(data, background=64)
    assert reply is not None
    return struct.unpack_from("=IIIIHHIIHH", reply)


@pytest.mark.parametrize("minor", [31, 36, 45, 1000])
def test_the_versions_that_are_spoken(minor: int) -> None:
    """The kernel speaks down to the minor version that it is answered with."""
    assert agreed(init(7, minor))[:2] == (7, 31)


@pytest.mark.parametrize(("major", "minor"), [(7, 30), (7, 0), (6, 99), (8, 0)])
def test_the_versions_that_are_not(major: int, minor: int) -> None:
    assert wire.init_reply(init(major, minor), background=64) is None


def test_only_what_is_offered_is_taken() -> None:
    assert agreed(init(7, 45, flags=0))[3] == 0
    assert agreed(init(7, 45, flags=wire.MAX_PAGES))[3] == wire.MAX_PAGES
    everything = agreed(init(7, 45))[3]
    assert everything & wire.MAX_PAGES
    assert everything & wire.ASYNC_READ
    assert not everything & ~(
        wire.ASYNC_READ | wire.ASYNC_DIO | wire.PARALLEL_DIROPS | wire.MAX_PAGES | wire.BIG_WRITES
    )


def test_requests_of_a_mib() -> None:
    _, _, read_ahead, _, background, congestion, max_write, _, max_pages, _ = agreed(init(7, 45))
    assert read_ahead == max_pages * 4096 == 1 << 20
    assert 0 < congestion < background == 64
    assert max_write <= wire.REQUEST_BUFFER - 80  # or the kernel refuses to fill the buffer
    assert agreed(init(7, 45, read_ahead=1 << 22))[2] == 1 << 22


# ---- replies


def test_a_replys_header_counts_itself() -> None:
    assert struct.unpack("=IiQ", wire.reply_header(1 << 63 | 9, 100)) == (116, 0, 1 << 63 | 9)
    assert struct.unpack("=IiQ", wire.error_reply(9, 5)) == (16, -5, 9)


def test_the_notification_that_requests_be_sent_again() -> None:
    assert struct.unpack("=IiQ", wire.NOTIFY_RESEND) == (16, 7, 0)


@pytest.mark.parametrize("length", range(1, 18))
def test_entries_of_a_directory_are_aligned(length: int) -> None:
    name = b"n" * length
    entry = wire.dirent(2, 8, name, 1)
    assert struct.unpack_from("=QQII", entry) == (2, 1, length, 8)
    assert entry[24 : 24 + length] == name
    assert len(entry) % 8 == 0
    assert len(entry) - 24 - length < 8
    assert not any(entry[24 + length :])
