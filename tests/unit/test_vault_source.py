"""Vaults as sources: what the index has, content read in any order and process, and damage."""

from __future__ import annotations

import gc
import os
import random
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cisfs.build.erofs import ErofsImage
from cisfs.build.index import Directory, Entry, Index
from cisfs.build.vault_source import index_vault
from cisfs.errors import CisfsError, FormatError, IntegrityError, UsageError
from cisfs.layer.nodes import Node
from cisfs.layer.tree import ROOT, Change, VaultTree
from cisfs.layer.vault import Vault
from tests.mount.harness.processes import at_once
from tests.unit import erofs_trees, vaults
from tests.unit.erofs_reader import Image
from tests.unit.erofs_trees import text
from tests.unit.vaults import KEY, ME, UNIT, put, same

SIZES = [0, 1, 512, 513, UNIT, UNIT + 1, 5 * UNIT - 1, 300_000]


@pytest.fixture
def path(memory_path: Path) -> Path:
    return vaults.make(memory_path / "vault")


@contextmanager
def indexed(path: Path) -> Iterator[Index]:
    with index_vault(Vault.open(path, KEY, read_only=True)) as index:
        yield index


def read(entry: Entry, offset: int = 0, size: int | None = None) -> bytes:
    assert entry.content is not None
    return bytes(entry.content.read(offset, entry.size - offset if size is None else size))


def all_nodes() -> set[Node]:
    """Every node of every tree there is in memory."""
    gc.collect()
    return {each for each in gc.get_objects() if isinstance(each, Node)}


def fill(tree: VaultTree) -> None:
    """A file of each size in the root and in a directory."""
    directory = tree.mkdir(ROOT, b"directory", 0o751, ME).node
    for parent in (ROOT, directory):
        for size in SIZES:
            put(tree, b"%d" % size, text(size, parent % 1000), parent)


# -- what is in it -------------------------------------------------------------------------


def test_an_empty_vault(path: Path) -> None:
    with indexed(path) as index:
        assert index.root.children == {}
        assert index.root.mode == path.stat().st_mode


def test_files_and_directories_have_their_content(path: Path) -> None:
    with vaults.mounted(path) as tree:
        fill(tree)
        node = tree.lookup(ROOT, b"directory").node
    with indexed(path) as index:
        directory = index.root.children[b"directory"]
        assert isinstance(directory, Directory)
        assert directory.mode == stat.S_IFDIR | 0o751
        names = {b"%d" % size for size in SIZES}
        assert directory.children.keys() == names
        assert index.root.children.keys() == names | {b"directory"}
        for size in SIZES:
            for number, parent in ((ROOT, index.root), (node, directory)):
                entry = parent.children[b"%d" % size]
                assert (entry.mode, entry.size) == (stat.S_IFREG | 0o644, size)
                assert same(read(entry) if size else b"", text(size, number % 1000))


def test_all_attributes_are_there(path: Path) -> None:
    long_name = b"\xff" * 255
    with vaults.mounted(path) as tree:
        node = put(tree, long_name, b"content")
        tree.setxattr(node, b"user.x", b"value")
        tree.setxattr(node, b"user.y", b"")
        tree.setattr(node, Change(mode=stat.S_IFREG | 0o4711, mtime_ns=-7, atime_ns=0))
        link = tree.symlink(ROOT, b"link", b"target/\xfe", ME).node
        tree.setattr(link, Change(mtime_ns=123_456_789_012, atime_ns=0))
        tree.mknod(ROOT, b"fifo", stat.S_IFIFO | 0o600, 0, ME)
        tree.mknod(ROOT, b"socket", stat.S_IFSOCK | 0o600, 0, ME)
        directory = tree.mkdir(ROOT, b"directory", 0o1777, ME).node
        tree.setxattr(directory, b"user.d", b"1")
        tree.setxattr(ROOT, b"user.root", b"2")
        tree.setattr(ROOT, Change(mtime_ns=5, atime_ns=5))
    with indexed(path) as index:
        found = index.root.children
        assert found.keys() == {long_name, b"link", b"fifo", b"socket", b"directory"}
        file = found[long_name]
        assert file.xattrs == {b"user.x": b"value", b"user.y": b""}
        assert (file.mode, file.mtime_ns) == (stat.S_IFREG | 0o4711, -7)
        assert (found[b"link"].target, found[b"link"].mtime_ns) == (b"target/\xfe", 123_456_789_012)
        assert found[b"fifo"].mode == stat.S_IFIFO | 0o600
        assert found[b"socket"].mode == stat.S_IFSOCK | 0o600
        assert found[b"directory"].mode == stat.S_IFDIR | 0o1777
        assert found[b"directory"].xattrs == {b"user.d": b"1"}
        assert (index.root.xattrs, index.root.mtime_ns) == ({b"user.root": b"2"}, 5)
        assert {(entry.uid, entry.gid) for entry in index.entries} == {ME}
        assert {entry.rdev for entry in index.entries} == {0}


@pytest.mark.skipif(os.geteuid() != 0, reason="owners, devices and trusted.* are root's")
def test_what_only_root_can_make(path: Path) -> None:
    with vaults.mounted(path) as tree:
        tree.setattr(put(tree, b"file", b""), Change(uid=70000, gid=80000))
        tree.mknod(ROOT, b"whiteout", stat.S_IFCHR, 0, ME)
        tree.mknod(ROOT, b"device", stat.S_IFBLK | 0o660, os.makedev(259, 300), ME)
        opaque = tree.mkdir(ROOT, b"opaque", 0o755, ME).node
        tree.setxattr(opaque, b"trusted.overlay.opaque", b"y")
    with indexed(path) as index:
        found = index.root.children
        assert (found[b"file"].uid, found[b"file"].gid) == (70000, 80000)
        assert (found[b"whiteout"].mode, found[b"whiteout"].rdev) == (stat.S_IFCHR, 0)
        assert found[b"device"].mode == stat.S_IFBLK | 0o660
        assert found[b"device"].rdev == os.makedev(259, 300)
        assert found[b"opaque"].xattrs == {b"trusted.overlay.opaque": b"y"}


def test_hard_links_are_one_entry(path: Path) -> None:
    with vaults.mounted(path) as tree:
        node = put(tree, b"a", b"content")
        directory = tree.mkdir(ROOT, b"directory", 0o755, ME).node
        tree.link(node, ROOT, b"b")
        tree.link(node, directory, b"c")
        put(tree, b"other", b"content")
    with indexed(path) as index:
        found = index.root.children
        assert isinstance(found[b"directory"], Directory)
        assert found[b"a"] is found[b"b"] is found[b"directory"].children[b"c"]
        assert found[b"a"] is not found[b"other"]
        assert (found[b"a"].links, found[b"other"].links) == (3, 1)
        assert len(index.entries) == 4
        assert read(found[b"a"]) == b"content"


def test_whiteouts_are_applied(path: Path) -> None:
    with vaults.mounted(path) as tree:
        directory = tree.mkdir(ROOT, b"directory", 0o755, ME).node
        put(tree, b".wh.gone", b"", directory)
        put(tree, b".wh..wh..opq", b"", directory)
        put(tree, b".wh..wh.plnk", b"")
        put(tree, b"file", b"content")
    with indexed(path) as index:
        assert set(index.root.children) == {b"directory", b"file"}
        found = index.root.children[b"directory"]
        assert isinstance(found, Directory)
        assert found.xattrs == {b"trusted.overlay.opaque": b"y"}
        gone = found.children.pop(b"gone")
        assert (gone.mode, gone.rdev) == (stat.S_IFCHR, 0)
        assert not found.children


def test_a_whiteout_of_nothing_is_named(path: Path) -> None:
    with vaults.mounted(path) as tree:
        put(tree, b".wh.", b"")
    with pytest.raises(UsageError, match=r"^'/\.wh\.': is no proper whiteout"):
        index_vault(Vault.open(path, KEY, read_only=True))


def test_holes_are_zeros(path: Path) -> None:
    with vaults.mounted(path) as tree:
        node = put(tree, b"sparse", b"start")
        tree.setattr(node, Change(size=1 << 40))
    with indexed(path) as index:
        entry = index.root.children[b"sparse"]
        assert entry.size == 1 << 40
        assert entry.extents == [(0, UNIT)]
        assert ErofsImage(index).size < 1 << 25
        assert read(entry, 0, 9) == b"start" + bytes(4)
        assert same(read(entry, 1 << 39, 1 << 20), bytes(1 << 20))


# -- reading it ----------------------------------------------------------------------------


def test_content_is_read_in_any_order(path: Path) -> None:
    with vaults.mounted(path) as tree:
        fill(tree)
    generator = random.Random(1)
    with indexed(path) as index:
        files = [entry for entry in index.entries if entry.size]
        expected = {entry.node: read(entry) for entry in files}
        for _ in range(500):
            entry = generator.choice(files)
            offset = generator.randrange(entry.size)
            size = generator.randint(1, entry.size - offset)
            assert same(read(entry, offset, size), expected[entry.node][offset : offset + size])


def test_forked_processes_read_at_the_same_time(path: Path) -> None:
    with vaults.mounted(path) as tree:
        fill(tree)
        for number in range(300):  # more than the tree keeps descriptors of
            put(tree, b"f", b"%d" % number, tree.mkdir(ROOT, b"d%d" % number, 0o755, ME).node)
    with indexed(path) as index:
        image = ErofsImage(index)
        expected = erofs_trees.whole(image)

        def read_in_pieces(seed: int) -> bool:
            generator = random.Random(seed)
            starts = list(range(0, image.size, 4096))
            generator.shuffle(starts)
            return all(
                erofs_trees.read(image, start, 4096) == expected[start : start + 4096]
                for start in starts
            )

        assert all(at_once(*(lambda seed=seed: read_in_pieces(seed) for seed in range(4))))
    assert Image(expected).inodes == len(index.entries)


def test_closing_the_index_closes_the_vault(path: Path) -> None:
    with vaults.mounted(path) as tree:
        fill(tree)
    before = os.listdir("/proc/self/fd")
    with indexed(path) as index:
        read(index.root.children[b"1"])
    assert os.listdir("/proc/self/fd") == before
    with vaults.opened(path):
        pass  # its lock is free


def test_few_files_are_open_at_a_time(path: Path) -> None:
    with vaults.mounted(path) as tree:
        fill(tree)
    with indexed(path) as index:
        before = len(os.listdir("/proc/self/fd"))
        for entry in index.entries:
            if entry.size:
                read(entry)
        assert len(os.listdir("/proc/self/fd")) == before + 1


def test_no_more_is_kept_of_the_tree_than_its_directories(path: Path) -> None:
    with vaults.mounted(path) as tree:
        fill(tree)
    before = all_nodes()
    with indexed(path) as index:
        for entry in index.entries * 2:
            if entry.size:
                read(entry)
        nodes = all_nodes() - before
        assert len(nodes) == 3  # the root, the directory, and the file that is still open
        assert all(node.listing is None for node in nodes)


# -- damage --------------------------------------------------------------------------------


def test_a_damaged_file_is_named_when_it_is_read(path: Path) -> None:
    with vaults.mounted(path) as tree:
        put(tree, b"file", text(3 * UNIT))
    vaults.flip(vaults.only(path), 32 + UNIT + 16 + 5)
    with indexed(path) as index:
        entry = index.root.children[b"file"]
        assert read(entry, 0, UNIT) == text(3 * UNIT)[:UNIT]
        for _ in range(2):
            with pytest.raises(IntegrityError, match=r"^/file: unit 1 was altered"):
                read(entry, UNIT, UNIT)
        assert read(entry, 2 * UNIT, UNIT) == text(3 * UNIT)[2 * UNIT :]


def test_a_file_that_cannot_be_opened_is_named_each_time_it_is_read(path: Path) -> None:
    with vaults.mounted(path) as tree:
        put(tree, b"file", text(16))
        stored = vaults.only(path)
        put(tree, b"other", b"another")
    vaults.flip(stored, stored.stat().st_size - 32)
    with indexed(path) as index:
        for _ in range(2):
            with pytest.raises(IntegrityError, match=r"^/file: the end of the file"):
                read(index.root.children[b"file"])
            assert read(index.root.children[b"other"]) == b"another"


def test_an_entry_whose_name_cannot_be_read_is_not_left_out(path: Path) -> None:
    with vaults.mounted(path) as tree:
        directory = tree.mkdir(ROOT, b"directory", 0o755, ME).node
        put(tree, b"file", b"content", directory)
        put(tree, b"lost", b"content", directory)
    stored = vaults.stored(vaults.only(path))[0]
    stored.rename(stored.with_name("A" * len(stored.name)))
    before = os.listdir("/proc/self/fd")
    with pytest.raises(IntegrityError, match=r"^/directory: AAA.*; cisfs verify tells more"):
        index_vault(Vault.open(path, KEY, read_only=True))
    assert os.listdir("/proc/self/fd") == before


def test_a_file_that_was_exchanged_since_is_refused(path: Path) -> None:
    """By an older one of the vault's own, so that it is no damage by itself."""
    with vaults.mounted(path) as tree:
        put(tree, b"file", b"content")
    stored = vaults.only(path)
    older = stored.read_bytes()
    with vaults.mounted(path) as tree:
        tree.setattr(tree.lookup(ROOT, b"file").node, Change(size=9))
    with indexed(path) as index:
        stored.write_bytes(older)
        for _ in range(2):
            with pytest.raises(CisfsError, match="'file' changed while it was being sealed"):
                read(index.root.children[b"file"])


def test_an_attribute_that_no_image_can_have_is_named(path: Path) -> None:
    with vaults.mounted(path) as tree:
        directory = tree.mkdir(ROOT, b"directory", 0o755, ME).node
        tree.setxattr(put(tree, b"file", b"", directory), b"security.capability", b"nonsense")
    with pytest.raises(FormatError, match=r"^'/directory/file': has a malformed extended"):
        index_vault(Vault.open(path, KEY, read_only=True))
