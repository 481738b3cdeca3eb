"""Files through the tree: opening, unlinked ones, truncation, attributes; damage names its file."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cisfs.errors import CisfsError, FormatError, IntegrityError
from cisfs.layer.tree import ROOT, Change, VaultTree
from tests.unit import vaults
from tests.unit.vaults import ME, UNIT, content, fetch, listing, put


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return vaults.make(tmp_path / "vault")


@pytest.fixture
def tree(path: Path) -> Iterator[VaultTree]:
    with vaults.mounted(path) as tree:
        yield tree


def refused(errno_expected: int) -> pytest.RaisesExc[OSError]:
    return pytest.raises(OSError, check=lambda error: error.errno == errno_expected)


def test_an_unlinked_file_lives_until_it_is_closed(path: Path, tree: VaultTree) -> None:
    handle, attr = tree.create(ROOT, b"file", 0o600, os.O_RDWR, ME)
    tree.write(handle, 0, b"a" * UNIT)
    tree.unlink(ROOT, b"file")
    assert listing(tree) == []
    assert vaults.stored(path) == []
    tree.write(handle, UNIT, b"b" * 10)
    assert bytes(tree.read(handle, UNIT - 1, 100)) == b"a" + b"b" * 10
    tree.setattr(attr.node, Change(size=5, mode=0o640, mtime_ns=9))
    seen = tree.getattr(attr.node)
    assert (seen.size, seen.nlink, stat.S_IMODE(seen.mode), seen.mtime_ns) == (5, 0, 0o640, 9)
    tree.setxattr(attr.node, b"user.a", b"1")
    assert tree.getxattr(attr.node, b"user.a") == b"1"
    tree.fsync(handle, datasync=False)
    other = put(tree, b"file", b"another")
    assert other != attr.node
    assert bytes(tree.read(handle, 0, 100)) == b"a" * 5
    tree.release(handle)
    tree.forget(attr.node, 1)
    with refused(errno.ESTALE):
        tree.getattr(attr.node)


def test_a_replaced_file_lives_until_it_is_closed(tree: VaultTree) -> None:
    node = put(tree, b"target", b"old")
    put(tree, b"source", b"new")
    handle = tree.open(node, os.O_RDONLY)
    tree.rename(ROOT, b"source", ROOT, b"target", 0)
    assert bytes(tree.read(handle, 0, 10)) == b"old"
    assert fetch(tree, b"target") == b"new"
    tree.release(handle)


def test_opening_with_o_trunc_empties(tree: VaultTree) -> None:
    node = put(tree, b"file", b"x" * 5000)
    handle = tree.open(node, os.O_WRONLY | os.O_TRUNC)
    assert tree.getattr(node).size == 0
    assert tree.write(handle, 0, b"new") == 3
    tree.release(handle)
    assert fetch(tree, b"file") == b"new"


def test_creating_what_is_there_opens_it(tree: VaultTree) -> None:
    node = put(tree, b"file", b"there")
    handle, attr = tree.create(ROOT, b"file", 0o644, os.O_RDWR, ME)
    assert (attr.node, attr.size) == (node, 5)
    assert bytes(tree.read(handle, 0, 10)) == b"there"
    tree.release(handle)
    handle, attr = tree.create(ROOT, b"file", 0o644, os.O_RDWR | os.O_TRUNC, ME)
    assert attr.size == 0
    tree.release(handle)


def test_a_file_opened_for_reading_can_be_opened_for_writing_too(tree: VaultTree) -> None:
    node = put(tree, b"file", b"old content")
    tree.forget(node, 1)
    node = tree.lookup(ROOT, b"file").node
    reader = tree.open(node, os.O_RDONLY)
    assert bytes(tree.read(reader, 0, 3)) == b"old"
    writer = tree.open(node, os.O_WRONLY)
    tree.write(writer, 0, b"new")
    assert bytes(tree.read(reader, 0, 100)) == b"new content"
    tree.release(writer)
    assert bytes(tree.read(reader, 0, 100)) == b"new content"
    tree.release(reader)


def test_a_file_of_mode_0_can_be_written_through_its_first_handle(tree: VaultTree) -> None:
    handle, attr = tree.create(ROOT, b"file", 0o000, os.O_RDWR, ME)
    tree.write(handle, 0, b"content")
    assert stat.S_IMODE(tree.getattr(attr.node).mode) == 0
    tree.release(handle)


def test_holes_read_as_zeros_and_cost_nothing(path: Path, tree: VaultTree) -> None:
    node = put(tree, b"file", b"start")
    tree.setattr(node, Change(size=1 << 40))
    handle = tree.open(node, os.O_RDWR)
    tree.write(handle, 1 << 33, b"middle")
    attr = tree.getattr(node)
    assert attr.size == 1 << 40
    assert attr.blocks < 1000  # a block for each marker, of which a hole has at most two a level
    assert bytes(tree.read(handle, (1 << 33) - 3, 12)) == b"\0\0\0middle\0\0\0"
    assert bytes(tree.read(handle, (1 << 40) - 2, 10)) == b"\0\0"
    tree.release(handle)
    assert vaults.only(path).stat().st_blocks == attr.blocks


def test_files_past_4_gib_are_written_where_they_say(tree: VaultTree) -> None:
    node = put(tree, b"file", b"")
    handle = tree.open(node, os.O_RDWR)
    for at in (2**32 - 5, 2**32 + 3 * UNIT, 5):
        tree.write(handle, at, b"at %d" % at)
    for at in (2**32 - 5, 2**32 + 3 * UNIT, 5):
        said = b"at %d" % at
        assert bytes(tree.read(handle, at, len(said))) == said
    tree.release(handle)


def test_a_file_can_not_be_longer_than_any(tree: VaultTree) -> None:
    node = put(tree, b"file", b"content")
    with refused(errno.EFBIG):
        tree.setattr(node, Change(size=2**62 + 1))
    assert content(tree, node) == b"content"


def test_a_directory_or_link_has_no_content(tree: VaultTree) -> None:
    node = tree.mkdir(ROOT, b"directory", 0o755, ME).node
    with refused(errno.EISDIR):
        tree.setattr(node, Change(size=0))
    link = tree.symlink(ROOT, b"link", b"target", ME).node
    with refused(errno.ELOOP):
        tree.open(link, os.O_RDONLY)


# -- extended attributes -------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["file", "open file", "directory", "root"])
def test_attributes_come_and_go(path: Path, kind: str) -> None:
    with vaults.mounted(path) as tree:
        node = ROOT
        if kind == "directory":
            node = tree.mkdir(ROOT, b"thing", 0o755, ME).node
        elif kind != "root":
            node = put(tree, b"thing", b"content")
        handle = tree.open(node, os.O_RDONLY) if kind == "open file" else None
        assert tree.listxattr(node) == []
        with refused(errno.ENODATA):
            tree.getxattr(node, b"user.a")
        for name, value in [(b"user.a", b"1"), (b"trusted.b", b""), (b"user.a", b"again")]:
            tree.setxattr(node, name, value)
            assert tree.getxattr(node, name) == value
        assert sorted(tree.listxattr(node)) == [b"trusted.b", b"user.a"]
        tree.removexattr(node, b"trusted.b")
        with refused(errno.ENODATA):
            tree.removexattr(node, b"trusted.b")
        if handle is not None:
            tree.release(handle)
    with vaults.mounted(path, read_only=True) as tree:
        node = ROOT if kind == "root" else tree.lookup(ROOT, b"thing").node
        assert tree.listxattr(node) == [b"user.a"]
        assert tree.getxattr(node, b"user.a") == b"again"
        with refused(errno.ENODATA):
            tree.getxattr(node, b"user.b")


def test_neither_name_nor_value_of_an_attribute_is_stored(path: Path, tree: VaultTree) -> None:
    node = put(tree, b"file", b"")
    tree.setxattr(node, b"user.visible", b"visible value")
    backing = vaults.only(path)
    (stored,) = os.listxattr(backing)
    assert stored.startswith("user.cisfs.")
    assert "visible" not in stored
    assert b"visible" not in os.getxattr(backing, stored)


@pytest.mark.parametrize("name", [b"", b"user." + b"n" * 251])
def test_an_attribute_name_out_of_range_is_refused(tree: VaultTree, name: bytes) -> None:
    node = put(tree, b"file", b"")
    tree.setxattr(node, b"user." + b"n" * 250, b"fits")
    for attempt in (
        lambda: tree.setxattr(node, name, b"1"),
        lambda: tree.getxattr(node, name),
        lambda: tree.removexattr(node, name),
    ):
        with refused(errno.ERANGE):
            attempt()


# -- damage --------------------------------------------------------------------------------

Damage = Callable[[Path], object]


def set_xattr(path: Path, value: Callable[[bytes], bytes]) -> None:
    (name,) = os.listxattr(path)
    os.setxattr(path, name, value(os.getxattr(path, name)))


FILE_DAMAGE: list[tuple[str, Damage, type[CisfsError], str]] = [
    ("header", lambda file: vaults.flip(file, 0), FormatError, "file header damaged: bad magic"),
    (
        "id",
        lambda file: vaults.flip(file, 20),
        IntegrityError,
        "the end of the file, or its header",
    ),
    ("unit", lambda file: vaults.flip(file, 32 + 4112 + 9), IntegrityError, "unit 1 was altered"),
    ("tag", lambda file: vaults.flip(file, 32 + 4096), IntegrityError, "unit 0 was altered"),
    (
        "end",
        lambda file: vaults.flip(file, file.stat().st_size - 32),
        IntegrityError,
        "the end of the file, or its header, was altered",
    ),
    (
        "truncated",
        lambda file: os.truncate(file, 4500),
        IntegrityError,
        "the end of the file, or its header, was altered",
    ),
    ("cut", lambda file: os.truncate(file, 4180), FormatError, "4180 bytes cannot be a whole"),
    ("stub", lambda file: os.truncate(file, 10), FormatError, "file header truncated to 10 bytes"),
    ("empty", lambda file: os.truncate(file, 0), FormatError, "file header truncated to 0 bytes"),
]


@pytest.mark.parametrize(
    ("damage", "error", "words"),
    [each[1:] for each in FILE_DAMAGE],
    ids=[each[0] for each in FILE_DAMAGE],
)
def test_a_damaged_file_is_named(
    path: Path, damage: Damage, error: type[CisfsError], words: str
) -> None:
    with vaults.mounted(path) as tree:
        directory = tree.mkdir(ROOT, b"directory", 0o755, ME).node
        put(tree, b"file", b"x" * (3 * UNIT), directory)
    damage(vaults.only(vaults.only(path)))
    with vaults.mounted(path) as tree:
        directory = tree.lookup(ROOT, b"directory").node
        assert listing(tree, directory) == [b"file"]
        with pytest.raises(CisfsError, match=f"^/directory/file: {words}") as caught:
            fetch(tree, b"file", directory)
        assert type(caught.value) is error
        tree.unlink(directory, b"file")  # it can always be removed
        assert listing(tree, directory) == []


def test_the_intact_units_of_a_damaged_file_can_be_read(path: Path) -> None:
    with vaults.mounted(path) as tree:
        put(tree, b"file", b"x" * (3 * UNIT))
    vaults.flip(vaults.only(path), 32 + 4112 + 9)
    with vaults.mounted(path) as tree:
        node = tree.lookup(ROOT, b"file").node
        handle = tree.open(node, os.O_RDWR)
        assert bytes(tree.read(handle, 0, UNIT)) == b"x" * UNIT
        assert bytes(tree.read(handle, 2 * UNIT, UNIT)) == b"x" * UNIT
        for attempt in (
            lambda: tree.read(handle, UNIT - 1, 2),
            lambda: tree.write(handle, UNIT + 5, b"part"),
            lambda: tree.write(handle, 0, b"y" * (UNIT + 1)),
            lambda: tree.setattr(node, Change(size=UNIT + 1)),
        ):
            with pytest.raises(IntegrityError, match=r"^/file: unit 1 was altered"):
                attempt()
        tree.write(handle, UNIT, b"y" * UNIT)  # replaced whole, it is good again
        assert bytes(tree.read(handle, UNIT - 1, UNIT + 2)) == b"x" + b"y" * UNIT + b"x"
        tree.release(handle)


def test_a_damaged_directory_id_is_named(path: Path) -> None:
    with vaults.mounted(path) as tree:
        put(tree, b"file", b"", tree.mkdir(ROOT, b"directory", 0o755, ME).node)
    vaults.flip(vaults.only(path) / "cisfs.dir", 3)
    with vaults.mounted(path) as tree:
        node = tree.lookup(ROOT, b"directory").node
        words = "^/directory: the directory's id is missing or damaged"
        for attempt in (lambda: tree.lookup(node, b"file"), lambda: listing(tree, node)):
            with pytest.raises(FormatError, match=words):
                attempt()


def test_another_directory_id_hides_what_is_inside(path: Path) -> None:
    with vaults.mounted(path) as tree:
        put(tree, b"file", b"", tree.mkdir(ROOT, b"directory", 0o755, ME).node)
    vaults.flip(vaults.only(path) / "cisfs.dir", 20)
    with vaults.mounted(path) as tree:
        node = tree.lookup(ROOT, b"directory").node
        assert listing(tree, node) == []
        with pytest.raises(FileNotFoundError):
            tree.lookup(node, b"file")
        with refused(errno.ENOTEMPTY):
            tree.rmdir(ROOT, b"directory")


def test_a_damaged_symlink_is_named(path: Path) -> None:
    with vaults.mounted(path) as tree:
        tree.symlink(ROOT, b"link", b"target", ME)
    link = vaults.only(path)
    text = os.readlink(link)
    for bad, error in [
        (text[:-1] + ("A" if text[-1] != "A" else "Q"), CisfsError),
        ("/etc/passwd", FormatError),
        ("AAAA", IntegrityError),
        (text + "AAAA", IntegrityError),
    ]:
        link.unlink()
        link.symlink_to(bad)
        with vaults.mounted(path) as tree, pytest.raises(error, match=r"^/link: "):
            tree.readlink(tree.lookup(ROOT, b"link").node)


def test_a_damaged_attribute_is_named(path: Path) -> None:
    with vaults.mounted(path) as tree:
        tree.setxattr(put(tree, b"file", b""), b"user.a", b"value")
    backing = vaults.only(path)
    set_xattr(backing, lambda value: value[:-1] + bytes([value[-1] ^ 1]))
    with vaults.mounted(path) as tree:
        node = tree.lookup(ROOT, b"file").node
        words = "^/file: an encrypted extended attribute was altered or moved"
        for attempt in (lambda: tree.getxattr(node, b"user.a"), lambda: tree.listxattr(node)):
            with pytest.raises(IntegrityError, match=words):
                attempt()
        tree.removexattr(node, b"user.a")
        assert tree.listxattr(node) == []


def test_a_damaged_header_is_named_for_attributes_too(path: Path) -> None:
    with vaults.mounted(path) as tree:
        tree.setxattr(put(tree, b"file", b""), b"user.a", b"value")
    vaults.flip(vaults.only(path), 0)
    with vaults.mounted(path) as tree:
        node = tree.lookup(ROOT, b"file").node
        for attempt in (
            lambda: tree.getxattr(node, b"user.a"),
            lambda: tree.setxattr(node, b"user.a", b""),
            lambda: tree.removexattr(node, b"user.a"),
        ):
            with pytest.raises(FormatError, match=r"^/file: file header damaged: bad magic"):
                attempt()


def test_attributes_cannot_be_exchanged(path: Path) -> None:
    with vaults.mounted(path) as tree:
        for name in (b"file", b"other"):
            node = put(tree, name, b"")
            tree.setxattr(node, b"user.a", b"value of a")
            tree.setxattr(node, b"user.b", b"value of b")
    one, other = vaults.stored(path)
    a, b = os.listxattr(one)
    held = os.getxattr(one, a), os.getxattr(one, b)
    os.setxattr(one, a, held[1])
    os.setxattr(one, b, held[0])
    for stored, value in zip((a, b), held, strict=True):
        os.setxattr(other, stored, value)  # under names that are none in the other file
    refusals: list[str] = []
    with vaults.mounted(path) as tree:
        for file in (b"file", b"other"):
            node = tree.lookup(ROOT, file).node
            for name in (b"user.a", b"user.b"):
                # The one that was overwritten from outside says so; the other is untouched.
                try:
                    assert tree.getxattr(node, name) == b"value of " + name[-1:]
                except IntegrityError as error:
                    said = str(error)
                    refusals.append(said)
    assert len(refusals) == 2
    assert len({said.split(": ")[0] for said in refusals}) == 1
