"""An index as a file system, without a kernel: what the session asks is answered from the index."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from cisfs.build.index import ROOT
from cisfs.build.view import SourceTree
from tests.unit import tars
from tests.unit.tars import directory, file, header, link, pax, tar

CONTENT = bytes(range(256)) * 50


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[SourceTree]:
    members = [
        header(b"./", b"5", mode=0o711),
        directory(b"d"),
        pax([(b"mtime", b"1.5"), (b"SCHILY.xattr.user.x", b"1")]),
        file(b"d/f", CONTENT, uid=5, gid=6),
        link(b"again", b"d/f"),
        link(b"s", b"d/f", b"2"),
        header(b"c", b"3", device=(1, 3)),
        *(file(b"d/%03d" % number) for number in range(300)),
    ]
    with tars.index(tar(*members), tmp_path, devices=True) as index:
        yield SourceTree(index)


def refused(number: int) -> pytest.RaisesExc[OSError]:
    return pytest.raises(OSError, check=lambda error: error.errno == number)


def walk(tree: SourceTree, *path: bytes) -> int:
    node = ROOT
    for name in path:
        node = tree.lookup(node, name).node
    return node


def listing(tree: SourceTree, node: int) -> dict[bytes, int]:
    handle = tree.opendir(node)
    found = {name: attr.node for name, attr, _ in tree.readdir(handle, 0)}
    tree.releasedir(handle)
    return found


def test_attributes(tree: SourceTree) -> None:
    attr = tree.lookup(walk(tree, b"d"), b"f")
    assert attr == tree.getattr(attr.node)
    assert (attr.mode, attr.nlink, attr.uid, attr.gid) == (stat.S_IFREG | 0o644, 2, 5, 6)
    assert (attr.size, attr.blocks) == (len(CONTENT), 25)
    assert (attr.atime_ns, attr.mtime_ns, attr.ctime_ns) == (1_500_000_000,) * 3
    root = tree.getattr(ROOT)
    assert (root.node, root.mode, root.nlink) == (1, stat.S_IFDIR | 0o711, 3)
    assert tree.getattr(walk(tree, b"c")).rdev == os.makedev(1, 3)


def test_hard_links_have_one_number_and_everything_else_its_own(tree: SourceTree) -> None:
    assert walk(tree, b"again") == walk(tree, b"d", b"f")
    numbers = [ROOT, *listing(tree, ROOT).values(), *listing(tree, walk(tree, b"d")).values()]
    assert len(set(numbers)) == len(numbers) - 1


def test_listings_are_whole_from_any_cookie(tree: SourceTree) -> None:
    handle = tree.opendir(walk(tree, b"d"))
    everything = list(tree.readdir(handle, 0))
    assert {name for name, _, _ in everything} == {b"f", *(b"%03d" % n for n in range(300))}
    for name, _, cookie in everything:
        following = next(tree.readdir(handle, cookie), None)
        position = [each[0] for each in everything].index(name) + 1
        assert following == (everything[position] if position < len(everything) else None)
    tree.releasedir(handle)


def test_reading(tree: SourceTree) -> None:
    handle = tree.open(walk(tree, b"d", b"f"), os.O_RDONLY)
    assert bytes(tree.read(handle, 0, 1 << 17)) == CONTENT
    assert bytes(tree.read(handle, 100, 10)) == CONTENT[100:110]
    assert bytes(tree.read(handle, len(CONTENT) - 5, 10)) == CONTENT[-5:]
    assert bytes(tree.read(handle, len(CONTENT), 10)) == b""
    assert bytes(tree.read(handle, len(CONTENT) + 99, 10)) == b""
    tree.release(handle)
    assert bytes(tree.read(tree.open(walk(tree, b"d", b"000"), os.O_RDONLY), 0, 10)) == b""


def test_symlinks(tree: SourceTree) -> None:
    node = walk(tree, b"s")
    assert tree.readlink(node) == b"d/f"
    assert tree.getattr(node).size == 3


def test_extended_attributes(tree: SourceTree) -> None:
    node = walk(tree, b"d", b"f")
    assert tree.listxattr(node) == [b"user.x"]
    assert tree.getxattr(node, b"user.x") == b"1"
    with refused(errno.ENODATA):
        tree.getxattr(node, b"user.y")
    assert tree.listxattr(ROOT) == []


def test_what_is_not_there(tree: SourceTree) -> None:
    with refused(errno.ENOENT):
        tree.lookup(ROOT, b"nothing")
    with refused(errno.ENOTDIR):
        tree.lookup(walk(tree, b"s"), b"f")
    with refused(errno.ENOTDIR):
        tree.opendir(walk(tree, b"c"))
    with refused(errno.ESTALE):
        tree.getattr(10_000)
    with refused(errno.EROFS):
        tree.open(walk(tree, b"d", b"f"), os.O_RDWR)


def test_nothing_has_to_be_remembered_of_the_kernel(tree: SourceTree) -> None:
    node = walk(tree, b"d")
    tree.hold(node)
    tree.forget(node, 100)
    assert tree.getattr(node).node == node


def test_names_may_be_of_the_usual_length(tree: SourceTree) -> None:
    assert tree.statfs().f_namemax == 255
