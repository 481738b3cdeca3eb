"""Layers of a store of which something is missing: made of sealed ones, filled in by hand.

Knows what a registry would send.  One test at a time.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from cisfs.format.sealed import LayerHeader
from cisfs.format.sealed_geometry import HEADER_SIZE, TREE_BLOCK_SIZE, UNITS_OFFSET, LayerGeometry
from cisfs.layer import lazy, slotarea
from cisfs.layer.filling import Filler, claim
from cisfs.layer.origin import Origin
from tests.unit import layers

UNIT = layers.UNIT


@dataclass(frozen=True)
class Pulled:
    """A layer in a store, and all that a registry has of it."""

    path: Path
    content: bytes
    blob: bytes
    geometry: LayerGeometry

    @property
    def directory(self) -> Path:
        """Where the layer is."""
        return self.path.parent

    @property
    def digest(self) -> str:
        """What a registry knows the blob by."""
        return f"sha256:{hashlib.sha256(self.blob).hexdigest()}"

    def unit(self, unit: int) -> bytes:
        """A unit as it is stored."""
        start = self.geometry.unit_offset(unit)
        return self.blob[start : start + self.geometry.unit_length(unit)]

    def block(self, block: int) -> bytes:
        """A block of the hash tree."""
        start = self.geometry.block_offset(block)
        return self.blob[start : start + TREE_BLOCK_SIZE]

    def filler(self) -> Filler:
        """Whoever fills it in."""
        return Filler(self.directory, claim(self.directory))

    def fill(self, filler: Filler, *units: int) -> None:
        """Put units there, and what of the tree they need."""
        for unit in units:
            runs = filler.blocks_for(range(unit, unit + 1))
            filler.put_blocks({block: self.block(block) for run in runs for block in run})
            filler.put_unit(unit, self.unit(unit))


def pulled(base: Path, units: int, *, seed: int = 0, registry: str = "localhost:1") -> Pulled:
    """Seal a layer of so many units, and put the beginning of it into the store in `base`."""
    whole = base / f"whole-{seed}.cis"
    content = layers.image(units * UNIT, seed)
    layers.seal(whole, content)
    data = whole.read_bytes()
    fd = os.open(whole, os.O_RDONLY)
    try:
        slots = slotarea.read(fd).text
    finally:
        os.close(fd)
    blob = data[:HEADER_SIZE] + bytes(UNITS_OFFSET - HEADER_SIZE) + data[UNITS_OFFSET:]
    digest = f"sha256:{hashlib.sha256(blob).hexdigest()}"
    path = lazy.create(base / "store", blob, slots, Origin(registry, "a/b", ((digest, len(blob)),)))
    return Pulled(path, content, blob, LayerHeader.parse(blob[:HEADER_SIZE]).geometry)


def close(filler: Filler) -> None:
    """What the end of its process does."""
    os.close(filler.fd)
    os.close(filler.claimed)


def flip(path: Path, offset: int) -> None:
    """Turn a bit of a file over."""
    with path.open("r+b", buffering=0) as file:
        byte = os.pread(file.fileno(), 1, offset)[0]
        os.pwrite(file.fileno(), bytes([byte ^ 1]), offset)
