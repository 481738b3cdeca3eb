"""The tree's entries without a kernel: names, renames, links, directories, node numbers."""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from cisfs.format.geometry import Geometry
from cisfs.layer.nodes import NodeTable
from cisfs.layer.tree import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    RENAME_WHITEOUT,
    ROOT,
    Change,
    VaultTree,
)
from cisfs.layer.vault import Vault
from tests.unit import vaults
from tests.unit.vaults import KEY, ME, UNIT, fetch, listing, put

LONG = b"l" * 255
NEW_NAMES = [b"short", b"n" * 175, b"n" * 176, LONG]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return vaults.make(tmp_path / "vault")


@pytest.fixture
def tree(path: Path) -> Iterator[VaultTree]:
    with vaults.mounted(path) as tree:
        yield tree


def mkdir(tree: VaultTree, name: bytes, parent: int = ROOT) -> int:
    return tree.mkdir(parent, name, stat.S_IFDIR | 0o755, ME).node


def refused(errno_expected: int) -> pytest.RaisesExc[OSError]:
    return pytest.raises(OSError, check=lambda error: error.errno == errno_expected)


@pytest.mark.parametrize("name", [*NEW_NAMES, b"\xff\xfe", b"-", b"vault.json", b"a\nb"])
def test_names_are_kept_byte_by_byte(path: Path, tree: VaultTree, name: bytes) -> None:
    put(tree, name, b"content")
    assert listing(tree) == [name]
    assert fetch(tree, name) == b"content"
    assert name not in os.fsencode(vaults.only(path).name) or len(name) < 3


def test_a_name_of_256_bytes_is_refused_everywhere(tree: VaultTree) -> None:
    name, node = b"n" * 256, put(tree, b"file", b"")
    for attempt in (
        lambda: tree.lookup(ROOT, name),
        lambda: tree.create(ROOT, name, 0o644, os.O_RDWR, ME),
        lambda: tree.mknod(ROOT, name, stat.S_IFIFO | 0o644, 0, ME),
        lambda: tree.mkdir(ROOT, name, 0o755, ME),
        lambda: tree.symlink(ROOT, name, b"target", ME),
        lambda: tree.link(node, ROOT, name),
        lambda: tree.unlink(ROOT, name),
        lambda: tree.rmdir(ROOT, name),
        lambda: tree.rename(ROOT, b"file", ROOT, name, 0),
        lambda: tree.rename(ROOT, name, ROOT, b"file", 0),
    ):
        with refused(errno.ENAMETOOLONG):
            attempt()
    assert listing(tree) == [b"file"]


def test_what_is_not_there_is_not_found(tree: VaultTree) -> None:
    for attempt in (
        lambda: tree.lookup(ROOT, b"no"),
        lambda: tree.unlink(ROOT, b"no"),
        lambda: tree.rmdir(ROOT, b"no"),
        lambda: tree.rename(ROOT, b"no", ROOT, b"new", 0),
        lambda: tree.rename(ROOT, b"no", ROOT, LONG, 0),
    ):
        with refused(errno.ENOENT):
            attempt()


def test_what_is_there_is_not_made_again(path: Path, tree: VaultTree) -> None:
    node = put(tree, LONG, b"first")
    for attempt in (
        lambda: tree.create(ROOT, LONG, 0o644, os.O_RDWR | os.O_EXCL, ME),
        lambda: tree.mknod(ROOT, LONG, stat.S_IFIFO | 0o644, 0, ME),
        lambda: tree.mkdir(ROOT, LONG, 0o755, ME),
        lambda: tree.symlink(ROOT, LONG, b"target", ME),
        lambda: tree.link(node, ROOT, LONG),
    ):
        with refused(errno.EEXIST):
            attempt()
    assert fetch(tree, LONG) == b"first"
    assert len(sidecars(path)) == 1


def sidecars(path: Path) -> list[str]:
    return [each.name for each in path.rglob("cisfs.name.*")]


def test_the_file_beside_a_long_name_comes_and_goes_with_it(path: Path, tree: VaultTree) -> None:
    node = put(tree, LONG, b"")
    assert len(sidecars(path)) == 1
    tree.rename(ROOT, LONG, ROOT, b"short", 0)
    assert sidecars(path) == []
    tree.rename(ROOT, b"short", ROOT, LONG, 0)
    tree.link(node, ROOT, b"x" * 200)
    assert len(sidecars(path)) == 2
    tree.unlink(ROOT, LONG)
    tree.unlink(ROOT, b"x" * 200)
    assert sidecars(path) == []
    mkdir(tree, LONG)
    tree.symlink(ROOT, b"s" * 255, b"target", ME)
    tree.rename(ROOT, LONG, ROOT, b"s" * 255, RENAME_EXCHANGE)
    assert len(sidecars(path)) == 2
    tree.rmdir(ROOT, b"s" * 255)
    tree.unlink(ROOT, LONG)
    assert sidecars(path) == []
    assert vaults.stored(path) == []


@pytest.mark.parametrize("new", NEW_NAMES)
@pytest.mark.parametrize("old", [b"old", b"o" * 255])
def test_rename_moves_and_replaces(tree: VaultTree, old: bytes, new: bytes) -> None:
    directory = mkdir(tree, b"directory")
    node, gone = put(tree, old, b"moved"), put(tree, new, b"replaced", directory)
    tree.rename(ROOT, old, directory, new, 0)
    assert listing(tree) == [b"directory"]
    assert listing(tree, directory) == [new]
    assert fetch(tree, new, directory) == b"moved"
    assert tree.lookup(directory, new).node == node
    assert tree.getattr(gone).nlink == 0
    assert tree.getattr(node).nlink == 1


def test_rename_noreplace_does_not_replace(tree: VaultTree) -> None:
    put(tree, b"a", b"a")
    put(tree, b"b", b"b")
    with refused(errno.EEXIST):
        tree.rename(ROOT, b"a", ROOT, b"b", RENAME_NOREPLACE)
    tree.rename(ROOT, b"a", ROOT, b"c", RENAME_NOREPLACE)
    assert listing(tree) == [b"b", b"c"]
    assert fetch(tree, b"b") == b"b"


def test_rename_exchange_swaps_whatever_is_there(tree: VaultTree) -> None:
    file, directory = put(tree, b"file", b"content"), mkdir(tree, b"directory")
    put(tree, b"inside", b"", directory)
    tree.rename(ROOT, b"file", ROOT, b"directory", RENAME_EXCHANGE)
    assert tree.lookup(ROOT, b"directory").node == file
    assert tree.lookup(ROOT, b"file").node == directory
    assert listing(tree, directory) == [b"inside"]
    assert fetch(tree, b"directory") == b"content"
    with refused(errno.ENOENT):
        tree.rename(ROOT, b"file", ROOT, LONG, RENAME_EXCHANGE)


def test_rename_whiteout_leaves_a_whiteout(tree: VaultTree) -> None:
    put(tree, b"a", b"content")
    tree.rename(ROOT, b"a", ROOT, b"b", RENAME_WHITEOUT)
    attr = tree.lookup(ROOT, b"a")
    assert stat.S_ISCHR(attr.mode)
    assert attr.rdev == 0
    assert fetch(tree, b"b") == b"content"
    assert listing(tree) == [b"a", b"b"]


def test_rename_whiteout_replaces_an_empty_directory(tree: VaultTree) -> None:
    moved = mkdir(tree, b"a")
    mkdir(tree, b"empty")
    tree.rename(ROOT, b"a", ROOT, b"empty", RENAME_WHITEOUT)
    assert tree.lookup(ROOT, b"empty").node == moved
    assert stat.S_ISCHR(tree.lookup(ROOT, b"a").mode)


def test_renaming_a_link_to_its_own_inode_does_nothing(tree: VaultTree) -> None:
    """rename(2): if both names are links to the same file, it succeeds and changes nothing."""
    node = put(tree, b"a", b"content")
    tree.link(node, ROOT, b"b")
    tree.rename(ROOT, b"a", ROOT, b"b", 0)
    tree.unlink(ROOT, b"b")
    assert listing(tree) == [b"a"]
    assert tree.lookup(ROOT, b"a").node == node
    assert tree.getattr(node).nlink == 1


def test_renaming_to_the_same_name_does_nothing(tree: VaultTree) -> None:
    for name in NEW_NAMES:
        node = put(tree, name, name)
        tree.rename(ROOT, name, ROOT, name, 0)
        assert tree.lookup(ROOT, name).node == node
        assert fetch(tree, name) == name


def test_a_directory_replaces_an_empty_one_only(tree: VaultTree, path: Path) -> None:
    moved, empty, full = mkdir(tree, b"moved"), mkdir(tree, b"empty"), mkdir(tree, b"full")
    put(tree, b"inside", b"i", moved)
    put(tree, b"inside", b"", full)
    put(tree, b"file", b"")
    with refused(errno.ENOTEMPTY):
        tree.rename(ROOT, b"moved", ROOT, b"full", 0)
    with refused(errno.ENOTDIR):
        tree.rename(ROOT, b"moved", ROOT, b"file", 0)
    with refused(errno.EISDIR):
        tree.rename(ROOT, b"file", ROOT, b"moved", 0)
    with refused(errno.EINVAL):
        tree.rename(ROOT, b"moved", moved, b"below", 0)
    tree.rename(ROOT, b"moved", ROOT, b"empty", 0)
    assert listing(tree) == [b"empty", b"file", b"full"]
    assert tree.lookup(ROOT, b"empty").node == moved
    assert fetch(tree, b"inside", moved) == b"i"
    assert listing(tree, moved) == [b"inside"]
    assert tree.getattr(empty).nlink == 0
    assert len(vaults.stored(path)) == 3


def test_an_empty_directory_with_a_stray_helper_file_can_be_removed(
    tree: VaultTree, path: Path
) -> None:
    """A crash between a long name and its entry leaves one: `rm -r` must not stumble over it."""
    mkdir(tree, b"directory")
    (vaults.only(path) / "cisfs.name.AAAA").write_bytes(b"left by a crash")
    tree.rmdir(ROOT, b"directory")
    assert listing(tree) == []


def test_a_directory_can_replace_an_empty_one_with_a_stray_helper_file(
    tree: VaultTree, path: Path
) -> None:
    mkdir(tree, b"empty")
    (vaults.only(path) / "cisfs.name.AAAA").write_bytes(b"left by a crash")
    moved = mkdir(tree, b"moved")
    put(tree, b"inside", b"", moved)
    tree.rename(ROOT, b"moved", ROOT, b"empty", 0)
    assert listing(tree) == [b"empty"]
    assert listing(tree, tree.lookup(ROOT, b"empty").node) == [b"inside"]


def test_rmdir_removes_empty_directories_only(tree: VaultTree, path: Path) -> None:
    directory = mkdir(tree, b"directory")
    put(tree, b"file", b"", directory)
    with refused(errno.ENOTEMPTY):
        tree.rmdir(ROOT, b"directory")
    with refused(errno.ENOTDIR):
        tree.rmdir(directory, b"file")
    with refused(errno.EISDIR):
        tree.unlink(ROOT, b"directory")
    assert fetch(tree, b"file", directory) == b""
    tree.unlink(directory, b"file")
    tree.rmdir(ROOT, b"directory")
    assert vaults.stored(path) == []
    assert tree.getattr(directory).nlink == 0
    with pytest.raises(OSError, check=lambda error: error.errno in {errno.ENOENT, errno.ESTALE}):
        put(tree, b"late", b"", directory)


def test_a_directory_that_lost_its_empty_id_heals(path: Path) -> None:
    """A crash between mkdir and the id leaves that; nothing could be lost in an empty one."""
    with vaults.mounted(path) as tree:
        mkdir(tree, b"directory")
    (vaults.only(path) / "cisfs.dir").unlink()
    with vaults.mounted(path, read_only=True) as tree:
        assert listing(tree, tree.lookup(ROOT, b"directory").node) == []
    assert not (vaults.only(path) / "cisfs.dir").exists()
    with vaults.mounted(path) as tree:
        put(tree, b"file", b"new", tree.lookup(ROOT, b"directory").node)
    with vaults.mounted(path) as tree:
        assert fetch(tree, b"file", tree.lookup(ROOT, b"directory").node) == b"new"


def test_hard_links_are_one_node(tree: VaultTree) -> None:
    directory = mkdir(tree, b"directory")
    node = put(tree, b"a", b"content")
    attr = tree.link(node, directory, LONG)
    assert (attr.node, attr.nlink) == (node, 2)
    assert tree.lookup(directory, LONG).node == node
    handle = tree.open(node, os.O_RDWR)
    tree.write(handle, 0, b"CON")
    tree.release(handle)
    tree.unlink(ROOT, b"a")
    assert fetch(tree, LONG, directory) == b"CONtent"
    assert tree.getattr(node).nlink == 1
    with pytest.raises(OSError, check=lambda e: e.errno in {errno.EPERM, errno.EACCES}):
        tree.link(directory, ROOT, b"linked directory")


def test_node_numbers_stay_the_same(path: Path) -> None:
    with vaults.mounted(path) as tree:
        node = put(tree, b"file", b"")
        directory = mkdir(tree, b"directory")
        tree.forget(node, 1)
        assert tree.lookup(ROOT, b"file").node == node
        tree.rename(ROOT, b"file", directory, b"moved", 0)
        assert tree.lookup(directory, b"moved").node == node
        tree.link(node, ROOT, b"linked")
        assert tree.lookup(ROOT, b"linked").node == node
        assert tree.lookup(ROOT, b"directory").node == directory
        assert tree.getattr(ROOT).node == ROOT == 1
    with vaults.mounted(path) as tree:
        assert tree.lookup(ROOT, b"linked").node == node
        assert tree.lookup(ROOT, b"directory").node == directory


def test_a_number_is_not_used_again_while_the_kernel_holds_it(tree: VaultTree) -> None:
    held, seen = [], set()
    for _ in range(30):
        node = put(tree, b"file", b"")
        assert node not in seen
        seen.add(node)
        held.append(node)
        tree.unlink(ROOT, b"file")
    for node in held:
        assert tree.getattr(node).nlink == 0
        tree.forget(node, 1)
        with refused(errno.ESTALE):
            tree.getattr(node)


def test_forgotten_nodes_are_forgotten(tree: VaultTree) -> None:
    directory = mkdir(tree, b"directory")
    node = put(tree, b"file", b"x", directory)
    tree.hold(node)
    tree.forget(node, 1)
    assert tree.getattr(node).size == 1
    tree.forget(directory, 1)
    tree.forget(node, 1)
    for gone in (node, directory):
        with refused(errno.ESTALE):
            tree.getattr(gone)
    assert tree.lookup(ROOT, b"directory").node == directory


def test_symlinks_keep_targets_up_to_3039_bytes(path: Path, tree: VaultTree) -> None:
    for name, target in [(b"a", b"t"), (b"b", b"/\xff" * 100), (b"c", b"t" * 3039)]:
        attr = tree.symlink(ROOT, name, target, ME)
        assert stat.S_ISLNK(attr.mode)
        assert attr.size == len(target)
        assert tree.readlink(attr.node) == target
    with refused(errno.ENAMETOOLONG):
        tree.symlink(ROOT, b"d", b"t" * 3040, ME)
    assert listing(tree) == [b"a", b"b", b"c"]
    texts = [os.readlink(each) for each in vaults.stored(path)]
    assert len(set(texts)) == 3
    again = tree.symlink(ROOT, b"e", b"t", ME).node
    assert tree.readlink(again) == b"t"
    assert len({os.readlink(each) for each in vaults.stored(path)}) == 4


def test_special_files_are_kept(tree: VaultTree) -> None:
    for name, kind in [(b"fifo", stat.S_IFIFO), (b"socket", stat.S_IFSOCK)]:
        attr = tree.mknod(ROOT, name, kind | 0o640, 0, ME)
        assert attr.mode == kind | 0o640
        assert tree.lookup(ROOT, name).mode == kind | 0o640
    attr = tree.mknod(ROOT, b"file", stat.S_IFREG | 0o600, 0, ME)
    assert (attr.mode, attr.size) == (stat.S_IFREG | 0o600, 0)
    assert fetch(tree, b"file") == b""


def test_modes_and_times_are_kept(path: Path) -> None:
    with vaults.mounted(path) as tree:
        for name, node in [(b"f", put(tree, b"f", b"x")), (b"d", mkdir(tree, b"d"))]:
            attr = tree.setattr(node, Change(mode=0o7751, atime_ns=1_000, mtime_ns=2_000_000_001))
            assert stat.S_IMODE(attr.mode) == 0o7751
            assert (attr.atime_ns, attr.mtime_ns) == (1_000, 2_000_000_001)
            attr = tree.setattr(node, Change(mtime_ns=5))
            assert (attr.atime_ns, attr.mtime_ns) == (1_000, 5)
            assert tree.lookup(ROOT, name).mtime_ns == 5
        link = tree.symlink(ROOT, b"l", b"target", ME).node
        assert tree.setattr(link, Change(mtime_ns=7)).mtime_ns == 7
    with vaults.mounted(path, read_only=True) as tree:
        assert stat.S_IMODE(tree.lookup(ROOT, b"f").mode) == 0o7751
        assert tree.lookup(ROOT, b"d").mtime_ns == 5


def test_listings_can_be_resumed_and_survive_changes(tree: VaultTree) -> None:
    names = [b"%03d" % number for number in range(50)]
    for name in names:
        tree.forget(put(tree, name, b""), 1)
    handle = tree.opendir(ROOT)
    seen, cookie = [], 0
    while True:
        entries = tree.readdir(handle, cookie)
        got = [entry for _, entry in zip(range(7), entries, strict=False)]
        if not got:
            break
        seen += [name for name, _, _ in got]
        cookie = got[-1][2]
        if len(seen) == 14:
            tree.unlink(ROOT, seen[0])
            put(tree, b"new", b"")
    assert set(seen) - {b"new"} == set(names)
    tree.releasedir(handle)
    assert listing(tree) == sorted({*names, b"new"} - {seen[0]})


def test_a_listing_takes_no_reference_but_a_held_entry_has_one(tree: VaultTree) -> None:
    tree.forget(put(tree, b"a", b""), 1)
    tree.forget(put(tree, b"b", b""), 1)
    handle = tree.opendir(ROOT)
    found = {}
    for name, attr, _ in tree.readdir(handle, 0):
        found[name] = attr.node
        if name == b"a":
            tree.hold(attr.node)
    tree.releasedir(handle)
    assert tree.getattr(found[b"a"]).node == found[b"a"]
    with refused(errno.ESTALE):
        tree.getattr(found[b"b"])


def test_a_listing_skips_and_logs_what_is_not_ours(
    tree: VaultTree, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    directory = mkdir(tree, b"directory")
    put(tree, b"good", b"content", directory)
    backing = vaults.only(path)
    (backing / "not-ours").touch()
    (backing / ("A" * 60)).touch()
    (backing / "cisfs.long.AAAA").touch()
    (backing / "with.dot").touch()
    with caplog.at_level(logging.WARNING):
        assert listing(tree, directory) == [b"good"]
    said = sorted(record.getMessage() for record in caplog.records)
    assert len(said) == 3
    assert all(line.startswith("/directory: ") for line in said)
    assert "A" * 60 + ": an encrypted name was altered or moved" in said[0]
    assert "the file with a long name is missing" in said[1]
    assert "not-ours: " in said[2]


@pytest.mark.parametrize("planted", ["symlink", "directory", "fifo"])
def test_a_listing_skips_a_long_name_whose_file_is_none(
    tree: VaultTree, path: Path, planted: str
) -> None:
    put(tree, b"good", b"")
    put(tree, LONG, b"")
    (beside,) = path.glob("cisfs.name.*")
    beside.unlink()
    if planted == "symlink":
        beside.symlink_to("/etc/passwd")
    elif planted == "directory":
        beside.mkdir()
    else:
        os.mkfifo(beside)
    tree.rename(ROOT, b"good", ROOT, b"again", 0)  # the listing is made anew
    assert listing(tree) == [b"again"]


def test_a_read_only_tree_refuses_every_change(path: Path) -> None:
    with vaults.mounted(path) as tree:
        put(tree, b"file", b"content")
        mkdir(tree, b"directory")
        tree.setxattr(tree.lookup(ROOT, b"file").node, b"user.a", b"1")
    with vaults.mounted(path, read_only=True) as tree:
        node = tree.lookup(ROOT, b"file").node
        for attempt in (
            lambda: tree.create(ROOT, b"new", 0o644, os.O_RDWR, ME),
            lambda: tree.mknod(ROOT, b"new", stat.S_IFIFO | 0o644, 0, ME),
            lambda: tree.mkdir(ROOT, b"new", 0o755, ME),
            lambda: tree.symlink(ROOT, b"new", b"target", ME),
            lambda: tree.link(node, ROOT, b"new"),
            lambda: tree.unlink(ROOT, b"file"),
            lambda: tree.rmdir(ROOT, b"directory"),
            lambda: tree.rename(ROOT, b"file", ROOT, b"new", 0),
            lambda: tree.open(node, os.O_RDWR),
            lambda: tree.open(node, os.O_WRONLY),
            lambda: tree.open(node, os.O_RDONLY | os.O_TRUNC),
            lambda: tree.setattr(node, Change(mode=0o600)),
            lambda: tree.setattr(node, Change(size=0)),
            lambda: tree.setattr(node, Change(mtime_ns=0)),
            lambda: tree.setxattr(node, b"user.b", b"1"),
            lambda: tree.removexattr(node, b"user.a"),
        ):
            with refused(errno.EROFS):
                attempt()
        assert fetch(tree, b"file") == b"content"
        assert tree.getxattr(node, b"user.a") == b"1"
        assert listing(tree) == [b"directory", b"file"]


def chain(tree: VaultTree, depth: int) -> list[int]:
    nodes = [ROOT]
    for _ in range(depth):
        nodes.append(mkdir(tree, b"d", nodes[-1]))
    return nodes


def test_a_deep_directory_is_found_again_after_its_descriptor_was_closed(
    memory_path: Path,
) -> None:
    with vaults.mounted(vaults.make(memory_path / "vault")) as tree:
        nodes = chain(tree, 700)
        for number in range(300):  # more directories than descriptors are kept
            listing(tree, mkdir(tree, b"%d" % number))
        assert put(tree, b"file", b"deep", nodes[-1])
        assert fetch(tree, b"file", nodes[-1]) == b"deep"


def test_a_deep_chain_can_be_forgotten_from_the_top() -> None:
    table = NodeTable(1000, Geometry(UNIT))
    nodes = [table.root]
    for ino in range(1001, 4001):
        status = os.stat_result((stat.S_IFDIR, ino, 0, 2, 0, 0, 0, 0, 0, 0))
        nodes.append(table.enter(status, nodes[-1], b"d"))
    for node in nodes[1:]:
        table.drop_if_unused(node)
    assert table.nodes() == [table.root]


def test_verify_reaches_deep_directories(memory_path: Path) -> None:
    path = vaults.make(memory_path / "vault")
    with vaults.mounted(path) as tree:
        put(tree, b"file", b"deep", chain(tree, 400)[-1])
    assert vaults.findings(path) == []


def test_a_tree_cannot_be_left_through_a_planted_symlink(path: Path, tmp_path: Path) -> None:
    with vaults.mounted(path) as tree:
        mkdir(tree, b"directory")
    outside = tmp_path / "outside"
    backing = vaults.only(path)
    backing.rename(outside)
    backing.symlink_to(outside)
    with vaults.mounted(path) as tree:
        attr = tree.lookup(ROOT, b"directory")
        assert stat.S_ISLNK(attr.mode)
        with pytest.raises(OSError, match=r"."):
            put(tree, b"file", b"", attr.node)
    assert [each.name for each in outside.iterdir()] == ["cisfs.dir"]


def test_nothing_of_a_closed_tree_stays_open(path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    tree = VaultTree(Vault.open(path, KEY))
    directory = mkdir(tree, b"directory")
    handle, _ = tree.create(directory, b"file", 0o644, os.O_RDWR, ME)
    tree.write(handle, 0, b"x")
    tree.opendir(directory)
    tree.close()
    assert os.listdir("/proc/self/fd") == before
