"""Bare layers of a registry, made whole here: only what is the layer that it is named as."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cisfs.errors import IntegrityError, UsageError, WrongContentError
from cisfs.layer import slotarea
from cisfs.layer.eviction import evict
from cisfs.registry import artifacts
from cisfs.registry.bare import BareSource, complete
from tests.unit.partial_layers import Pulled, close, flip, pulled

UNITS = 300


@pytest.fixture
def layer(tmp_path: Path) -> Pulled:
    return pulled(tmp_path, UNITS)


def completed(layer: Pulled, blob: bytes, path: Path) -> bytes:
    """Complete a file with `blob`; returns what is in it then."""
    path.write_bytes(blob)
    fd = os.open(layer.path, os.O_RDONLY)
    text = slotarea.read(fd).text
    os.close(fd)
    fd = os.open(path, os.O_RDWR)
    try:
        complete(fd, layer.directory.name, text)
    finally:
        os.close(fd)
    return path.read_bytes()


def test_it_becomes_the_layer_that_was_pushed(layer: Pulled, tmp_path: Path) -> None:
    whole = (tmp_path / "whole-0.cis").read_bytes()
    assert completed(layer, layer.blob, tmp_path / "part") == whole


@pytest.mark.parametrize("where", ["first unit", "last unit", "leaves", "top"])
def test_parts_that_are_as_announced_and_of_another_layer(
    layer: Pulled, tmp_path: Path, where: str
) -> None:
    """Who announces parts chooses their digests: they say nothing about the identity."""
    geometry = layer.geometry
    at = {
        "first unit": geometry.unit_offset(0),
        "last unit": geometry.unit_offset(UNITS - 1) + geometry.unit_length(UNITS - 1) - 1,
        "leaves": geometry.block_offset(1),
        "top": geometry.block_offset(geometry.block_count - 1),
    }[where]
    blob = layer.blob[:at] + bytes([layer.blob[at] ^ 1]) + layer.blob[at + 1 :]
    with pytest.raises(WrongContentError, match="another content"):
        completed(layer, blob, tmp_path / "part")


# ---- read for an upload


@pytest.fixture
def whole(layer: Pulled) -> Pulled:
    """All of it is here."""
    filler = layer.filler()
    layer.fill(filler, *range(UNITS))
    filler.settle()
    close(filler)
    return layer


def test_it_is_read_as_it_was_pushed(whole: Pulled) -> None:
    source = BareSource(whole.path)
    assert source.read(0, source.size) == whole.blob
    (part,) = source.described().parts
    assert part.digest == whole.digest
    source.close()


def test_what_is_here_in_part_is_not_read_as_zeros(layer: Pulled) -> None:
    with pytest.raises(UsageError, match="in part only: pull it first"):
        BareSource(layer.path)


def test_nothing_of_it_leaves_the_disk_meanwhile(whole: Pulled, tmp_path: Path) -> None:
    source = BareSource(whole.path)
    assert evict(tmp_path / "store", 0) == 0
    assert source.read(0, source.size) == whole.blob
    source.close()
    assert evict(tmp_path / "store", 0) > 0


@pytest.mark.parametrize("unit", [0, 31, UNITS - 1])
def test_what_whoever_pulls_would_refuse_is_not_described(
    whole: Pulled, unit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(artifacts, "PART", 250_000)  # units 29 and 90 lie in two parts
    flip(whole.path, whole.geometry.unit_offset(unit) + whole.geometry.unit_length(unit) - 1)
    source = BareSource(whole.path)
    with pytest.raises(IntegrityError, match=f"unit {unit} is wrong"):
        source.described()
    source.close()
