"""Where everything lies in a sealed layer: all offset arithmetic of docs/FORMAT.md, 8 and 11.

    header (4096) | key slots (61440) | their second copy (61440) | reserved (4096)
    | units (image size) | hash tree

The units' ciphertext is as long as the image, so image offset o is stored at 131072 + o.  The tree
is blocks of 128 hashes, level 0 first; a block's number counts them in the order they are stored.

Knows no I/O and no keys.  Pure functions of immutable values; safe anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import accumulate
from typing import NewType

from cisfs.format.geometry import CipherOffset, Geometry, PlainOffset

BlockNo = NewType("BlockNo", int)

HEADER_SIZE = 4096
SLOTS_OFFSET = HEADER_SIZE
SLOTS_SIZE = 61440
SECOND_SLOTS_OFFSET = SLOTS_OFFSET + SLOTS_SIZE
RESERVED_OFFSET = SECOND_SLOTS_OFFSET + SLOTS_SIZE
RESERVED_SIZE = 4096
UNITS_OFFSET = RESERVED_OFFSET + RESERVED_SIZE

IMAGE_ALIGNMENT = 4096
MAX_IMAGE_SIZE = 1 << 56
HASH_SIZE = 32
TREE_BLOCK_SIZE = 4096
FANOUT = TREE_BLOCK_SIZE // HASH_SIZE  # hashes in a block


def whole_blocks(length: int) -> int:
    """Round a length in bytes up to whole blocks of the hash tree."""
    return (length + TREE_BLOCK_SIZE - 1) & -TREE_BLOCK_SIZE


@dataclass(frozen=True, slots=True)
class LayerGeometry:
    """The arithmetic for one unit size (see `Geometry`) and one image size, both in bytes.

    Raises ValueError for an image size that is not a positive multiple of 4096 up to 2**56.
    """

    unit_size: int
    image_size: int
    unit_count: int = field(init=False)
    level_blocks: tuple[int, ...] = field(init=False)  # blocks in each level, level 0 first
    _level_starts: tuple[int, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        size = self.image_size
        if not 0 < size <= MAX_IMAGE_SIZE or size % IMAGE_ALIGNMENT:
            raise ValueError(f"image size {size} is not a multiple of 4096 from 4096 to 2**56")
        count = Geometry(self.unit_size).unit_count(size)
        levels = [-(-count // FANOUT)]
        while levels[-1] > 1:
            levels.append(-(-levels[-1] // FANOUT))
        object.__setattr__(self, "unit_count", count)
        object.__setattr__(self, "level_blocks", tuple(levels))
        object.__setattr__(self, "_level_starts", tuple(accumulate(levels, initial=0)))

    # -- units -----------------------------------------------------------------------------

    def units_of(self, offset: int, size: int) -> range:
        """The units that hold the `size` (at least 1) image bytes from `offset` on."""
        return range(offset // self.unit_size, (offset + size - 1) // self.unit_size + 1)

    def within_unit(self, offset: int) -> int:
        """How far into its unit the image byte at `offset` lies."""
        return offset % self.unit_size

    def unit_start(self, unit: int) -> PlainOffset:
        """The image offset of a unit's first byte."""
        return PlainOffset(unit * self.unit_size)

    def unit_end(self, unit: int) -> PlainOffset:
        """The image offset after a unit's last byte."""
        return PlainOffset(min((unit + 1) * self.unit_size, self.image_size))

    def unit_length(self, unit: int) -> int:
        """Bytes in a unit; only the last may have fewer than the unit size."""
        return min(self.unit_size, self.image_size - unit * self.unit_size)

    def unit_offset(self, unit: int) -> CipherOffset:
        """Where a unit's ciphertext begins in the stored file."""
        return CipherOffset(UNITS_OFFSET + unit * self.unit_size)

    def stored_offset(self, offset: int) -> CipherOffset:
        """Where the ciphertext of the image byte at `offset` lies in the stored file."""
        return CipherOffset(UNITS_OFFSET + offset)

    # -- the hash tree ---------------------------------------------------------------------

    @property
    def tree_offset(self) -> CipherOffset:
        """Where the hash tree begins in the stored file."""
        return CipherOffset(UNITS_OFFSET + self.image_size)

    @property
    def block_count(self) -> int:
        """Blocks in all levels of the tree."""
        return self._level_starts[-1]

    @property
    def stored_size(self) -> int:
        """Bytes in the stored file."""
        return self.block_offset(self.block_count)

    def block_offset(self, block: int) -> CipherOffset:
        """Where a block of the tree begins in the stored file."""
        return CipherOffset(self.tree_offset + block * TREE_BLOCK_SIZE)

    def hash_of_unit(self, unit: int) -> tuple[BlockNo, int]:
        """The block that holds a unit's hash, and the hash's offset in it."""
        return BlockNo(unit // FANOUT), unit % FANOUT * HASH_SIZE

    def hash_offset(self, unit: int) -> int:
        """How far into level 0 of the tree a unit's hash lies, in bytes."""
        return unit * HASH_SIZE

    def hash_of_block(self, block: int) -> tuple[BlockNo, int] | None:
        """The block that holds a block's hash, and the hash's offset in it; None for the top."""
        level, index = self._place(block)
        if level + 1 == len(self.level_blocks):
            return None
        return BlockNo(self._level_starts[level + 1] + index // FANOUT), index % FANOUT * HASH_SIZE

    def units_below(self, block: int) -> range:
        """The units that a block of the tree vouches for."""
        level, index = self._place(block)
        span = FANOUT ** (level + 1)
        return range(index * span, min((index + 1) * span, self.unit_count))

    def _place(self, block: int) -> tuple[int, int]:
        """A block's level, and its index there."""
        level = 0
        while block >= self._level_starts[level + 1]:
            level += 1
        return level, block - self._level_starts[level]
