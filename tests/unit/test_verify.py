"""`verify` names every damaged thing; with salvage it mends what a crash left and nothing else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cisfs.layer.tree import ROOT
from tests.unit import vaults
from tests.unit.vaults import ME, UNIT, fetch, findings, listing, put

CONTENT = b"a" * UNIT + b"b" * UNIT + b"c" * 100


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = vaults.make(tmp_path / "vault")
    with vaults.mounted(path) as tree:
        directory = tree.mkdir(ROOT, b"directory", 0o755, ME).node
        node = put(tree, b"file", CONTENT, directory)
        tree.setxattr(node, b"user.a", b"value")
        tree.symlink(directory, b"link", b"target", ME)
        tree.link(node, ROOT, b"n" * 255)
    return path


def stored_file(path: Path) -> Path:
    return next(
        each
        for each in path.rglob("*")
        if each.is_file() and each.stat().st_size > UNIT and each.name != "cisfs.journal"
    )


def stored_directory(path: Path) -> Path:
    return next(each for each in vaults.stored(path) if each.is_dir())


def said(path: Path, *, salvage: bool = False) -> list[tuple[str, int | None, str, bool]]:
    return [
        (each.path, each.unit, each.problem, each.mended)
        for each in findings(path, salvage=salvage)
    ]


def test_a_whole_vault_is_clean(path: Path) -> None:
    assert said(path) == []
    assert said(path, salvage=True) == []


def test_each_damaged_unit_is_named_once(path: Path) -> None:
    vaults.flip(stored_file(path), 40)
    vaults.flip(stored_file(path), 32 + 2 * 4112 + 5)
    for salvage in (False, True, False):
        ((one, first, problem, mended), (other, second, *_)) = said(path, salvage=salvage)
        assert one == other
        assert one in {"/directory/file", "/" + "n" * 255}
        assert (first, second, problem, mended) == (0, 2, "altered", False)


def test_damaged_names_links_attributes_and_directories_are_named(path: Path) -> None:
    directory = stored_directory(path)
    link = next(each for each in directory.iterdir() if each.is_symlink())
    link.unlink()
    link.symlink_to("AAAA")
    (directory / "foreign").touch()
    (path / "with.dot").touch()
    os.setxattr(stored_file(path), "user.cisfs.AAAA", b"x" * 40)
    os.setxattr(directory, "user.cisfs.AAAA", b"x" * 40)
    problems = {(where, problem) for where, _, problem, _ in said(path)}
    assert len(problems) == 5
    places = {where for where, _ in problems}
    assert {"/directory/link", "/directory/foreign", "/with.dot", "/directory"} < places
    vaults.flip(directory / "cisfs.dir", 0)
    assert any(
        where == "/directory" and "id is missing or damaged; nothing in it can be read" in problem
        for where, _, problem, _ in said(path)
    )


@pytest.mark.parametrize("planted", ["symlink", "directory"])
def test_a_planted_object_does_not_end_the_walk(path: Path, planted: str) -> None:
    (beside,) = path.glob("cisfs.name.*")
    beside.unlink()
    if planted == "symlink":
        beside.symlink_to("/etc/passwd")
    else:
        beside.mkdir()
    vaults.flip(stored_file(path), 40)
    found = said(path)
    assert any("stored name" in problem for _, _, problem, _ in found)
    assert any(unit == 0 for _, unit, _, _ in found)


def test_stray_long_names_are_said_and_salvaged(path: Path) -> None:
    (path / "cisfs.name.AAAA").write_bytes(b"left by a crash")
    assert said(path) == [("/cisfs.name.AAAA", None, "stray long name", False)]
    assert said(path, salvage=True) == [("/cisfs.name.AAAA", None, "stray long name", True)]
    assert said(path) == []


def test_a_file_without_a_header_becomes_an_empty_one(path: Path) -> None:
    (attribute,) = os.listxattr(stored_file(path))
    os.removexattr(stored_file(path), attribute)  # none is set before the header is written
    os.truncate(stored_file(path), 0)
    ((_, unit, problem, mended),) = said(path)
    assert (unit, problem, mended) == (None, "file header truncated to 0 bytes", False)
    ((_, _, _, mended),) = said(path, salvage=True)
    assert mended
    assert said(path) == []
    with vaults.mounted(path) as tree:
        assert fetch(tree, b"n" * 255) == b""


def test_a_torn_end_is_cut_back_to_whole_units(path: Path) -> None:
    os.truncate(stored_file(path), 32 + 2 * 4112 + 20)
    assert [mended for *_, mended in said(path)] == [False]
    assert [mended for *_, mended in said(path, salvage=True)] == [True]
    assert said(path) == []
    with vaults.mounted(path) as tree:
        assert vaults.same(fetch(tree, b"n" * 255), CONTENT[: 2 * UNIT])


@pytest.mark.parametrize("place", [0, 10, 16, 31])
def test_salvage_does_not_empty_a_file_whose_header_is_damaged(path: Path, place: int) -> None:
    """A header restored by hand or from a backup must still find its units there."""
    backing = stored_file(path)
    vaults.flip(backing, place)
    assert said(path)
    assert said(path, salvage=True)
    vaults.flip(backing, place)
    with vaults.mounted(path) as tree:
        assert vaults.same(fetch(tree, b"n" * 255), CONTENT)


def test_salvage_gives_an_empty_directory_an_id(path: Path) -> None:
    with vaults.mounted(path) as tree:
        tree.mkdir(ROOT, b"empty", 0o755, ME)
    empty = next(
        each for each in vaults.stored(path) if each.is_dir() and len(list(each.iterdir())) == 1
    )
    (empty / "cisfs.dir").unlink()
    assert said(path) == [("/empty", None, "the empty directory has no id", False)]
    assert said(path, salvage=True) == [("/empty", None, "the empty directory has no id", True)]
    assert said(path) == []
    with vaults.mounted(path) as tree:
        assert listing(tree) == [b"directory", b"empty", b"n" * 255]


def test_long_holes_are_passed_quickly_and_checked(path: Path) -> None:
    with vaults.mounted(path) as tree:
        node = put(tree, b"sparse", b"start")
        handle = tree.open(node, os.O_RDWR)
        tree.write(handle, 1 << 40, b"end")
        tree.release(handle)
    assert said(path) == []
    sparse = max(vaults.stored(path), key=lambda each: each.stat().st_size)
    stored = 32 + 4112 * ((1 << 40) // UNIT)
    vaults.flip(sparse, stored + 1)
    assert [(where, unit) for where, unit, _, _ in said(path)] == [("/sparse", (1 << 40) // UNIT)]
