"""The hash tree of a sealed layer: built from the hashes of its units, and read block by block.

docs/FORMAT.md, section 11.  A block is believed when its hash stands in its parent, and the top
when its hash is the root, which the caller has authenticated.  Blocks are read when they are needed
and a few are kept, so a layer of any size takes the same memory.  Does not know keys or plaintext.
A HashTree belongs to one thread of one process.
"""

from __future__ import annotations

import os
from collections import OrderedDict

from cisfs.crypto.hashes import HASH_SIZE, block_hash
from cisfs.errors import IntegrityError
from cisfs.format.sealed_geometry import TREE_BLOCK_SIZE, BlockNo, LayerGeometry, whole_blocks

KEPT_BLOCKS = 512  # 2 MiB; with units of 64 KiB they vouch for 4 GiB of image


class HashTree:
    """Answers what the hash of a unit has to be, from the tree stored in `fd`."""

    def __init__(
        self, fd: int, geometry: LayerGeometry, root: bytes, *, kept_blocks: int = KEPT_BLOCKS
    ) -> None:
        """Read from `fd`, which stays the caller's; `root` is the hash of the top block."""
        self._fd = fd
        self._geometry = geometry
        self._root = root
        self._most = kept_blocks
        self._kept: OrderedDict[BlockNo, bytes] = OrderedDict()  # checked; the latest used last

    def unit_hash(self, unit: int) -> bytes:
        """Return the 32 bytes that must be the hash of a unit.

        Raises IntegrityError, naming the units that cannot be checked any more, if a block of the
        tree above it was altered or cut off; OSError.
        """
        block, at = self._geometry.hash_of_unit(unit)
        return self._block(block)[at : at + HASH_SIZE]

    def _block(self, block: BlockNo) -> bytes:
        """Return a block that was checked, now or before."""
        data = self._kept.get(block)
        if data is not None:
            self._kept.move_to_end(block)
            return data
        expected = self._block_hash(block)
        data = os.pread(self._fd, TREE_BLOCK_SIZE, self._geometry.block_offset(block))
        if len(data) != TREE_BLOCK_SIZE or block_hash(data) != expected:
            raise IntegrityError(self._lost_below(block))
        if len(self._kept) >= self._most:
            self._kept.popitem(last=False)
        self._kept[block] = data
        return data

    def _block_hash(self, block: BlockNo) -> bytes:
        """What must be the hash of a block, from its parent; the parents are checked first."""
        place = self._geometry.hash_of_block(block)
        if place is None:
            return self._root
        parent, at = place
        return self._block(parent)[at : at + HASH_SIZE]

    def _lost_below(self, block: BlockNo) -> str:
        units = self._geometry.units_below(block)
        start, end = self._geometry.unit_start(units[0]), self._geometry.unit_end(units[-1])
        return (
            f"a block of the hash tree was altered: units {units[0]} to {units[-1]} cannot be "
            f"checked (image bytes {start} to {end - 1})"
        )


def build_tree(leaves: memoryview) -> tuple[list[memoryview], bytes]:
    """Return all levels of the tree, level 0 first, and its root.

    `leaves` is level 0: the hashes of all units in order, filled up with zeros to whole blocks.
    """
    levels = [leaves]
    while True:
        level, hashes = levels[-1], bytearray()
        for at in range(0, len(level), TREE_BLOCK_SIZE):
            hashes += block_hash(level[at : at + TREE_BLOCK_SIZE])
        if len(hashes) == HASH_SIZE:
            return levels, bytes(hashes)
        levels.append(memoryview(hashes.ljust(whole_blocks(len(hashes)), b"\0")))
