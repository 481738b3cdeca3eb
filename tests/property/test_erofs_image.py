"""Any tree, made an EROFS image, is read back by a reader that shares no code with the writer."""

from __future__ import annotations

import stat

from hypothesis import given, settings
from hypothesis import strategies as st

from cisfs.build.erofs import ErofsImage
from cisfs.build.index import Directory, Entry, Index
from tests.unit import erofs_trees as trees
from tests.unit.erofs_reader import Image, Inode
from tests.unit.erofs_trees import Stored, text
from tests.unit.vaults import same

BLOCK = 4096
SIZES = st.one_of(
    st.sampled_from(
        [0, 1, 31, 32, 33, 511, 512, 513, 4031, 4032, 4033, 4063, 4064, 4065, 4095, 4096, 4097]
    ),
    st.integers(0, 3 * BLOCK),
)
NAMES = st.one_of(
    st.binary(min_size=1, max_size=3),
    st.integers(1, 255).map(lambda size: b"n" * size),
    st.sampled_from([b"-", b"...", b"\xff", b"\x01", b" "]),
).filter(lambda name: not {0, ord("/")} & set(name) and name not in (b".", b".."))
IDS = st.sampled_from([0, 1, 65535, 65536, (1 << 32) - 2])
TIMES = st.one_of(st.sampled_from([0, 7]), st.integers(-(2**63) * 10**9, 2**63 * 10**9 - 1))
XATTRS = st.dictionaries(
    st.one_of(
        st.sampled_from([b"system.posix_acl_access", b"trusted.overlay.opaque"]),
        st.integers(1, 250).map(lambda size: b"user." + b"x" * size),
        st.integers(1, 5).map(lambda size: b"security." + b"s" * size),
    ),
    st.integers(0, 6000).map(text),
    max_size=3,
)
KINDS = st.one_of(
    st.sampled_from([stat.S_IFREG, stat.S_IFLNK]),
    st.sampled_from([stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFCHR, stat.S_IFBLK]),
)


def describe(draw: st.DrawFn, entry: Entry) -> None:
    """Give an entry all that any entry has."""
    entry.mode |= draw(st.integers(0, 0o7777))
    entry.uid, entry.gid, entry.mtime_ns = draw(IDS), draw(IDS), draw(TIMES)
    entry.xattrs = draw(XATTRS)


@st.composite
def directories(draw: st.DrawFn) -> Directory:
    """A directory, empty as yet."""
    made = Directory(stat.S_IFDIR)
    describe(draw, made)
    return made


@st.composite
def files(draw: st.DrawFn) -> Entry:
    """An entry that is no directory."""
    entry = Entry(draw(KINDS))
    if stat.S_ISCHR(entry.mode) or stat.S_ISBLK(entry.mode):
        entry.rdev = draw(st.sampled_from([0, 0x801, (1 << 32) - 1]))
    elif stat.S_ISLNK(entry.mode):
        entry.target = text(draw(SIZES.map(lambda size: max(1, min(size, 4095)))))
    elif stat.S_ISREG(entry.mode):
        entry.size = draw(SIZES)
        entry.content = Stored(text(entry.size, draw(st.integers(0, 99))))
    describe(draw, entry)
    return entry


@st.composite
def roots(draw: st.DrawFn) -> Directory:
    """A root with all below it; some files have several names, in several directories."""
    found = [draw(directories())]
    for _ in range(draw(st.integers(0, 6))):
        child = draw(directories())
        if draw(st.sampled_from(found)).children.setdefault(draw(NAMES), child) is child:
            found.append(child)
    for _ in range(draw(st.integers(0, 10))):
        file = draw(files())
        for _ in range(draw(st.sampled_from([1, 1, 1, 2, 3]))):
            draw(st.sampled_from(found)).children.setdefault(draw(NAMES), file)
    for number in range(draw(st.sampled_from([0, 0, 0, 14, 15, 16, 300]))):
        found[-1].children[b"%0255d" % number] = Entry(stat.S_IFIFO)
    return found[0]


@settings(max_examples=150)
@given(root=roots(), limit=st.sampled_from([0, 1, 512, 4032, 4095]), data=st.data())
def test_every_tree_is_read_back(root: Directory, limit: int, data: st.DataObject) -> None:
    image = ErofsImage(Index(root), inline_limit=limit)
    content = trees.whole(image)
    read = Image(content)
    assert read.inodes == image.entries
    assert_same(read, read.root, root)
    for _ in range(5):
        start = data.draw(st.integers(0, image.size))
        size = data.draw(st.one_of(st.sampled_from([1, 2, BLOCK]), st.integers(0, image.size)))
        size = min(size, image.size - start)
        assert same(trees.read(image, start, size), content[start : start + size])


def assert_same(image: Image, found: Inode, entry: Entry) -> None:
    """Fail unless the inode is the entry, and all below it too.

    A file with several names is one inode: the reader has checked that there are no more of them.
    """
    for attribute in ("mode", "uid", "gid", "links", "mtime_ns", "rdev"):
        assert getattr(found, attribute) == getattr(entry, attribute), attribute
    assert found.xattrs == entry.xattrs
    if isinstance(entry, Directory):
        assert found.children.keys() == entry.children.keys()
        for name, child in entry.children.items():
            assert_same(image, found.children[name], child)
    elif entry.target:
        assert same(image.bytes_of(found), entry.target)
    elif entry.size:
        assert isinstance(entry.content, Stored)
        assert same(image.bytes_of(found), entry.content.data)
    else:
        assert found.size == 0
