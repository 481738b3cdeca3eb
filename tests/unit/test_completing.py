"""What was attached gets the rest from a pull, in its own file, whoever has that open."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cisfs.errors import BusyError, WrongContentError
from cisfs.format.slotarea import SlotText
from cisfs.layer import lazy, presence, slotarea
from cisfs.layer.filling import claim
from cisfs.layer.origin import Origin
from cisfs.registry import completing
from cisfs.registry.artifacts import PushedLayer, part
from cisfs.registry.bare import complete
from cisfs.registry.pull import PART, install
from tests.unit import layers
from tests.unit.partial_layers import UNIT, Pulled, close, flip, pulled

UNITS = 300


@pytest.fixture
def layer(tmp_path: Path) -> Pulled:
    return pulled(tmp_path, UNITS)


def text_of(layer: Pulled) -> SlotText:
    with layer.path.open("rb") as file:
        return slotarea.read(file.fileno()).text


def come(layer: Pulled, blob: bytes, text: SlotText) -> None:
    """All of it has come, as a pull or load has it."""
    identity = layer.directory.name
    described = PushedLayer(identity, (part(layer.digest, len(blob), identity),))
    source = Origin("localhost:1", "a/b", ((layer.digest, len(blob)),))
    install(layer.directory, described, text, source, lambda fd: os.pwrite(fd, blob, 0))


@contextmanager
def reading(layer: Pulled) -> Iterator[lazy.LazyReader]:
    with layers.opened(layer.path) as opened:
        reader = opened.reader()
        assert isinstance(reader, lazy.LazyReader)
        yield reader


def names(layer: Pulled) -> list[str]:
    return sorted(os.listdir(layer.directory))


def test_who_has_it_open_goes_on_with_all_of_it(layer: Pulled) -> None:
    filler = layer.filler()
    layer.fill(filler, 5)
    close(filler)
    inode = layer.path.stat().st_ino
    with reading(layer) as reader:
        come(layer, layer.blob, text_of(layer))
        assert reader.read(0, UNITS * UNIT) == layer.content
    assert layer.path.stat().st_ino == inode
    assert names(layer) == ["layer.cis", "source.json"]
    assert not lazy.is_partial(layer.path)
    assert layer.path.read_bytes()[131072:] == layer.blob[131072:]


@pytest.mark.parametrize("where", ["unit", "leaf", "top"])
def test_what_was_damaged_here_is_replaced(layer: Pulled, where: str) -> None:
    filler = layer.filler()
    layer.fill(filler, 5, 290)
    filler.settle()
    close(filler)
    geometry = layer.geometry
    at = {
        "unit": geometry.unit_offset(290),
        "leaf": geometry.block_offset(2),
        "top": geometry.block_offset(3),
    }
    flip(layer.path, at[where] + 1)
    come(layer, layer.blob, text_of(layer))
    assert layer.path.read_bytes()[131072:] == layer.blob[131072:]


def test_another_content_leaves_it_as_it_is(layer: Pulled) -> None:
    at = layer.geometry.unit_offset(40)
    blob = layer.blob[:at] + bytes(UNIT) + layer.blob[at + UNIT :]
    with pytest.raises(WrongContentError, match="another content: unit 40 is wrong"):
        come(layer, blob, text_of(layer))
    assert lazy.is_partial(layer.path)
    assert PART not in names(layer)
    filler = layer.filler()
    assert filler.lacks(40)
    layer.fill(filler, *range(UNITS))
    close(filler)


def test_who_fills_it_in_and_does_not_end(layer: Pulled, monkeypatch: pytest.MonkeyPatch) -> None:
    """What came is kept."""
    monkeypatch.setattr(completing, "_PATIENCE", 0.05)
    claimed = claim(layer.directory)
    with pytest.raises(BusyError, match="what was pulled is kept: pull again"):
        come(layer, layer.blob, text_of(layer))
    assert (layer.directory / PART).read_bytes()[131072:] == layer.blob[131072:]
    os.close(claimed)
    come(layer, layer.blob, text_of(layer))
    assert not lazy.is_partial(layer.path)


@pytest.mark.parametrize("damaged", [presence.NAME, "layer.cis", "another's"])
def test_one_that_cannot_be_gone_on_with_is_replaced(
    layer: Pulled, tmp_path: Path, damaged: str
) -> None:
    text = text_of(layer)
    if damaged == "another's":
        other = pulled(tmp_path, 1, seed=1)
        (other.directory / presence.NAME).rename(layer.directory / presence.NAME)
    else:
        (layer.directory / damaged).write_bytes(b"x" * 20_000)
    come(layer, layer.blob, text)
    assert names(layer) == ["layer.cis", "source.json"]
    with layers.opened(layer.path) as opened:
        assert opened.reader().read(0, UNITS * UNIT) == layer.content


def test_it_is_attached_while_it_is_pulled(layer: Pulled, monkeypatch: pytest.MonkeyPatch) -> None:
    """And may have been mounted since, so it is not replaced."""
    text, away = text_of(layer), layer.directory.with_name("away")
    layer.directory.rename(away)

    def attached(fd: int, identity: str, text: SlotText) -> object:
        for path in away.iterdir():
            path.rename(layer.directory / path.name)
        return complete(fd, identity, text)

    monkeypatch.setattr("cisfs.registry.pull.complete", attached)
    inode = (away / "layer.cis").stat().st_ino
    come(layer, layer.blob, text)
    assert layer.path.stat().st_ino == inode
    assert not lazy.is_partial(layer.path)
    assert names(layer) == ["layer.cis", "source.json"]


def test_others_may_pass_whatever_the_umask(layer: Pulled) -> None:
    """Those who ask for data do so as nobody."""
    text = text_of(layer)
    for path in layer.directory.iterdir():
        path.unlink()
    layer.directory.rmdir()
    before = os.umask(0o077)
    try:
        come(layer, layer.blob, text)
    finally:
        os.umask(before)
    assert layer.directory.stat().st_mode & 0o777 == 0o711
