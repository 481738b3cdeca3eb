"""A store that is kept within a size: what can be fetched again goes, what is in use stays."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from cisfs.errors import FormatError
from cisfs.layer import lazy
from cisfs.layer.eviction import LIMIT, evict, limit_of, make_room, set_limit
from cisfs.layer.origin import Origin
from tests.unit import layers
from tests.unit.partial_layers import UNIT, Pulled, close, pulled

UNITS = 200


def on_disk(layer: Pulled) -> int:
    return layer.path.stat().st_blocks * 512


def filled(base: Path, seed: int, units: int = UNITS) -> Pulled:
    made = pulled(base, UNITS, seed=seed)
    filler = made.filler()
    made.fill(filler, *range(units))
    filler.settle()
    close(filler)
    used(made, seed)
    return made


def used(layer: Pulled, when: int) -> None:
    os.utime(source(layer), (when, when))


def source(layer: Pulled) -> Path:
    return layer.directory / "source.json"


@pytest.fixture
def stored(tmp_path: Path) -> list[Pulled]:
    """Three layers, the first used longest ago, the second not complete."""
    return [filled(tmp_path, 1), filled(tmp_path, 2, UNITS - 50), filled(tmp_path, 3)]


def test_within_the_limit_nothing_happens(tmp_path: Path, stored: list[Pulled]) -> None:
    before = [each.path.read_bytes() for each in stored]
    assert evict(tmp_path / "store", sum(map(on_disk, stored))) == 0
    assert [each.path.read_bytes() for each in stored] == before
    assert not lazy.is_partial(stored[0].path)


def test_the_one_used_longest_ago_goes_first(tmp_path: Path, stored: list[Pulled]) -> None:
    sizes = [on_disk(each) for each in stored]
    limit = sum(sizes) - 100 * UNIT
    freed = evict(tmp_path / "store", limit)
    assert freed >= 100 * UNIT
    assert sum(map(on_disk, stored)) == sum(sizes) - freed <= limit
    assert [on_disk(each) for each in stored[1:]] == sizes[1:]
    assert stored[0].path.stat().st_size == stored[0].geometry.stored_size


def test_what_has_gone_is_missing_and_can_come_again(tmp_path: Path, stored: list[Pulled]) -> None:
    first = stored[0]
    evict(tmp_path / "store", 0)
    assert [source(each).stat().st_mtime for each in stored] == [1, 2, 3]
    for each in stored:
        assert lazy.is_partial(each.path)
        assert on_disk(each) < 400_000
    filler = first.filler()
    assert filler.presence.count(range(UNITS)) == 0
    assert filler.blocks_for(range(UNITS)) == [], "the tree stays"
    first.fill(filler, *range(UNITS))
    filler.settle()
    close(filler)
    with layers.opened(first.path) as opened:
        assert opened.partial is None
        assert opened.reader().read(0, UNITS * UNIT) == first.content


def test_one_in_use_loses_nothing(tmp_path: Path, stored: list[Pulled]) -> None:
    with layers.opened(stored[0].path):
        evict(tmp_path / "store", 0)
        assert not lazy.is_partial(stored[0].path)
    assert lazy.is_partial(stored[2].path)


def test_one_that_is_being_fetched_loses_nothing(tmp_path: Path, stored: list[Pulled]) -> None:
    filler = stored[1].filler()
    evict(tmp_path / "store", 0)
    assert filler.presence.count(range(UNITS)) == UNITS - 50
    close(filler)


def test_one_without_a_source_is_nobodys_to_take(tmp_path: Path, stored: list[Pulled]) -> None:
    source(stored[0]).unlink()
    evict(tmp_path / "store", 0)
    assert not lazy.is_partial(stored[0].path)


def test_one_that_was_loaded_from_a_file_stays(tmp_path: Path, stored: list[Pulled]) -> None:
    """Where there is no network it would be lost; nor does it count."""
    loaded = replace(Origin.read(stored[0].directory), is_loaded=True)
    source(stored[0]).write_bytes(loaded.pack())
    assert Origin.read(stored[0].directory) == loaded
    used(stored[0], 1)
    limit = sum(map(on_disk, stored[1:]))
    assert evict(tmp_path / "store", limit) == 0
    evict(tmp_path / "store", 0)
    assert not lazy.is_partial(stored[0].path)
    assert lazy.is_partial(stored[2].path)


@pytest.mark.parametrize("damaged", ["layer.cis", "present"])
def test_one_that_is_damaged_is_passed_over(
    tmp_path: Path, stored: list[Pulled], damaged: str, caplog: pytest.LogCaptureFixture
) -> None:
    path = stored[0].directory / damaged
    with path.open("r+b" if path.exists() else "xb") as file:
        file.write(b"x" * 5000)
    evict(tmp_path / "store", 0)
    assert lazy.is_partial(stored[2].path)
    assert f"{stored[0].path} cannot be given up: " in caplog.text


def test_to_be_opened_is_to_be_used(tmp_path: Path, stored: list[Pulled]) -> None:
    mtime = stored[0].path.stat().st_mtime_ns
    with layers.opened(stored[0].path):
        pass
    assert stored[0].path.stat().st_mtime_ns == mtime
    evict(tmp_path / "store", sum(map(on_disk, stored)) - UNIT)
    assert not lazy.is_partial(stored[0].path)
    filler = stored[1].filler()
    assert filler.presence.count(range(UNITS)) < UNITS - 50
    close(filler)


def test_no_store_at_all(tmp_path: Path) -> None:
    assert evict(tmp_path / "nothing", 0) == 0


def test_the_limit_is_kept_with_the_store(tmp_path: Path, stored: list[Pulled]) -> None:
    store, sizes = tmp_path / "store", [on_disk(each) for each in stored]
    assert limit_of(store) == 0
    assert make_room(store, 1 << 40) == 0, "no limit"
    set_limit(store, sum(sizes))
    assert limit_of(store) == sum(sizes)
    assert make_room(store, 0) == 0
    freed = make_room(store, 50 * UNIT)
    assert 50 * UNIT <= freed < sizes[0]
    assert sum(map(on_disk, stored)) == sum(sizes) - freed
    assert make_room(store, 1 << 40) > 0, "more than the limit: all that is not in use goes"
    assert all(on_disk(each) < 400_000 for each in stored)
    set_limit(store, 0)
    assert make_room(store, 1 << 40) == 0


@pytest.mark.parametrize("text", ["", "20G", "-1", "1" * 20, "0x10"])
def test_a_limit_that_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / LIMIT).write_text(text)
    with pytest.raises(FormatError, match="limit is no number of bytes"):
        limit_of(tmp_path)
