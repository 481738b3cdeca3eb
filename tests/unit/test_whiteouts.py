"""Whiteouts of OCI layers, in tars and in directories, as overlayfs will have them."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from cisfs.build.directory import index_directory
from cisfs.build.index import Entry, Index
from cisfs.build.whiteouts import OPAQUE_XATTR
from cisfs.errors import UsageError
from tests.unit import tars
from tests.unit.tars import directory, entries, file, gnu_long, header, link, pax, tar

# Given what a source holds, in order; a name that ends in a slash is a directory.
Layer = Callable[..., Index]


def from_tar(names: tuple[str, ...], scratch: Path) -> Index:
    """The names as members, in this order."""
    members = []
    for name in map(str.encode, names):
        make = directory if name.endswith(b"/") else file
        members.append(gnu_long(name, b"L") + make(name))
    return tars.index(tar(*members), scratch)


def from_directory(names: tuple[str, ...], place: Path) -> Index:
    """The names as files."""
    root = place / "layer"
    root.mkdir()
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(exist_ok=True) if name.endswith("/") else path.touch()
    return index_directory(root)


@pytest.fixture(params=[from_tar, from_directory], ids=["tar", "directory"])
def layer(request: pytest.FixtureRequest, tmp_path: Path) -> Layer:
    """The index of a layer with these names, by either way."""
    return lambda *names: request.param(names, tmp_path)


def is_whiteout(entry: Entry) -> bool:
    return entry.mode == stat.S_IFCHR and entry.rdev == 0


def is_opaque(entry: Entry) -> bool:
    return entry.xattrs.get(OPAQUE_XATTR) == b"y"


def test_a_whiteout_becomes_a_device_of_the_name(layer: Layer) -> None:
    found = entries(layer("d/", "d/.wh.gone", ".wh.top"))
    assert set(found) == {b"", b"d", b"d/gone", b"top"}
    assert is_whiteout(found[b"d/gone"])
    assert is_whiteout(found[b"top"])
    assert not any(is_opaque(each) for each in found.values())


def test_an_opaque_mark_becomes_an_attribute_of_its_directory(layer: Layer) -> None:
    found = entries(layer("d/", "d/kept", "d/.wh..wh..opq", "e/", "e/f"))
    assert set(found) == {b"", b"d", b"d/kept", b"e", b"e/f"}
    assert is_opaque(found[b"d"])
    assert not is_opaque(found[b"e"])


def test_the_root_can_be_opaque(layer: Layer) -> None:
    assert is_opaque(layer(".wh..wh..opq").root)


@pytest.mark.parametrize("order", [1, -1])
def test_an_entry_of_the_same_layer_is_not_deleted(layer: Layer, order: int) -> None:
    found = entries(layer(*("f", ".wh.f")[::order]))
    assert set(found) == {b"", b"f"}
    assert stat.S_ISREG(found[b"f"].mode)


@pytest.mark.parametrize("order", [1, -1])
def test_a_directory_of_the_same_layer_hides_all_that_is_below_it(layer: Layer, order: int) -> None:
    found = entries(layer(*("d/", "d/new", ".wh.d")[::order]))
    assert set(found) == {b"", b"d", b"d/new"}
    assert stat.S_ISDIR(found[b"d"].mode)
    assert is_opaque(found[b"d"])


def test_a_directory_that_is_only_implied_hides_as_well(tmp_path: Path) -> None:
    found = entries(from_tar(("d/new", ".wh.d"), tmp_path))
    assert is_opaque(found[b"d"])


def test_a_whiteout_implies_the_directories_above_it(tmp_path: Path) -> None:
    found = entries(from_tar(("a/b/.wh.gone", "c/.wh..wh..opq"), tmp_path))
    assert set(found) == {b"", b"a", b"a/b", b"a/b/gone", b"c"}
    assert found[b"a"].mode == stat.S_IFDIR | 0o755
    assert is_opaque(found[b"c"])


@pytest.mark.parametrize("order", [1, -1])
def test_opaque_stays_what_is_described_again(tmp_path: Path, order: int) -> None:
    described = pax([(b"SCHILY.xattr.user.x", b"1")]) + header(b"d", b"5", mode=0o700)
    members = [described, file(b"d/.wh..wh..opq")][::order]
    d = entries(tars.index(tar(*members), tmp_path))[b"d"]
    assert (d.xattrs, d.mode) == ({b"user.x": b"1", OPAQUE_XATTR: b"y"}, stat.S_IFDIR | 0o700)


def test_a_whiteout_keeps_owner_and_time_and_nothing_else(tmp_path: Path) -> None:
    member = file(b".wh.f", b"content", mode=0o4755, uid=1, gid=2, mtime=3)
    f = entries(tars.index(tar(member, file(b"after")), tmp_path))[b"f"]
    assert (f.mode, f.uid, f.gid, f.mtime_ns) == (stat.S_IFCHR, 1, 2, 3_000_000_000)
    assert (f.size, f.content) == (0, None)


def test_the_whiteouts_of_aufs_are_hard_links_to_nothing(tmp_path: Path) -> None:
    found = entries(tars.index(tar(link(b".wh.f", b".wh..wh.aufs")), tmp_path))
    assert is_whiteout(found[b"f"])


def test_what_aufs_kept_for_itself_is_left_out(layer: Layer) -> None:
    found = entries(layer(".wh..wh.plnk/", ".wh..wh.plnk/1.2", ".wh..wh.aufs", "f", "d/.wh..wh.x"))
    assert set(found) - {b"d"} == {b"", b"f"}


def test_a_device_0_0_in_a_tar_is_a_whiteout_already(tmp_path: Path) -> None:
    found = entries(tars.index(tar(header(b"f", b"3", mode=0o600)), tmp_path))
    assert (found[b"f"].mode, found[b"f"].rdev) == (stat.S_IFCHR | 0o600, 0)


@pytest.mark.parametrize("name", [".wh.", ".wh..", ".wh...", "d/.wh..", ".wh.d/"])
def test_a_whiteout_of_nothing_possible_is_refused(layer: Layer, name: str) -> None:
    with pytest.raises(UsageError, match=r"\.wh\..*is no proper whiteout"):
        layer(name)


@pytest.mark.parametrize("names", [(".wh.d/f",), ("e/", "e/.wh.d/f/g")])
def test_nothing_can_be_inside_a_whiteout(layer: Layer, names: tuple[str, ...]) -> None:
    with pytest.raises(UsageError, match="whiteout"):
        layer(*names)


def test_a_name_with_wh_inside_is_a_name(layer: Layer) -> None:
    assert set(entries(layer("a.wh.b", ".who", ".wh"))) == {b"", b"a.wh.b", b".who", b".wh"}


def test_a_longest_name_can_be_deleted_up_to_its_prefix(layer: Layer) -> None:
    assert b"n" * 251 in entries(layer(".wh." + "n" * 251))


def test_hard_linked_whiteouts_are_whiteouts_each(tmp_path: Path) -> None:
    (tmp_path / ".wh.a").touch()
    os.link(tmp_path / ".wh.a", tmp_path / ".wh.b")
    found = entries(index_directory(tmp_path))
    assert is_whiteout(found[b"a"])
    assert is_whiteout(found[b"b"])
