"""`verify_sealed` names every damaged unit and block of the tree once, in order."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cisfs.layer.sealed_verify import verify_sealed
from tests.unit import layers, sealed_terabyte
from tests.unit.layers import UNIT
from tests.unit.test_forked import no_child_is_left
from tests.unit.vaults import KEY, flip

UNITS = 128 * 5 + 3
IMAGE = layers.image(UNITS * UNIT)
TREE = 131072 + UNITS * UNIT  # six blocks of level 0, and the top

pytestmark = pytest.mark.parametrize("workers", [1, 3])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("verify") / "layer.cis"
    layers.seal(path, IMAGE)
    return path


@pytest.fixture
def path(whole: Path, memory_path: Path) -> Iterator[Path]:
    (memory_path / "layer.cis").write_bytes(whole.read_bytes())
    yield memory_path / "layer.cis"
    assert no_child_is_left()


def said(path: Path, workers: int) -> list[tuple[int | None, str]]:
    with layers.opened(path) as layer:
        found = list(verify_sealed(layer, workers))
    assert {each.path for each in found} <= {path.name}
    assert not any(each.mended for each in found)
    return [(each.unit, each.problem) for each in found]


def lost(first: int, last: int) -> tuple[None, str]:
    return None, (
        f"a block of the hash tree was altered: units {first} to {last} cannot be checked "
        f"(image bytes {first * UNIT} to {(last + 1) * UNIT - 1})"
    )


def test_a_whole_layer_is_clean(path: Path, workers: int) -> None:
    assert said(path, workers) == []


def test_each_damaged_unit_is_named_in_order(path: Path, workers: int) -> None:
    damaged = [0, 1, 127, 128, 300, UNITS - 1]
    for unit in reversed(damaged):
        flip(path, 131072 + unit * UNIT + unit)
    assert said(path, workers) == [(unit, "altered") for unit in damaged]


def test_a_damaged_block_of_the_tree_is_named_once(path: Path, workers: int) -> None:
    flip(path, 131072 + 5)
    flip(path, TREE + 4096 + 7)
    flip(path, TREE + 4096 * 5 + 4095)
    flip(path, 131072 + (UNITS - 4) * UNIT)
    expected = [(0, "altered"), lost(128, 255), (UNITS - 4, "altered"), lost(640, 642)]
    assert said(path, workers) == expected
    flip(path, TREE + 4096 * 6)
    assert said(path, workers) == [lost(0, UNITS - 1)]


def test_a_layer_cut_off_while_it_is_open(path: Path, workers: int) -> None:
    with layers.opened(path) as layer:
        os.truncate(path, TREE + 3 * 4096)
        found = [(each.unit, each.problem) for each in verify_sealed(layer, workers)]
    assert found == [lost(0, UNITS - 1)]


def test_what_the_disk_cannot_read_is_named(
    path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real_preadv, real_pread = os.preadv, os.pread

    def preadv(fd: int, buffers: list[memoryview], offset: int) -> int:
        if offset == 131072 + 9 * UNIT:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        if offset == 131072 + 11 * UNIT:  # as when it is truncated at this moment
            return real_preadv(fd, buffers, offset) - 1
        return real_preadv(fd, buffers, offset)

    def pread(fd: int, length: int, offset: int) -> bytes:
        if offset == TREE + 4096:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real_pread(fd, length, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    monkeypatch.setattr(os, "pread", pread)
    assert said(path, workers) == [
        (9, "cannot be read: Input/output error"),
        (11, "cut off"),
        (None, "the hashes of units 128 to 255 cannot be read: Input/output error"),
    ]


def test_it_can_be_stopped_early(path: Path, workers: int) -> None:
    for unit in range(UNITS):
        flip(path, 131072 + unit * UNIT)
    with layers.opened(path) as layer:
        findings = verify_sealed(layer, workers)
        assert next(findings).unit == 0
        del findings
        assert no_child_is_left()


def test_a_tree_of_three_levels(tmp_path: Path, workers: int) -> None:
    """A block of the middle level is found below each of its 128, and said once."""
    path = tmp_path / "layer.cis"
    size = 129 * 128 * sealed_terabyte.UNIT
    geometry = sealed_terabyte.build(path, KEY, image_size=size)
    assert geometry.level_blocks == (129, 2, 1)
    flip(path, geometry.block_offset(129))
    flip(path, geometry.unit_offset(128 * 128 + 5))
    with layers.opened(path) as layer:
        first, second = verify_sealed(layer, workers)
    assert "units 0 to 16383 cannot be checked" in first.problem
    assert (second.unit, second.problem) == (128 * 128 + 5, "altered")
