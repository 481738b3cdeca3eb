"""Where everything lies in a scratch image: all offset arithmetic of docs/FORMAT.md, section 12.

An image is blocks of 4 KiB.  A data unit is 1, 2, 4, 8 or 16 of them (its level is the power of
two), and begins at a multiple of its own length.

Knows no I/O and no keys.  Pure functions of immutable values; safe anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

BLOCK_SIZE = 4096
MAX_LEVEL = 4
MAX_BLOCKS = 1 << MAX_LEVEL
MAX_UNIT_SIZE = BLOCK_SIZE << MAX_LEVEL  # 64 KiB


class Unit(NamedTuple):
    """A data unit: `2**level` blocks from `block` on."""

    block: int
    level: int

    @property
    def end(self) -> int:
        """The block after the last."""
        return self.block + (1 << self.level)


def units(first: int, end: int) -> Iterator[Unit]:
    """Split the blocks [first, end) into the fewest units, in ascending order."""
    while first < end:
        level = min((end - first).bit_length() - 1, MAX_LEVEL)
        if first & (MAX_BLOCKS - 1):
            level = min(level, (first & -first).bit_length() - 1)
        yield Unit(first, level)
        first += 1 << level


def unit_around(block: int, level: int) -> Unit:
    """The unit of a level that would hold a block."""
    return Unit(block & -(1 << level), level)


def length(first: int, end: int) -> int:
    """Bytes in the blocks [first, end)."""
    return (end - first) * BLOCK_SIZE


def offset_of(block: int) -> int:
    """Where a block begins, in the image and in the file that holds its ciphertext."""
    return block * BLOCK_SIZE


def within_block(offset: int) -> int:
    """How far into its block a byte lies."""
    return offset % BLOCK_SIZE


def touched(offset: int, size: int) -> tuple[int, int]:
    """The blocks [first, end) that some bytes lie in."""
    return offset // BLOCK_SIZE, -(-(offset + size) // BLOCK_SIZE)


def covered(offset: int, size: int) -> tuple[int, int]:
    """The blocks [first, end) that lie wholly among some bytes; none if first >= end."""
    return -(-offset // BLOCK_SIZE), (offset + size) // BLOCK_SIZE


def whole_units(size: int) -> int:
    """The size, in bytes, of an image that is to hold `size` bytes: whole units of 64 KiB."""
    return -(-size // MAX_UNIT_SIZE) * MAX_UNIT_SIZE
