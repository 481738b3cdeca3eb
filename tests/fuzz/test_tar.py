"""Any bytes for a tar: an index of a tree that can be, or one of our errors, nothing else."""

from __future__ import annotations

import gzip
import io
import stat
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cisfs.build.index import Directory, Entry, Index
from cisfs.errors import FormatError, UsageError
from tests.unit import tars
from tests.unit.tars import BLOCK, content, directory, entries, file, header, link, pax, tar

SCRATCH = Path("/tmp")
MANY = settings(max_examples=150)

VALID = tar(
    header(b"./", b"5", mode=0o700),
    directory(b"d"),
    pax([(b"mtime", b"1.5"), (b"SCHILY.xattr.user.x", b"y"), (b"path", b"d/f")]),
    file(b"short", b"content" * 100),
    link(b"h", b"d/f"),
    link(b"s", b"/etc", b"2"),
    tars.gnu_long(b"d/" + b"n" * 150, b"L"),
    file(b"x", b"1"),
    file(b"d/.wh.gone"),
    file(b".wh..wh..opq"),
    header(b"c", b"3"),
    pax([(b"GNU.sparse.size", b"9000"), (b"GNU.sparse.map", b"0,2,8000,1")]),
    file(b"sparse", b"abc"),
    pax([(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0")]),
    file(b"sparse1", tars.padded(b"1\n0\n3\n") + b"abc"),
    pax([(b"comment", b"all")], b"g"),
)


def index_or_our_error(data: bytes) -> Index | None:
    """The invariant: anything but a CisfsError would fail the test by itself."""
    try:
        index = tars.index(data, SCRATCH, max_size=1 << 20, max_index=1 << 20)
    except (FormatError, UsageError) as error:
        check_words(str(error))
        return None
    with index:
        check(index)
    return index


def check_words(said: str) -> None:
    """One line, however long the names are."""
    assert said.startswith("it: ")
    assert said.isprintable()
    assert len(said) < 700


def check(index: Index) -> None:
    """Whatever the tar was, this could be a file system."""
    found = entries(index)
    names = Counter(map(id, found.values()))
    assert [each.node for each in index.entries] == list(range(1, len(index.entries) + 1))
    assert {id(each) for each in index.entries} == set(names)
    for path, entry in found.items():
        assert path == b"" or all(part not in (b"", b".", b"..") for part in path.split(b"/"))
        assert b"\0" not in path
        assert len(path) < 4096
        assert all(len(part) < 256 for part in path.split(b"/"))
        check_entry(entry, names[id(entry)])


def check_entry(entry: Entry, names: int) -> None:
    """One inode."""
    assert len(content(entry)) == (entry.size if entry.content else 0)
    assert stat.S_ISDIR(entry.mode) == isinstance(entry, Directory)
    assert bool(entry.target) == stat.S_ISLNK(entry.mode)
    assert 0 <= entry.uid < 2**32 - 1
    assert 0 <= entry.gid < 2**32 - 1
    assert abs(entry.mtime_ns) < 2**63
    if isinstance(entry, Directory):
        assert names == 1
        assert entry.links == 2 + sum(
            isinstance(each, Directory) for each in entry.children.values()
        )
    else:
        assert entry.links == names


def test_what_is_valid_is_taken() -> None:
    index = index_or_our_error(VALID)
    assert index is not None
    assert len(index.entries) == 9


@MANY
@given(data=st.binary(max_size=3000))
def test_any_bytes(data: bytes) -> None:
    assert index_or_our_error(data) is None or not data.strip(b"\0")


ALTERATIONS = st.lists(
    st.tuples(st.integers(0, len(VALID) - 1), st.binary(min_size=1, max_size=8)),
    min_size=1,
    max_size=4,
)


def altered(changes: list[tuple[int, bytes]]) -> bytearray:
    data = bytearray(VALID)
    for at, new in changes:
        data[at : at + len(new)] = new
    return data[: len(VALID)]


@MANY
@given(changes=ALTERATIONS)
def test_valid_bytes_that_were_altered(changes: list[tuple[int, bytes]]) -> None:
    index_or_our_error(bytes(altered(changes)))


@settings(max_examples=400)
@given(changes=ALTERATIONS)
def test_headers_that_were_altered_with_checksums_that_fit(
    changes: list[tuple[int, bytes]],
) -> None:
    """A checksum keeps nobody from anything, so what is behind it must stand by itself."""
    data = altered(changes)
    for at in {at // BLOCK * BLOCK for at, _ in changes}:
        if VALID[at + 257 : at + 262] == b"ustar":
            data[at : at + BLOCK] = tars.summed(bytes(data[at : at + BLOCK]))
    index_or_our_error(bytes(data))


def test_no_part_of_a_tar_is_taken_for_a_tar() -> None:
    whole = len(VALID) - 2 * BLOCK
    for size in range(0, whole + BLOCK, 7):
        assert index_or_our_error(VALID[:size]) is None, size
    for size in (whole + BLOCK, whole + BLOCK + 1, len(VALID)):
        assert index_or_our_error(VALID[:size]) is not None, size


def test_no_part_of_a_compressed_tar_is_taken_for_a_tar() -> None:
    data = gzip.compress(VALID)
    for size in (*range(0, len(data), 5), len(data) - 2, len(data) - 1):
        assert index_or_our_error(data[:size]) is None, size
    assert index_or_our_error(data) is not None


@settings(max_examples=60)
@given(at=st.integers(0, len(gzip.compress(VALID, mtime=0)) - 1), bit=st.integers(0, 7))
def test_an_altered_compressed_tar_is_the_same_or_refused(at: int, bit: int) -> None:
    data = bytearray(gzip.compress(VALID, mtime=0))
    data[at] ^= 1 << bit
    index = index_or_our_error(bytes(data))
    assert index is None or len(index.entries) == 9


# ---- members of any kind, in any order

PART = st.sampled_from([b"a", b"b", b"..", b".", b"", b".wh.a", b".wh..wh..opq", b".wh..wh.x"])
PATH = st.lists(PART, min_size=1, max_size=4).map(b"/".join)
NUMBER = st.integers(-(2**62), 2**62) | st.integers(0, 3000)
MEMBER = st.one_of(
    st.builds(file, PATH, st.binary(max_size=20)),
    st.builds(directory, PATH),
    st.builds(link, PATH, PATH, st.sampled_from([b"1", b"2"])),
    st.builds(header, PATH, st.sampled_from([b"3", b"6", b"\0"])),
    st.builds(
        lambda name, kind, size, uid, mtime: header(name, kind, size=size, uid=uid, mtime=mtime),
        PATH,
        st.binary(min_size=1, max_size=1),
        NUMBER,
        st.integers(-(2**54), 2**54),
        NUMBER,
    ),
)
KEYWORD = st.sampled_from(
    [
        *(b"path", b"linkpath", b"size", b"uid", b"mtime", b"comment"),
        *(b"SCHILY.xattr.user.x", b"SCHILY.xattr.security.capability", b"LIBARCHIVE.xattr.user.y"),
        *(b"GNU.sparse.major", b"GNU.sparse.minor", b"GNU.sparse.size", b"GNU.sparse.map"),
        *(b"GNU.sparse.offset", b"GNU.sparse.numbytes", b"GNU.sparse.name"),
    ]
)
VALUE = st.one_of(PATH, st.binary(max_size=8), st.sampled_from([b"0", b"1", b"2", b"0,1", b"-1"]))
BEFORE = st.one_of(
    st.builds(pax, st.lists(st.tuples(KEYWORD, VALUE), max_size=4), st.sampled_from([b"x", b"g"])),
    st.builds(tars.gnu_long, PATH, st.sampled_from([b"L", b"K"])),
)


@settings(max_examples=600)
@given(members=st.lists(MEMBER | BEFORE, max_size=8))
def test_any_members(members: list[bytes]) -> None:
    index_or_our_error(tar(*members))


# ---- as `tarfile` reads it

NAME = st.lists(st.text("ab\u00e9\udcff \n", min_size=1, max_size=60), min_size=1, max_size=4).map(
    "/".join
)


@settings(max_examples=150)
@given(
    names=st.lists(NAME, max_size=5),
    form=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    numbers=st.tuples(st.integers(0, 2**32 - 2), st.integers(0, 0o7777), st.integers(0, 2**33)),
)
def test_what_tarfile_writes_and_reads(
    names: list[str], form: int, numbers: tuple[int, int, int]
) -> None:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=form, errors="surrogateescape") as made:
        for number, name in enumerate(names):
            info = tarfile.TarInfo(f"{number}/{name}")
            info.uid, info.mode, info.mtime = numbers
            info.size = number * 300
            made.addfile(info, io.BytesIO(bytes(number * 300)))
    index = index_or_our_error(stream.getvalue())
    assert index is not None
    found = {path: each for path, each in entries(index).items() if stat.S_ISREG(each.mode)}
    with tarfile.open(fileobj=io.BytesIO(stream.getvalue())) as read:
        expected = {each.name.encode("utf-8", "surrogateescape"): each for each in read}
    assert set(found) == set(expected)
    for path, info in expected.items():
        entry = found[path]
        assert (entry.uid, entry.mode & 0o7777, entry.size) == (info.uid, info.mode, info.size)
        assert entry.mtime_ns == info.mtime * 1_000_000_000


@pytest.mark.parametrize("wrap", [bytes, gzip.compress])
def test_it_makes_no_difference_how_it_comes(wrap: Callable[[bytes], bytes]) -> None:
    index = index_or_our_error(wrap(VALID))
    assert index is not None
    assert index.totals.content == 700 + 1 + 9000 + 3
