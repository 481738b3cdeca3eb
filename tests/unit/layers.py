"""Sealed layers for tests: made with a fixed key file, opened, damaged, read unit by unit.

Knows where things lie in a layer, for the tests which damage it.  One test at a time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cisfs.errors import IntegrityError
from cisfs.keys.credentials import Credential
from cisfs.layer.sealed import SealedLayer
from cisfs.layer.sealing import StoredImage, seal_image
from tests.unit.vaults import KEY, same

UNIT = 4096


def image(size: int, seed: int = 0) -> bytes:
    """Bytes of which no two 16-byte blocks are alike, and none is zero; nor with another seed."""
    return b"".join((seed << 32 | at).to_bytes(16, "big") for at in range(1, size // 16 + 1))


@contextmanager
def in_memory(content: bytes) -> Iterator[int]:
    """A descriptor to read `content` from."""
    fd = os.memfd_create("image")
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(fd, view) :]
        yield fd
    finally:
        os.close(fd)


def seal(
    path: Path, content: bytes, *, unit_size: int = UNIT, key: Credential = KEY, force: bool = False
) -> str:
    """Seal `content`; returns the identity."""
    with in_memory(content) as fd:
        return seal_image(
            StoredImage(fd, len(content)), path, key, unit_size=unit_size, workers=1, force=force
        )


@contextmanager
def opened(path: Path, key: Credential = KEY) -> Iterator[SealedLayer]:
    """Open a layer, and close it."""
    layer = SealedLayer.open(path, key)
    try:
        yield layer
    finally:
        layer.close()


def damaged_units(layer: SealedLayer, content: bytes) -> set[int]:
    """Read every unit by itself: which ones are refused; all others have to be right."""
    refused = set()
    size = layer.geometry.unit_size
    reader = layer.reader()
    for unit in range(layer.geometry.unit_count):
        try:
            got = reader.read(unit * size, size)
        except IntegrityError:
            refused.add(unit)
        else:
            assert same(got, content[unit * size : (unit + 1) * size])
    return refused
