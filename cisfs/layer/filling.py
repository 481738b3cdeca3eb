"""Filling in what is missing of a layer: nothing is written before it is checked.

Whatever a registry sends is held against the layer's identity: the hash of the header, the root in
it, the hash tree, the units.  No key is needed.  Does not know where data comes from.  One process
for each layer (`claim`); its threads may use a Filler at the same time.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from cisfs.crypto.hashes import HASH_SIZE, block_hash, unit_hash
from cisfs.errors import BusyError, IntegrityError
from cisfs.format.presence import bit_of_block
from cisfs.format.sealed import LayerHeader
from cisfs.format.sealed_geometry import HEADER_SIZE, TREE_BLOCK_SIZE, LayerGeometry
from cisfs.layer.hashtree import HashTree
from cisfs.layer.locking import try_lock
from cisfs.layer.presence import opened
from cisfs.layer.pulled import LAYER
from cisfs.layer.writing import write_at

_CLUSTER = 64  # blocks of the tree that are fetched together: they vouch for 8192 units
_SMALL_TREE = 256  # blocks of a tree that is fetched as a whole

Bytes = bytes | bytearray | memoryview


class Filler:
    """A layer that is being filled in."""

    def __init__(self, directory: Path, claimed: int) -> None:
        """Open the layer in `directory`, which was `claimed`; what is opened stays open.

        Raises FormatError, IntegrityError if it is not the layer that it is named as, OSError.
        """
        self.name = directory.name
        self.claimed = claimed
        self.fd = os.open(directory / LAYER, os.O_RDWR | os.O_CLOEXEC)
        self.presence = opened(directory)
        self.header = LayerHeader.parse(os.pread(self.fd, HEADER_SIZE, 0))
        if self.header.identity != directory.name:
            raise IntegrityError(f"{directory / LAYER} is another layer: pull it again")
        self.geometry: LayerGeometry = self.header.geometry
        self._tree = HashTree(self.fd, self.geometry, self.header.root)
        self._lock = threading.Lock()  # over the tree
        self._is_settled = True

    def lacks(self, unit: int) -> bool:
        """Tell whether a unit is missing."""
        return not self.presence.has(unit)

    def missing(self, units: range) -> Iterator[int]:
        """Yield those of `units` that are missing, in order."""
        return self.presence.missing(units)

    @property
    def is_full(self) -> bool:
        """Whether nothing is missing."""
        return self.presence.has_all(range(self.presence.header.bits))

    # -- the hash tree -----------------------------------------------------------------------

    def blocks_for(self, units: range) -> list[range]:
        """Return the missing blocks of the tree that units need, and some beside them, as runs."""
        if self.geometry.block_count <= _SMALL_TREE:
            wanted = set(range(self.geometry.block_count))
        else:
            wanted = {
                near
                for block in self._above(units)
                if not self._has_block(block)
                for near in self._beside(block)
            }
        return runs(sorted(block for block in wanted if not self._has_block(block)))

    def put_blocks(self, found: Mapping[int, bytes]) -> None:
        """Take blocks of the tree, as many as can be checked.

        Raises IntegrityError for one that is wrong, or if a parent is, which is missing from then
        on; OSError.  What was right before it is kept.
        """
        with self._lock:
            wrong = self._put_blocks(found)
        if wrong is not None:
            self.doubt(self.geometry.units_below(wrong)[:1])
            raise IntegrityError(f"block {wrong} of the hash tree is wrong")

    def _put_blocks(self, found: Mapping[int, bytes]) -> int | None:
        """Take blocks up to the first that is wrong; returns that."""
        for block in sorted(found, reverse=True):  # parents first
            expected = self._expected(block)
            if expected is None:
                continue
            if block_hash(found[block]) != expected:
                return block
            write_at(self.fd, found[block], self.geometry.block_offset(block))
            self._add(bit_of_block(self.geometry, block))
        return None

    def _expected(self, block: int) -> bytes | None:
        """What must be the hash of a block; None if its parent is not here."""
        place = self.geometry.hash_of_block(block)
        if place is None:
            return self.header.root
        parent, at = place
        if not self._has_block(parent):
            return None
        return self._stored_block(parent)[at : at + HASH_SIZE]

    def _stored_block(self, block: int) -> bytes:
        return os.pread(self.fd, TREE_BLOCK_SIZE, self.geometry.block_offset(block))

    def _above(self, units: range) -> set[int]:
        """All blocks that vouch for units."""
        blocks: set[int] = set()
        for unit in units:
            block, _ = self.geometry.hash_of_unit(unit)
            while block not in blocks:
                blocks.add(block)
                place = self.geometry.hash_of_block(block)
                if place is None:
                    break
                block, _ = place
        return blocks

    def _beside(self, block: int) -> range:
        start = block & -_CLUSTER
        return range(start, min(start + _CLUSTER, self.geometry.block_count))

    def _has_block(self, block: int) -> bool:
        return self.presence.has(bit_of_block(self.geometry, block))

    # -- units -------------------------------------------------------------------------------

    def put_unit(self, unit: int, cipher: Bytes) -> None:
        """Take a unit whose blocks of the tree are here.

        Raises IntegrityError if it is wrong, or if one of them is, which is missing from then on;
        OSError.
        """
        try:
            with self._lock:
                expected = self._tree.unit_hash(unit)
        except IntegrityError:
            self.doubt(range(unit, unit + 1))
            raise
        if len(cipher) != self.geometry.unit_length(unit) or unit_hash(cipher) != expected:
            raise IntegrityError(f"unit {unit} is wrong")
        write_at(self.fd, cipher, self.geometry.unit_offset(unit))
        self._add(unit)

    def doubt(self, units: range) -> None:
        """Look at what is here of units and of the tree above them; what is wrong is missing then.

        Raises OSError.
        """
        with self._lock:
            wrong: set[int] = set()
            for block in sorted(self._above(units), reverse=True):  # parents first
                if block_hash(self._stored_block(block)) != self._expected(block):
                    wrong |= {bit_of_block(self.geometry, block), *self.geometry.units_below(block)}
            wrong |= {unit for unit in units if unit not in wrong and self._is_wrong(unit)}
            if wrong:
                self._tree = HashTree(self.fd, self.geometry, self.header.root)
                self.presence.take_back(sorted(wrong))

    def _is_wrong(self, unit: int) -> bool:
        length = self.geometry.unit_length(unit)
        stored = os.pread(self.fd, length, self.geometry.unit_offset(unit))
        return unit_hash(stored) != self._tree.unit_hash(unit)

    # -- durability --------------------------------------------------------------------------

    def settle(self) -> None:
        """Make what has come durable; when nothing is missing, say that, too.  Raises OSError."""
        if self.is_full:
            self.presence.complete(self.fd)
        elif not self._is_settled:
            self._is_settled = True
            self.presence.settle(self.fd)

    def _add(self, bit: int) -> None:
        self.presence.add(bit)
        self._is_settled = False


def claim(directory: Path) -> int:
    """Become the one who changes what is here of the layer in `directory`, or makes it.

    One is it until the descriptor is closed.  Raises BusyError if there is one, OSError.
    """
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    if not try_lock(fd):
        os.close(fd)
        raise BusyError(f"layer {directory.name} is being fetched by another process")
    return fd


def runs(numbers: Iterable[int]) -> list[range]:
    """Put ascending numbers together to runs."""
    runs: list[range] = []
    for number in numbers:
        if runs and runs[-1].stop == number:
            runs[-1] = range(runs[-1].start, number + 1)
        else:
            runs.append(range(number, number + 1))
    return runs
