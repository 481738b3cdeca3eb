"""Checking a whole sealed layer: every unit, and every block of the hash tree.

Decrypts nothing and takes no key; the header, key slots and reserved area were checked when the
layer was opened or, with a signature in the key's place, found.  Works in forked processes over one
layer that is open; knows no FUSE.

What has not been fetched yet of a layer in the store is passed over.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Protocol

from cisfs.crypto.hashes import unit_hash
from cisfs.errors import IntegrityError
from cisfs.format.sealed import LayerHeader
from cisfs.format.sealed_geometry import LayerGeometry
from cisfs.layer import lazy
from cisfs.layer.forked import share_out
from cisfs.layer.hashtree import HashTree
from cisfs.layer.verify import Finding


class Hashed(Protocol):
    """A layer whose header can be believed: opened with its key, or signed."""

    @property
    def path(self) -> Path:
        """What messages call it."""

    @property
    def fd(self) -> int:
        """What it is read from."""

    @property
    def header(self) -> LayerHeader:
        """The header, with the root of the hash tree."""

    @property
    def geometry(self) -> LayerGeometry:
        """Where everything lies in it."""


def verify_sealed(layer: Hashed, workers: int | None = None) -> Iterator[Finding]:
    """Read everything in `layer` and yield what is damaged, in the order of the image.

    A finding's path is the layer's name.  Where a block of the hash tree is damaged, it is one
    finding without a unit that says which units cannot be checked.  `workers` processes take part
    (default: one for each CPU we may use); see `share_out` for what it raises.
    """
    check = _Check(layer)
    early: dict[int, list[Finding]] = {}
    leaf = 0
    last: Finding | None = None
    with closing(share_out(layer.geometry.level_blocks[0], check.leaves, workers)) as results:
        for done, found in results:
            early[done] = found
            while leaf in early:
                for finding in early.pop(leaf):
                    if finding != last:  # a block of a higher level is found below each of its own
                        yield finding
                    last = finding
                leaf += 1


class _Check:
    """Checks the units below one block of level 0 after the other; one in each process."""

    def __init__(self, layer: Hashed) -> None:
        self._name = layer.path.name
        self._fd = layer.fd
        self._geometry = layer.geometry
        self._presence = lazy.presence_of(layer.path, layer.header)
        self._tree = HashTree(layer.fd, layer.geometry, layer.header.root)

    def leaves(self, leaves: Iterator[int]) -> Iterator[tuple[int, list[Finding]]]:
        """Yield the number of each block with what was found below it."""
        buffer = memoryview(bytearray(self._geometry.unit_size))
        for leaf in leaves:
            yield leaf, list(self._below(leaf, buffer))

    def _below(self, leaf: int, buffer: memoryview) -> Iterator[Finding]:
        units = self._geometry.units_below(leaf)
        for unit in units:
            if self._presence is not None and not self._presence.has(unit):
                continue
            try:
                expected = self._tree.unit_hash(unit)
            except IntegrityError as error:
                yield Finding(self._name, None, str(error))
                return
            except OSError as error:
                what = f"the hashes of units {units[0]} to {units[-1]}"
                yield Finding(self._name, None, f"{what} cannot be read: {error.strerror}")
                return
            problem = self._problem(unit, buffer[: self._geometry.unit_length(unit)], expected)
            if problem is not None:
                yield Finding(self._name, unit, problem)

    def _problem(self, unit: int, buffer: memoryview, expected: bytes) -> str | None:
        """What is wrong with a unit, if anything."""
        try:
            got = os.preadv(self._fd, [buffer], self._geometry.unit_offset(unit))
        except OSError as error:
            return f"cannot be read: {error.strerror}"
        if got < len(buffer):
            return "cut off"
        return None if unit_hash(buffer) == expected else "altered"
