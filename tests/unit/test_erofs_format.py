"""The structures of EROFS against bytes counted by hand and those that mkfs.erofs 1.5 writes.

The constants with a comment are from images of `mkfs.erofs -T1577934245 --preserve-mtime`.
"""

from __future__ import annotations

import stat
from itertools import pairwise

import pytest

from cisfs.format.erofs import (
    FLAT_INLINE,
    FLAT_PLAIN,
    NO_BLOCKS,
    Dirent,
    Inode,
    Superblock,
    crc32c,
    device_place,
    directory_size,
    inode_size,
    pack_directory,
    pack_xattrs,
    whole_blocks,
    whole_slots,
    xattrs_size,
)

BUILD_TIME = 1_577_934_245
UUID = bytes.fromhex("00112233445566778899aabbccddeeff")
SECOND = 10**9
NO_XATTRS: dict[bytes, bytes] = {}


def inode(**fields: int) -> Inode:
    """A regular file of root's, but for what is given."""
    blank = {
        "nid": 0,
        "mode": stat.S_IFREG | 0o644,
        "uid": 0,
        "gid": 0,
        "links": 1,
        "size": 0,
        "mtime_ns": BUILD_TIME * SECOND,
        "layout": FLAT_PLAIN,
        "place": 0,
        "xattrs_size": 0,
    }
    return Inode(**blank | fields)


# -- the superblock ------------------------------------------------------------------------

# mkfs.erofs, of an image of 3 blocks, but for the checksum, which covers what follows it there
SUPERBLOCK = bytes.fromhex(
    "e2e1f5e0 00000000 03000000 0c002400 0a000000 00000000 a55d0d5e 00000000"
    "00000000 03000000 00000000 00000000 00112233 44556677 8899aabb ccddeeff"
)


def test_the_superblock_is_mkfs_erofss() -> None:
    block = Superblock(3, 10, 36, BUILD_TIME * SECOND, UUID).pack()
    assert len(block) == 4096
    assert not any(block[:1024])
    assert block[1024:1028] + bytes(4) + block[1032:1088] == SUPERBLOCK
    assert not any(block[1088:])


def test_the_superblocks_checksum_covers_the_rest_of_the_block() -> None:
    block = Superblock(3, 10, 36, BUILD_TIME * SECOND, UUID).pack()
    covered = block[1024:1028] + bytes(4) + block[1032:]
    assert block[1028:1032] == crc32c(covered).to_bytes(4, "little")


@pytest.mark.parametrize(
    ("data", "crc"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),  # the check value of every catalogue of CRCs
        # RFC 3720, appendix B.4
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_crc32c_is_that_of_the_rfc_without_the_complement(data: bytes, crc: int) -> None:
    assert crc32c(data) == crc ^ 0xFFFFFFFF


@pytest.mark.parametrize(
    ("time_ns", "packed"),
    [
        (0, bytes(12)),
        (1, bytes(8) + b"\1\0\0\0"),
        (-1, b"\xff" * 8 + (10**9 - 1).to_bytes(4, "little")),
        (5 * SECOND + 7, b"\5\0\0\0\0\0\0\0\7\0\0\0"),
    ],
)
def test_times_count_from_the_second_before_them(time_ns: int, packed: bytes) -> None:
    assert Superblock(1, 1, 128, time_ns, UUID).pack()[1048:1060] == packed
    assert inode(mtime_ns=time_ns).pack(64)[32:44] == packed


# -- inodes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("made", "packed"),
    [
        (  # mkfs.erofs: 5 bytes of content and an xattr of 8
            inode(nid=5, size=5, layout=FLAT_INLINE, place=NO_BLOCKS, xattrs_size=20),
            "04000300 a4810100 05000000 00000000 ffffffff 05000000 00000000 00000000",
        ),
        (  # mkfs.erofs: nothing
            inode(nid=4),
            "00000000 a4810100 00000000 00000000 00000000 04000000 00000000 00000000",
        ),
        (  # mkfs.erofs: 5000 bytes and an ACL
            inode(
                nid=8, mode=0o100664, size=5000, layout=FLAT_INLINE, place=2, xattrs_size=12 + 48
            ),
            "04000d00 b4810100 88130000 00000000 02000000 08000000 00000000 00000000",
        ),
        (  # mkfs.erofs: a symlink of 6 bytes
            inode(nid=6, mode=0o120777, size=6, layout=FLAT_INLINE, place=NO_BLOCKS),
            "04000000 ffa10100 06000000 00000000 ffffffff 06000000 00000000 00000000",
        ),
        (  # mkfs.erofs: a directory
            inode(nid=0, mode=0o040755, links=3, size=155, layout=FLAT_INLINE, place=NO_BLOCKS),
            "04000000 ed410300 9b000000 00000000 ffffffff 00000000 00000000 00000000",
        ),
        (  # mkfs.erofs: the character device 4000:500000
            inode(nid=3, mode=0o020644, place=0x7A1FA020),
            "00000000 a4210100 00000000 00000000 20a01f7a 03000000 00000000 00000000",
        ),
        (
            inode(uid=0xFFFF, gid=0xFFFE, links=0xFFFD, size=0xFFFFFFFC, nid=0x1_23456789),
            "00000000 a481fdff fcffffff 00000000 00000000 89674523 fffffeff 00000000",
        ),
    ],
)
def test_compact_inodes(made: Inode, packed: str) -> None:
    assert made.pack(32) == bytes.fromhex(packed)


@pytest.mark.parametrize(
    ("made", "packed"),
    [
        (  # mkfs.erofs: 4096 bytes of 70000:80000
            inode(nid=2, uid=70000, gid=80000, size=4096, place=1),
            "01000000 a4810000 00100000 00000000 01000000 02000000 70110100 80380100"
            "a55d0d5e 00000000 00000000 01000000 00000000 00000000 00000000 00000000",
        ),
        (
            inode(
                nid=0x1_00000001,
                mode=0o047777,
                uid=0xFFFFFFFE,
                gid=0xFFFFFFFD,
                links=0x10000,
                size=0x1_00000002,
                mtime_ns=-SECOND + 3,
                layout=FLAT_INLINE,
                place=4,
                xattrs_size=12,
            ),
            "05000100 ff4f0000 02000000 01000000 04000000 01000000 feffffff fdffffff"
            "ffffffff ffffffff 03000000 00000100 00000000 00000000 00000000 00000000",
        ),
    ],
)
def test_extended_inodes(made: Inode, packed: str) -> None:
    assert made.pack(64) == bytes.fromhex(packed)


@pytest.mark.parametrize(
    ("uid", "gid", "links", "size", "mtime_ns", "length"),
    [
        (0, 0, 1, 0, 7, 32),
        (0xFFFF, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 7, 32),
        (0x10000, 0, 1, 0, 7, 64),
        (0, 0x10000, 1, 0, 7, 64),
        (0, 0, 0x10000, 0, 7, 64),
        (0, 0, 1, 0x1_00000000, 7, 64),
        (0, 0, 1, 0, 8, 64),
        (0, 0, 1, 0, 6, 64),
        (0xFFFFFFFE, 0xFFFFFFFE, 1, 0, 7, 64),
        (0, 0, 1, 0, 2**63 * SECOND - 1, 64),
        (0, 0, 1, 0, -(2**63) * SECOND, 64),
    ],
)
def test_inodes_are_compact_if_all_fits(
    uid: int, gid: int, links: int, size: int, mtime_ns: int, length: int
) -> None:
    assert inode_size(uid, gid, links, size, mtime_ns, build_time_ns=7) == length
    fields = inode(uid=uid, gid=gid, links=links, size=size, mtime_ns=mtime_ns)
    assert len(fields.pack(length)) == length


@pytest.mark.parametrize("build_time_ns", [7, 2**63 * SECOND, -(2**63) * SECOND - 1])
@pytest.mark.parametrize(
    ("uid", "gid", "mtime_ns", "words"),
    [
        (0xFFFFFFFF, 0, 7, "owner 4294967295:0 is not between 0 and 4294967294"),
        (0, 0xFFFFFFFF, 7, "owner 0:4294967295 is not"),
        (-1, 0, 7, "owner -1:0 is not"),
        (0, -1, 7, "owner 0:-1 is not"),
        (0, 0, 2**63 * SECOND, "modification time 9223372036854775808 s has more than 64 bits"),
        (0, 0, -(2**63) * SECOND - 1, "modification time -9223372036854775809 s has more"),
    ],
)
def test_what_no_inode_has_room_for_is_refused(
    uid: int, gid: int, mtime_ns: int, build_time_ns: int, words: str
) -> None:
    with pytest.raises(ValueError, match=words):
        inode_size(uid, gid, 1, 0, mtime_ns, build_time_ns)


def test_device_numbers_are_spelled_as_the_kernel_does() -> None:
    """new_encode_dev: 8 bits of the minor number, 12 of the major, 12 more of the minor."""
    for major, minor in [(0, 0), (8, 1), (4000, 500000), (4095, (1 << 20) - 1), (1, 256), (256, 0)]:
        encoded = minor & 0xFF | major << 8 | (minor & ~0xFF) << 12
        assert device_place(makedev(major, minor)) == encoded
    for major, minor in [(4096, 0), (0, 1 << 20)]:
        with pytest.raises(ValueError, match=r"^device number 0x.* has more than 32 bits"):
            device_place(makedev(major, minor))
    with pytest.raises(ValueError, match=r"^device number -0x1 has more than 32 bits"):
        device_place(-1)


def makedev(major: int, minor: int) -> int:
    """makedev(3) as glibc and musl have it."""
    low = minor & 0xFF | (major & 0xFFF) << 8
    return low | (minor & ~0xFF) << 12 | (major & ~0xFFF) << 32


# -- extended attributes -------------------------------------------------------------------

# mkfs.erofs: what setfacl -m u:65534:rw and setfacl -d -m u:65534:rwx make
ACL = bytes.fromhex(
    "02000000 01000600 ffffffff 02000600 feff0000 04000400 ffffffff 10000600 ffffffff"
    "20000400 ffffffff"
)
DEFAULT_ACL = bytes.fromhex(
    "02000000 01000700 ffffffff 02000700 feff0000 04000500 ffffffff 10000700 ffffffff"
    "20000500 ffffffff"
)
HEADER = bytes(12)


@pytest.mark.parametrize(
    ("xattrs", "packed"),
    [
        (NO_XATTRS, b""),
        # mkfs.erofs, each of these:
        ({b"user.x": b"abc"}, HEADER + bytes.fromhex("01010300 78616263")),
        (
            {b"trusted.overlay.opaque": b"y"},
            HEADER + bytes.fromhex("0e040100 6f766572 6c61792e 6f706171 75657900"),
        ),
        ({b"system.posix_acl_access": ACL}, HEADER + b"\0\2\x2c\0" + ACL),
        ({b"system.posix_acl_default": DEFAULT_ACL}, HEADER + b"\0\3\x2c\0" + DEFAULT_ACL),
        # by hand:
        ({b"user.x": b""}, HEADER + b"\1\1\0\0x\0\0\0"),
        ({b"user.xyz": b"1234"}, HEADER + b"\3\1\4\0xyz1234\0"),
        ({b"user.xyz": b"12345"}, HEADER + b"\3\1\5\0xyz12345"),
        ({b"security.a.b": b"\0"}, HEADER + b"\3\6\1\0a.b\0"),
        (
            {b"user.b": b"2", b"user.a": b"1", b"security.c": b"3"},
            HEADER + b"\1\6\1\0c3\0\0" + b"\1\1\1\0a1\0\0" + b"\1\1\1\0b2\0\0",
        ),
    ],
)
def test_xattrs(xattrs: dict[bytes, bytes], packed: bytes) -> None:
    assert pack_xattrs(xattrs) == packed
    assert xattrs_size(xattrs) == len(packed)


def test_the_largest_xattrs_fit() -> None:
    largest = {b"user." + b"n" * 255: bytes(65535)}
    assert xattrs_size(largest) == len(pack_xattrs(largest)) == 12 + 65796
    full = {b"user.0": bytes(65531), b"user.1": bytes(65531), b"user.2": bytes(65531)}
    full[b"user.3"] = bytes(65523)
    assert xattrs_size(full) == len(pack_xattrs(full)) == 12 + 4 * 65534


@pytest.mark.parametrize(
    ("xattrs", "words"),
    [
        ({b"user." + b"n" * 256: b""}, "is too long"),
        ({b"user.x": bytes(65536)}, "b'user.x' of 65536 bytes is too long"),
        (
            {b"user.0": bytes(65531), b"user.1": bytes(65531), b"user.2": bytes(65531)}
            | {b"user.3": bytes(65524)},
            "extended attributes of 262152 bytes; at most 262148 fit",
        ),
        ({b"system.nfs4_acl": b""}, "EROFS has no room for an extended attribute b'system.nfs4_"),
        ({b"btrfs.compression": b""}, "EROFS has no room for"),
        ({b"user": b""}, "EROFS has no room for"),
        ({b"user.": b""}, "EROFS has no room for"),
        ({b"": b""}, "EROFS has no room for"),
    ],
)
def test_xattrs_that_do_not_fit_are_refused(xattrs: dict[bytes, bytes], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        xattrs_size(xattrs)


# -- directories ---------------------------------------------------------------------------

# mkfs.erofs
NAMES = [
    (b".", 36, stat.S_IFDIR),
    (b"..", 36, stat.S_IFDIR),
    (b"a", 42, stat.S_IFDIR),
    (b"block", 47, stat.S_IFREG),
    (b"c", 49, stat.S_IFCHR),
    (b"empty", 50, stat.S_IFREG),
    (b"f", 51, stat.S_IFREG),
    (b"l", 53, stat.S_IFLNK),
    (b"p", 55, stat.S_IFIFO),
    (b"tail", 56, stat.S_IFREG),
    (b"w", 88, stat.S_IFCHR),
]
DIRECTORY = bytes.fromhex(
    "24000000 00000000 84000200 24000000 00000000 85000200 2a000000 00000000 87000200"
    "2f000000 00000000 88000100 31000000 00000000 8d000300 32000000 00000000 8e000100"
    "33000000 00000000 93000100 35000000 00000000 94000700 37000000 00000000 95000500"
    "38000000 00000000 96000100 58000000 00000000 9a000300"
    "2e2e2e61626c6f636b63656d707479666c707461696c77"
)


def dirents(names: list[bytes]) -> list[Dirent]:
    return [Dirent(name, 1, stat.S_IFDIR) for name in names]


def test_a_directory_is_mkfs_erofss() -> None:
    made = [Dirent(name, nid, mode | 0o7777) for name, nid, mode in NAMES]
    assert pack_directory(made) == DIRECTORY
    assert directory_size(name for name, _, _ in NAMES) == len(DIRECTORY) == 155


def test_file_types() -> None:
    kinds = [stat.S_IFBLK, stat.S_IFSOCK]
    packed = pack_directory([Dirent(b"%d" % kind, kind, kind) for kind in kinds])
    assert (packed[10], packed[22]) == (4, 6)


def test_nids_have_64_bits() -> None:
    assert pack_directory([Dirent(b"a", 2**64 - 2, stat.S_IFREG)])[:8] == b"\xfe" + b"\xff" * 7


@pytest.mark.parametrize(
    ("lengths", "size"),
    [
        ([244] * 16, 4096),  # (12 + 244) * 16
        ([244] * 15 + [243], 4095),
        ([244] * 15 + [245], 4096 + 257),  # the last name begins another block
        ([244] * 17, 4096 + 256),
        ([255] * 16, 4096 + 267),  # 15 * 267 = 4005 of the first block are used
        ([255] * 30, 4096 + 4005),
        ([255] * 31, 2 * 4096 + 267),
    ],
)
def test_a_name_is_not_cut_at_the_end_of_a_block(lengths: list[int], size: int) -> None:
    names = [b"%03d" % number + b"n" * (length - 3) for number, length in enumerate(lengths)]
    packed = pack_directory(dirents(names))
    assert directory_size(names) == len(packed) == size
    found = []
    for at in range(0, size, 4096):
        block = packed[at : at + 4096]
        count = int.from_bytes(block[8:10], "little") // 12
        starts = [int.from_bytes(block[12 * n + 8 : 12 * n + 10], "little") for n in range(count)]
        found += [block[one:two].rstrip(b"\0") for one, two in pairwise([*starts, len(block)])]
    assert found == names


def test_a_name_too_long_is_refused() -> None:
    assert directory_size([b"n" * 255]) == 267
    with pytest.raises(ValueError, match="name of 256 bytes in it; at most 255 fit"):
        directory_size([b".", b"n" * 256])


@pytest.mark.parametrize(
    ("length", "blocks", "slots"),
    [
        (0, 0, 0),
        (1, 4096, 32),
        (32, 4096, 32),
        (33, 4096, 64),
        (4096, 4096, 4096),
        (4097, 8192, 4128),
    ],
)
def test_lengths_are_rounded_up(length: int, blocks: int, slots: int) -> None:
    assert (whole_blocks(length), whole_slots(length)) == (blocks, slots)
