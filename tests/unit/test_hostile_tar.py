"""Tars that are broken, or made to break something: each is refused, in one line that names it."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import random
import subprocess
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from cisfs.build.tar import Limits, index_tar
from cisfs.errors import CisfsError, FormatError, UsageError
from tests.unit import tars
from tests.unit.tars import directory, file, gnu_long, header, link, pax, tar

MIB = 1 << 20


def refusal(data: bytes, scratch: Path, kind: type[CisfsError], **limits: int) -> str:
    """What is said of a tar that must be refused as `kind`."""
    with pytest.raises(kind) as caught:
        tars.index(data, scratch, **limits)
    assert type(caught.value) is kind
    said = str(caught.value)
    assert said.startswith("it: ")
    assert said.isprintable()
    assert len(said) < 700
    return said


# ---- well-formed, but not for a layer

LINK_OUT = link(b"l", b"/etc", b"2")
MEMBERS: dict[str, tuple[bytes, str]] = {
    "dot-dot": (file(b"../f"), "'../f': a path leads out"),
    "dot-dot inside": (file(b"a/../../f"), "'a/../../f': a path leads out"),
    "dot-dot that stays inside": (file(b"a/b/../f"), "'a/b/../f': a path leads out"),
    "dot-dot at the end": (directory(b"a/.."), "'a/..': a path leads out"),
    "absolute": (file(b"/etc/passwd"), "'/etc/passwd': a path leads out"),
    "absolute when stripped": (file(b".//etc/passwd"), "'.//etc/passwd': a path leads out"),
    "absolute when stripped twice": (file(b"././/f"), "'././/f': a path leads out"),
    "absolute in pax": (pax([(b"path", b"/f")]) + file(b"f"), "'/f': a path leads out"),
    "absolute prefix": (file(b"f", prefix=b"/tmp"), "'/tmp/f': a path leads out"),
    "no name": (file(b""), "'': a path is empty"),
    "only a slash": (directory(b"/"), "'/': a path leads out"),
    "zero byte": (pax([(b"path", b"a\0b")]) + file(b"f"), r"'a\\x00b': a path is too long, or"),
    "long name": (gnu_long(b"n" * 256, b"L") + file(b"f"), "a name is too long"),
    "long name of a directory": (gnu_long(b"n" * 256 + b"/f", b"L") + file(b"f"), "too long"),
    "long path": (gnu_long(b"d/" * 2047 + b"ff", b"L") + file(b"f"), "a path is too long"),
    "long target": (gnu_long(b"t" * 4096, b"K") + link(b"l", b"", b"2"), "'l': the target"),
    "empty target": (link(b"l", b"", b"2"), "'l': the target of a symlink is empty"),
    "zero byte in target": (
        pax([(b"linkpath", b"a\0b")]) + link(b"l", b"t", b"2"),
        "'l': the target of a symlink",
    ),
    "root is a file": (file(b"./"[:1]), "'.': the root of a layer is a directory"),
    "root is a symlink": (link(b".", b"/", b"2"), "'.': the root of a layer is a directory"),
    "through a symlink": (LINK_OUT + file(b"l/passwd"), "'l/passwd': leads through 'l'"),
    "through a symlink, deeper": (LINK_OUT + file(b"./l/d/f"), r"'./l/d/f': leads through 'l'"),
    "through a symlink again": (LINK_OUT + directory(b"d") + link(b"d/l", b"..", b"2")
        + file(b"d/l/f"), "'d/l/f': leads through 'l'"),
    "through a file": (file(b"f") + file(b"f/g"), "'f/g': leads through 'f'"),
    "hard link out": (link(b"h", b"../f"), "'h': a path leads out"),
    "absolute hard link": (link(b"h", b"/etc/shadow"), "'h': a path leads out"),
    "hard link to nothing": (link(b"h", b"missing"), "'h': a hard link to 'missing'"),
    "hard link to itself": (link(b"h", b"h"), "'h': a hard link to 'h'"),
    "hard link to what comes later": (link(b"h", b"f") + file(b"f"), "'h': a hard link to 'f'"),
    "hard link to a directory": (directory(b"d") + link(b"h", b"d"), "'h': a hard link to 'd'"),
    "hard link to the root": (link(b"h", b"."), "'h': a hard link to '.'"),
    "hard link without target": (link(b"h", b""), "'h': a path is empty"),
    "hard link through a symlink": (LINK_OUT + link(b"h", b"l/shadow"), "'h': a hard link to"),
    "hard link through a file": (file(b"f") + link(b"h", b"f/g"), "'h': a hard link to 'f/g'"),
    "character device": (header(b"mem", b"3", device=(1, 1)), "'mem': a device node: allow"),
    "block device": (header(b"sda", b"4", device=(8, 0)), "'sda': a device node: allow"),
    "block device 0:0": (header(b"b", b"4"), "'b': a device node: allow"),
    "no such device": (header(b"c", b"3", device=(1 << 12, 0)), "'c': there is no device 4096:0"),
    "no such minor": (header(b"c", b"3", device=(1, 1 << 20)), "'c': there is no device 1:1048576"),
    "negative device": (header(b"c", b"3", device=(-1, 0)), "'c': there is no device -1:0"),
    "owner beyond 32 bits": (file(b"f", uid=1 << 32), "'f': 4294967296 is no owner"),
    "the owner that is none": (file(b"f", uid=(1 << 32) - 1), "'f': 4294967295 is no owner"),
    "negative group": (file(b"f", gid=-1), "'f': -1 is no owner or group"),
    "time out of range": (file(b"f", mtime=1 << 40), "'f': its time of modification"),
    "pax time out of range": (
        pax([(b"mtime", b"99999999999999999999")]) + file(b"f"),
        "'f': its time of modification",
    ),
    "continued on another volume": (file(b"f", kind=b"M"), "'f': a member of the unknown type 'M'"),
    "unknown type": (file(b"f", kind=b"\xff"), r"'f': a member of the unknown type '\\udcff'"),
}  # fmt: skip


@pytest.mark.parametrize("what", MEMBERS)
def test_members_that_are_refused(tmp_path: Path, what: str) -> None:
    hostile, words = MEMBERS[what]
    said = refusal(tar(file(b"innocent"), hostile, file(b"after")), tmp_path, UsageError)
    assert words.replace("\\\\", "\\") in said


def test_names_cannot_forge_lines(tmp_path: Path) -> None:
    hostile = pax([(b"path", b"../a\ncisfs: sealed\x1b[2J\xff")]) + file(b"f")
    assert r"'../a\ncisfs: sealed\x1b[2J\udcff'" in refusal(tar(hostile), tmp_path, UsageError)


def test_devices_can_be_allowed(tmp_path: Path) -> None:
    tars.index(tar(header(b"mem", b"3", device=(1, 1))), tmp_path, devices=True)


# ---- not a whole tar

BROKEN: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "it: empty"),
    "text": (b"This is not a tar.\n" * 100, "not a tar, or a damaged one"),
    "short": (b"x", "cut short"),
    "no end": (file(b"f", b"x"), "cut short"),
    "end inside a header": (file(b"f", b"x") + header(b"g")[:511], "cut short"),
    "end inside content": (file(b"f", bytes(2000))[:-513], "cut short"),
    "end inside padding": (file(b"f", b"x")[:-1], "cut short"),
    "end after a long name": (gnu_long(b"n" * 200, b"L"), "cut short"),
    "end marker after a long name": (tar(gnu_long(b"n" * 200, b"L")), "not a tar, or a damaged"),
    "checksum": (tar(file(b"f"), header(b"g")[:-1] + b"x"), "bad checksum"),
    "garbage between members": (tar(file(b"f"), b"x" * 512, file(b"g")), "not a tar, or a damaged"),
    "zeros between members": (tar(file(b"f"), bytes(512), file(b"g")), "something follows"),
    "two tars": (tar(file(b"f")) + tar(file(b"g")), "something follows the end"),
    "negative size": (tar(header(b"f", size=-512)), "'f' has a negative size"),
    "size in minus signs": (tar(header(b"f", size=b"-0000000100\0")), "'f' has a negative size"),
    "negative size of a header": (tar(header(b"f", b"x", size=-512)), "the headers of one member"),
    "huge size of a header": (tar(header(b"f", b"x", size=1 << 62)), "the headers of one member"),
    "huge long name": (tar(header(b"f", b"L", size=2 * MIB)), "the headers of one member"),
    "size that is no number": (tar(header(b"f", size=b"12x4567\0")), "invalid header"),
    "pax without length": (tar(file(b"x", b"path=x\n", kind=b"x")), "length of a pax record"),
    "pax length zero": (tar(file(b"x", b"0 a=b\n", kind=b"x")), "a pax record is malformed"),
    "pax length too large": (tar(file(b"x", b"99 a=b\n", kind=b"x")), "record is malformed"),
    "pax length too small": (tar(file(b"x", b"4 a=b\n", kind=b"x")), "record is malformed"),
    "pax length beyond all": (tar(file(b"x", b"9" * 30 + b" a=b\n", kind=b"x")), "pax record"),
    "pax length in other digits": (
        tar(file(b"x", "\u0667 a=b\n".encode(), kind=b"x")),
        "the length of a pax record is not a number",
    ),
    "pax without equals": (tar(file(b"x", b"7 abcd\n", kind=b"x")), "a pax record is malformed"),
    "pax without keyword": (tar(file(b"x", b"6 =bc\n", kind=b"x")), "a pax record is malformed"),
    "pax size": (tar(pax([(b"size", b"-1")]), file(b"f")), "size in a pax record"),
    "pax size in words": (tar(pax([(b"size", b"many")]), file(b"f")), "size in a pax record"),
    "pax owner": (tar(pax([(b"uid", b"1_0")]), file(b"f")), "uid in a pax record"),
    "pax time": (tar(pax([(b"mtime", b"inf")]), file(b"f")), "a time in a pax record"),
    "base64": (
        tar(pax([(b"LIBARCHIVE.xattr.user.x", b"a")]), file(b"f")),
        "'f': has a malformed extended attribute 'user.x'",
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_archives_that_are_broken(tmp_path: Path, what: str) -> None:
    data, words = BROKEN[what]
    assert words in refusal(data, tmp_path, FormatError)


def sparse(records: list[tuple[bytes, bytes]], stored: bytes = b"xyz") -> bytes:
    return tar(pax(records), file(b"f", stored))


def mapped(text: bytes, size: bytes = b"9") -> bytes:
    """A file of `size` bytes, three of which are stored, in format 0.1."""
    return sparse([(b"GNU.sparse.size", size), (b"GNU.sparse.map", text)])


V1 = [
    (b"GNU.sparse.major", b"1"),
    (b"GNU.sparse.minor", b"0"),
    (b"GNU.sparse.realsize", b"1000"),
]
OLD = header(b"f", b"S")
SPARSE: dict[str, bytes] = {
    "more stored than told": mapped(b"0,2"),
    "less stored than told": mapped(b"0,5"),
    "backwards": mapped(b"5,1,0,2"),
    "overlapping": mapped(b"0,2,1,1"),
    "beyond the end": mapped(b"7,3"),
    "half a pair": mapped(b"0,3,4"),
    "negative": mapped(b"-3,3"),
    "beyond all": mapped(b"0,3", size=b"9" * 20),
    "no lengths": sparse([(b"GNU.sparse.size", b"9"), (b"GNU.sparse.offset", b"0")]),
    "unknown version": sparse([(b"GNU.sparse.major", b"2"), (b"GNU.sparse.minor", b"0")]),
    "map without end": sparse(V1, b"1" * 1024),
    "map of words": sparse(V1, tars.padded(b"one\n")),
    "map beyond its content": sparse(V1, b"x"),
    "map longer than its member": tar(pax(V1), header(b"f", size=10), b"0\n".ljust(512, b"\0")),
    "count beyond all": sparse(V1, tars.padded(b"99999999999999999\n" + b"1\n" * 10)),
    "old map that does not fit": tar(header(b"f", b"S", size=512), bytes(512)),
    "old map of words": tar(tars.summed(OLD[:386] + b"x" * 24 + OLD[410:])),
    "old map without end": tars.summed(OLD[:482] + b"\1" + OLD[483:])
    + (bytes(504) + b"\1" + bytes(7)) * 4000,
}


@pytest.mark.parametrize("what", SPARSE)
def test_maps_of_sparse_files_that_do_not_fit(tmp_path: Path, what: str) -> None:
    refusal(SPARSE[what], tmp_path, FormatError)


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_compressed_archives_that_are_broken(
    tmp_path: Path, compress: Callable[[bytes], bytes]
) -> None:
    whole = compress(tar(file(b"f", random.Random(1).randbytes(50_000))))
    altered = bytearray(whole)
    altered[len(whole) // 2] ^= 1
    for data in (whole[:-1], whole[: len(whole) // 2], bytes(altered)):
        refusal(data, tmp_path, FormatError)


def test_a_checksum_at_the_very_end_counts(tmp_path: Path) -> None:
    whole = bytearray(gzip.compress(tar(file(b"f", b"x"))))
    whole[-6] ^= 1
    assert "the compressed data is damaged" in refusal(bytes(whole), tmp_path, FormatError)


def test_broken_zstd(tmp_path: Path) -> None:
    data = tar(file(b"f", random.Random(1).randbytes(50_000)))
    whole = subprocess.run(["zstd", "-qc"], input=data, capture_output=True, check=True).stdout
    altered = bytearray(whole)
    altered[len(whole) // 2] ^= 1
    for broken in (whole[: len(whole) // 2], whole[:-1], bytes(altered)):
        assert "the compressed data is damaged" in refusal(broken, tmp_path, FormatError)


# ---- too much


def test_a_decompression_bomb_is_refused_before_it_fills_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []
    monkeypatch.setattr("cisfs.build.scratch.Scratch.append", lambda _, data: written.append(data))
    bomb = gzip.compress(tar(file(b"small", b"x"), file(b"bomb", bytes(16 * MIB))))
    assert len(bomb) < 100_000
    said = refusal(bomb, tmp_path, UsageError, max_size=MIB)
    assert "'bomb': more than 1048576 bytes: raise --max-size" in said
    assert sum(map(len, written)) < 100


def test_many_small_members_count_too(tmp_path: Path) -> None:
    bomb = gzip.compress(file(b"f", bytes(600)) * 2000)
    assert "more than 1048576 bytes" in refusal(bomb, tmp_path, UsageError, max_size=MIB)


def test_what_follows_the_end_counts_too(tmp_path: Path) -> None:
    bomb = gzip.compress(tar(file(b"f")) + bytes(10 * MIB))
    assert "more than 1048576 bytes" in refusal(bomb, tmp_path, UsageError, max_size=MIB)


def test_holes_count_too(tmp_path: Path) -> None:
    """Whoever makes the image would read zeros for years."""
    records = [(b"GNU.sparse.size", b"%d" % (1 << 60)), (b"GNU.sparse.map", b"0,1")]
    said = refusal(sparse(records, b"x"), tmp_path, UsageError)
    assert "'f': more than" in said


def test_exactly_as_much_as_allowed_is_taken(tmp_path: Path) -> None:
    data = tar(file(b"f", bytes(1000)))
    tars.index(data, tmp_path, max_size=len(data))
    tars.index(gzip.compress(data), tmp_path, max_size=len(data)).close()
    refusal(data, tmp_path, UsageError, max_size=len(data) - 1)


HOLES = [(b"GNU.sparse.size", b"1"), (b"GNU.sparse.map", b"0,0," * 1000 + b"0,1")]


@pytest.mark.parametrize(
    "member",
    [
        pytest.param(lambda n: file(b"%d" % n), id="members"),
        pytest.param(lambda n: file(b"%d" % n + b"/d" * 40 + b"/f"), id="implied directories"),
        pytest.param(
            lambda n: pax([(b"SCHILY.xattr.user.x", b"x" * 1000)]) + file(b"%d" % n),
            id="attributes",
        ),
        pytest.param(lambda n: link(b"%d" % n, b"t" * 99, b"2"), id="targets"),
        pytest.param(lambda n: file(b"f") + link(b"%d" % n, b"f"), id="hard links"),
        pytest.param(lambda _: pax(HOLES) + file(b"f", b"x"), id="holes"),
    ],
)
def test_the_index_is_bounded(tmp_path: Path, member: Callable[[int], bytes]) -> None:
    data = tar(*map(member, range(800)))
    tracemalloc.start()
    said = refusal(data, tmp_path, UsageError, max_index=MIB >> 2, max_size=1 << 30)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert "names and attributes take more than 262144 bytes" in said
    assert peak < 2 * MIB


def test_headers_of_one_member_are_bounded(tmp_path: Path) -> None:
    """However they are chained: TarFile would recurse from each to the next."""
    chain = pax([(b"comment", b"x")]) * 2000
    assert "the headers of one member" in refusal(tar(chain, file(b"f")), tmp_path, FormatError)


def test_records_made_to_take_long_take_no_time(tmp_path: Path) -> None:
    """CVE-2024-6232 of `tarfile`: a million digits."""
    digits = file(b"x", b"1" * 1_000_000, kind=b"x")
    refusal(tar(digits, file(b"f")), tmp_path, FormatError)


def test_a_refused_tar_leaves_nothing_behind(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    data = gzip.compress(tar(file(b"f", bytes(3 * MIB)), file(b"/etc/passwd")))
    with tars.piped(data) as fd, pytest.raises(UsageError, match="standard input: '/etc/passwd'"):
        index_tar(fd, "standard input", Limits(16 * MIB), tmp_path)
    assert os.listdir("/proc/self/fd") == before
    assert os.listdir(tmp_path) == []
