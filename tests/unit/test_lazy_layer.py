"""Layers that are not all here: read as far as they are, and filled in with what can be checked."""

from __future__ import annotations

import json
import os
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from cisfs.cli.main import main
from cisfs.errors import AbsentError, BusyError, FormatError, IntegrityError, UntrustedError
from cisfs.format.presence import bit_of_block
from cisfs.format.sealed import LayerHeader
from cisfs.format.sealed_geometry import HEADER_SIZE
from cisfs.format.slotarea import SlotText
from cisfs.keys.credentials import Credential
from cisfs.layer import lazy, presence, slotarea
from cisfs.layer.eviction import evict
from cisfs.layer.filling import claim, runs
from cisfs.layer.origin import Origin
from cisfs.layer.pulled import LAYER
from cisfs.layer.sealed import SealedLayer
from cisfs.layer.sealed_verify import verify_sealed
from tests.unit import layers
from tests.unit.partial_layers import UNIT, Pulled, close, flip, pulled
from tests.unit.vaults import KEY

pytestmark = pytest.mark.slow

UNITS = 300  # three blocks of level 0, and one above


@pytest.fixture
def layer(tmp_path: Path) -> Pulled:
    return pulled(tmp_path, UNITS)


def flipped(data: bytes, at: int = 0) -> bytes:
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


# ---- the store


def test_what_a_pull_begins_with(layer: Pulled) -> None:
    assert lazy.is_partial(layer.path)
    assert sorted(os.listdir(layer.directory)) == ["layer.cis", "present", "source.json"]
    assert layer.path.stat().st_blocks * 512 < 400_000
    assert layer.path.stat().st_size == layer.geometry.stored_size
    assert layer.directory.stat().st_mode & 0o777 == 0o711
    assert layer.directory.parent.stat().st_mode & 0o777 == 0o700
    assert [path.name for path in layer.directory.parent.iterdir()] == [layer.directory.name]
    assert Origin.read(layer.directory).parts == ((layer.digest, len(layer.blob)),)


def test_what_is_there_already_stays(layer: Pulled, tmp_path: Path) -> None:
    filler = layer.filler()
    layer.fill(filler, 3)
    with layer.path.open("rb") as file:
        text = slotarea.read(file.fileno()).text
    made = lazy.create(tmp_path / "store", layer.blob, text, Origin("x", "y", (("z", 1),)))
    assert made == layer.path
    assert not filler.lacks(3)
    assert Origin.read(layer.directory).repository == "a/b"
    close(filler)


def test_what_a_header_claims_is_bounded(layer: Pulled, tmp_path: Path) -> None:
    """It takes no key to make one."""
    header = LayerHeader.parse(layer.blob[:HEADER_SIZE])
    text = SlotText(({"type": "x", "wrapped": "eA=="},))
    huge = replace(header, image_size=1 << 55).pack()
    with pytest.raises(FormatError, match="too large"):
        lazy.create(tmp_path / "other", huge, text, Origin("x", "y", (("z", 1),)))
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("text", [b"", b"[]", b"{}", b'{"registry": 1}', b"\xff"])
def test_a_damaged_source(layer: Pulled, text: bytes) -> None:
    (layer.directory / "source.json").write_bytes(text)
    with pytest.raises(FormatError, match=r"source\.json is damaged"):
        Origin.read(layer.directory)


def test_other_layers_are_not_taken_for_ones_of_a_store(tmp_path: Path) -> None:
    """A file may be called `present` anywhere."""
    path = tmp_path / LAYER
    layers.seal(path, layers.image(UNIT))
    (tmp_path / presence.NAME).write_bytes(b"a present")
    assert not lazy.is_partial(path)
    with layers.opened(path) as opened:
        assert opened.partial is None


@pytest.mark.parametrize("writable", ["layer", "all layers"])
def test_what_others_can_write_is_no_store(layer: Pulled, writable: str) -> None:
    """They would have us open, and give permissions to, what they put a link to."""
    directory = layer.directory if writable == "layer" else layer.directory.parent
    directory.chmod(0o777)
    os.utime(layer.directory / "source.json", (0, 0))
    assert not lazy.is_partial(layer.path)
    with pytest.raises(UntrustedError, match="others can write"), layers.opened(layer.path):
        pass
    assert (layer.directory / "source.json").stat().st_mtime == 0


def test_a_whole_layer_may_be_anywhere(layer: Pulled) -> None:
    layer.directory.chmod(0o777)
    (layer.directory / presence.NAME).unlink()
    with layers.opened(layer.path) as opened:
        assert opened.partial is None


@pytest.mark.parametrize("damage", ["garbage", "other"])
def test_a_damaged_file_of_what_is_here(layer: Pulled, tmp_path: Path, damage: str) -> None:
    (tmp_path / "b").mkdir()
    other = pulled(tmp_path / "b", 1)
    stored = (other.directory / presence.NAME).read_bytes() if damage == "other" else b"x" * 20_000
    (layer.directory / presence.NAME).write_bytes(stored)
    with pytest.raises(FormatError, match="pull"), layers.opened(layer.path):
        pass


def test_a_layer_that_is_replaced_while_it_is_opened(
    layer: Pulled, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is found beside it is about another file."""
    find = lazy.find

    def replaced(path: Path, header: LayerHeader) -> lazy.PartialLayer | None:
        os.replace(tmp_path / "whole-0.cis", path)
        (path.parent / presence.NAME).unlink()
        return find(path, header)

    monkeypatch.setattr(lazy, "find", replaced)
    with pytest.raises(BusyError, match="was replaced just now"), layers.opened(layer.path):
        pass


def test_outside_of_a_store_a_layer_that_is_replaced_is_opened_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rotation may be just at its end: the layer always opens."""
    content = layers.image(8192)
    layers.seal(tmp_path / "mine.cis", content)
    layers.seal(tmp_path / "new.cis", layers.image(4096))
    find = lazy.find

    def replaced(path: Path, header: LayerHeader) -> lazy.PartialLayer | None:
        os.replace(tmp_path / "new.cis", path)
        return find(path, header)

    monkeypatch.setattr(lazy, "find", replaced)
    with layers.opened(tmp_path / "mine.cis") as opened:
        assert opened.reader().read(0, 8192) == content


def test_what_is_missing_is_found_out_before_a_key_is_asked_for(layer: Pulled) -> None:
    """Somebody types a passphrase, and the data comes meanwhile."""
    filler = layer.filler()

    def typed() -> Credential:
        layer.fill(filler, *range(UNITS))
        filler.settle()
        (layer.directory / presence.NAME).unlink()
        return KEY

    opened = SealedLayer.open(layer.path, typed)
    assert opened.partial is not None
    assert opened.reader().read(0, UNITS * UNIT) == layer.content
    opened.close()
    close(filler)


def test_what_a_pull_puts_there_is_not_replaced(layer: Pulled, tmp_path: Path) -> None:
    """A pull broke off there before, or is about to end."""
    with layer.path.open("rb") as file:
        text = slotarea.read(file.fileno()).text
    for path in layer.directory.iterdir():
        path.unlink()
    (layer.directory / "part").touch()
    claimed = claim(layer.directory)
    with pytest.raises(BusyError):
        lazy.create(tmp_path / "store", layer.blob, text, Origin("x", "y", (("z", 1),)))
    os.close(claimed)
    lazy.create(tmp_path / "store", layer.blob, text, Origin("x", "y", (("z", 1),)))
    assert lazy.is_partial(layer.path)


# ---- reading


def test_what_is_here_is_read_and_what_is_not_is_named(layer: Pulled) -> None:
    filler = layer.filler()
    layer.fill(filler, 5, 6, 299)
    with layers.opened(layer.path) as opened:
        reader = opened.reader()
        assert reader.read(5 * UNIT + 10, UNIT) == layer.content[5 * UNIT + 10 :][:UNIT]
        assert reader.read(299 * UNIT, 9 * UNIT) == layer.content[299 * UNIT :]
        assert not reader.read(300 * UNIT, 1)
        with pytest.raises(AbsentError, match="units 4 to 5 has not been fetched") as found:
            reader.read(5 * UNIT - 1, 2)
        assert (found.value.units, found.value.doubtful) == (range(4, 6), False)
        layer.fill(filler, 4)
        assert reader.read(5 * UNIT - 1, 2) == layer.content[5 * UNIT - 1 :][:2]
    close(filler)


def test_damage_is_doubted_and_mended(layer: Pulled) -> None:
    filler = layer.filler()
    layer.fill(filler, 5, 6)
    stored = layer.path.stat()
    flip(layer.path, layer.geometry.unit_offset(5) + 9)
    with layers.opened(layer.path) as opened:
        reader = opened.reader()
        with pytest.raises(AbsentError, match="unit 5 has been damaged") as found:
            reader.read(5 * UNIT, 1)
        assert found.value.doubtful
        filler.doubt(range(5, 7))
        assert (filler.lacks(5), filler.lacks(6)) == (True, False)
        layer.fill(filler, 5)
        assert reader.read(5 * UNIT, 2 * UNIT) == layer.content[5 * UNIT :][: 2 * UNIT]
    assert layer.path.stat().st_size == stored.st_size
    close(filler)


@pytest.mark.parametrize("block", [0, 3])
def test_damage_in_the_tree_is_doubted_and_mended(layer: Pulled, block: int) -> None:
    filler = layer.filler()
    layer.fill(filler, 5, 299)
    flip(layer.path, layer.geometry.block_offset(block) + 40)
    with layers.opened(layer.path) as opened:
        with pytest.raises(AbsentError) as found:
            opened.reader().read(5 * UNIT, 1)
        assert found.value.doubtful
        filler.doubt(range(5, 6))
        assert filler.lacks(5)
        assert filler.lacks(299) == (block == 3)
        layer.fill(filler, 5, 299)
        reader = opened.reader()
        for unit in (5, 299):
            assert reader.read(unit * UNIT, UNIT) == layer.content[unit * UNIT :][:UNIT]
    close(filler)


@pytest.mark.parametrize("block", [0, 3])
def test_damage_in_the_tree_is_found_by_who_fills_in(layer: Pulled, block: int) -> None:
    """What is wrong is missing from then on, and is fetched again."""
    filler = layer.filler()
    layer.fill(filler, 5)
    if block == 3:  # and one below it is missing
        filler.presence.take_back([bit_of_block(layer.geometry, 0), 5])
    flip(layer.path, layer.geometry.block_offset(block) + 3)
    close(filler)
    filler = layer.filler()
    with pytest.raises(IntegrityError):
        layer.fill(filler, 6)
    layer.fill(filler, *range(UNITS))
    assert filler.is_full
    close(filler)
    assert layer.path.read_bytes()[131072:] == layer.blob[131072:]


def test_the_command_line_says_what_is_not_here(
    layer: Pulled, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    key = tmp_path / "key"
    key.touch(0o600)
    key.write_bytes(bytes(range(32)))
    filler = layer.filler()
    layer.fill(filler, 5, 200)
    assert main(["verify", str(layer.path), "--key-file", str(key)]) == 0
    said = capsys.readouterr().out
    assert "everything that is here is whole" in said
    assert "2 of 300 units are here" in said
    assert main(["verify", "--json", str(layer.path), "--key-file", str(key)]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["units_here"], document["units"]) == (2, 300)
    assert main(["inspect", "--json", str(layer.path)]) == 0
    assert json.loads(capsys.readouterr().out)["units_here"] == "2 of 300"
    layer.fill(filler, *range(UNITS))
    filler.settle()
    close(filler)
    assert main(["verify", str(layer.path), "--key-file", str(key)]) == 0
    assert capsys.readouterr().out == f"{layer.path}: everything is whole\n"


def test_nothing_goes_while_it_is_counted(
    layer: Pulled, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Or the file that says so could be taken for one that says that it is complete."""
    counted = lazy.presence_of
    filler = layer.filler()
    layer.fill(filler, *range(UNITS - 1))
    close(filler)

    def meanwhile(path: Path, header: LayerHeader) -> presence.Presence | None:
        assert evict(tmp_path / "store", 0) == 0
        return counted(path, header)

    monkeypatch.setattr(lazy, "presence_of", meanwhile)
    assert lazy.units_here(layer.path) == (UNITS - 1, UNITS)


def test_verify_passes_over_what_is_not_here(layer: Pulled) -> None:
    filler = layer.filler()
    layer.fill(filler, 5, 200)
    with layers.opened(layer.path) as opened:
        assert list(verify_sealed(opened, 1)) == []
        flip(layer.path, layer.geometry.unit_offset(200))
        assert [finding.unit for finding in verify_sealed(opened, 1)] == [200]
    close(filler)


def test_a_complete_layer_is_one_like_others(layer: Pulled) -> None:
    filler = layer.filler()
    layer.fill(filler, *range(UNITS))
    assert filler.is_full
    with layers.opened(layer.path) as opened:
        assert opened.partial is not None
    filler.settle()
    with layers.opened(layer.path) as opened:
        assert opened.partial is None
        assert opened.reader().read(0, UNITS * UNIT) == layer.content
        assert type(opened.reader()) is not lazy.LazyReader
    assert sorted(os.listdir(layer.directory)) == ["layer.cis", "source.json"]
    data = layer.path.read_bytes()
    assert data[131072:] == layer.blob[131072:]
    close(filler)


# ---- filling in


def test_only_one_fills_in(layer: Pulled) -> None:
    filler = layer.filler()
    with pytest.raises(BusyError, match="another process"):
        claim(layer.directory)
    close(filler)
    os.close(claim(layer.directory))


def test_a_wrong_unit_is_not_stored(layer: Pulled) -> None:
    filler = layer.filler()
    layer.fill(filler, 0)
    before = layer.path.read_bytes()
    for wrong in (flipped(layer.unit(7)), layer.unit(8), layer.unit(7)[:-1], b"", bytes(UNIT)):
        with pytest.raises(IntegrityError, match="unit 7 is wrong"):
            filler.put_unit(7, wrong)
    assert layer.path.read_bytes() == before
    assert filler.lacks(7)
    filler.put_unit(7, layer.unit(7))
    assert not filler.lacks(7)
    close(filler)


@pytest.mark.parametrize("block", range(4))
def test_a_wrong_block_is_not_stored(layer: Pulled, block: int) -> None:
    filler = layer.filler()
    before = layer.path.read_bytes()
    found = {each: layer.block(each) for each in range(4)}
    found[block] = flipped(found[block], 31)
    with pytest.raises(IntegrityError, match=f"block {block} of the hash tree"):
        filler.put_blocks(found)
    start = layer.geometry.block_offset(block)
    assert layer.path.read_bytes()[start : start + 4096] == before[start : start + 4096]
    filler.put_blocks({each: layer.block(each) for each in range(4)})
    assert filler.blocks_for(range(UNITS)) == []
    close(filler)


def test_a_block_without_its_parent_is_left_alone(layer: Pulled) -> None:
    filler = layer.filler()
    filler.put_blocks({1: layer.block(1)})
    assert filler.blocks_for(range(1)) == [range(4)]
    with pytest.raises(IntegrityError):
        filler.put_unit(130, layer.unit(130))
    close(filler)


def test_of_a_large_tree_a_part_is_fetched(tmp_path: Path) -> None:
    layer = pulled(tmp_path, 128 * 300)  # 300 blocks, 3 above them, one above those
    filler = layer.filler()
    first, *above = filler.blocks_for(range(128 * 70, 128 * 70 + 1))
    assert first == range(64, 128)
    assert sum(map(len, above)) < 64
    layer.fill(filler, 128 * 70)
    assert filler.blocks_for(range(128 * 127, 128 * 128)) == []
    assert filler.blocks_for(range(128 * 128, 128 * 128 + 1)) == [range(128, 192)]
    layer.fill(filler, 128 * 299)
    close(filler)


def test_another_layer_in_its_place(layer: Pulled, tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    other = pulled(tmp_path / "b", 1, seed=1)
    os.replace(other.path, layer.path)
    with pytest.raises(IntegrityError, match="another layer"):
        layer.filler()


def test_many_threads(layer: Pulled) -> None:
    filler = layer.filler()
    filler.put_blocks({each: layer.block(each) for each in range(4)})

    def put(start: int) -> None:
        for unit in range(start, UNITS, 4):
            filler.put_unit(unit, layer.unit(unit))

    threads = [threading.Thread(target=put, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert filler.is_full
    close(filler)


def test_runs() -> None:
    assert runs([]) == []
    assert runs([1, 2, 3, 5, 7, 8]) == [range(1, 4), range(5, 6), range(7, 9)]
