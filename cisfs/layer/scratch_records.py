"""What an ephemeral scratch remembers of each data unit: its version and its tag, only in memory.

A record of 24 bytes stands for each block; a unit of several blocks has the record of its first,
and the others are empty.  An empty record that belongs to no unit is a hole.  The memory is mapped
at once and taken page by page as units are written: 6 MiB for each GiB.

Knows no ciphertext and no files.  One thread.
"""

from __future__ import annotations

import mmap
import struct
from typing import NamedTuple

from cisfs.format.scratch_geometry import MAX_LEVEL, Unit, unit_around

_RECORD = struct.Struct("=Q16s")  # the version and (3 bits) the level; the tag
_LEVEL_BITS = 3
_LEVEL_MASK = (1 << _LEVEL_BITS) - 1
_PIECE = 4096  # records that are emptied in one go


class Written(NamedTuple):
    """A unit that holds data."""

    unit: Unit
    version: int  # the count at which it was written
    tag: bytes


class Records:
    """The records of an image of so many blocks, all holes at first."""

    __slots__ = ("_memory",)

    def __init__(self, blocks: int) -> None:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._memory = mmap.mmap(-1, blocks * _RECORD.size, flags=flags)

    def close(self) -> None:
        """Give the memory back."""
        self._memory.close()

    def written(self, first: int, end: int) -> list[Written]:
        """The units, in ascending order, that hold data in any of the blocks [first, end)."""
        found = []
        before = self.divided(first)
        block = first if before is None else before.block
        while block < end:
            word, tag = _RECORD.unpack_from(self._memory, block * _RECORD.size)
            if word:
                unit = Unit(block, word & _LEVEL_MASK)
                found.append(Written(unit, word >> _LEVEL_BITS, tag))
                block = unit.end
            else:
                block += 1
        return found

    def divided(self, block: int) -> Unit | None:
        """The unit that a cut before `block` would go through, if there is one."""
        for level in range(1, MAX_LEVEL + 1):
            start = unit_around(block, level).block
            if start < block:
                word, _ = _RECORD.unpack_from(self._memory, start * _RECORD.size)
                if word:
                    unit = Unit(start, word & _LEVEL_MASK)
                    return unit if unit.end > block else None
        return None

    def put(self, written: Written) -> None:
        """Say that a unit holds data now; no other unit may reach into it from outside."""
        unit, version, tag = written
        word = version << _LEVEL_BITS | unit.level
        self.clear(unit.block + 1, unit.end)
        _RECORD.pack_into(self._memory, unit.block * _RECORD.size, word, tag)

    def clear(self, first: int, end: int) -> None:
        """Make the blocks [first, end) a hole; no unit may reach into it from outside.

        What is empty already is not touched, for that would take memory.
        """
        for start in range(first, end, _PIECE):
            low, high = start * _RECORD.size, min(end, start + _PIECE) * _RECORD.size
            empty = bytes(high - low)
            if self._memory[low:high] != empty:
                self._memory[low:high] = empty
