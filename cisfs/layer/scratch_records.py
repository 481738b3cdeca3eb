"""What an ephemeral scratch remembers of each data unit, only in memory: version, tag, and holes.

A record of 24 bytes stands for each block; a unit of several blocks has the record of its first,
and the others are empty.  An empty record that belongs to no unit is a hole.  Blocks of a unit can
be made holes one by one, which changes nothing on the disk.  The memory is mapped at once and taken
page by page as units are written: 6 MiB for each GiB.

Knows no ciphertext and no files.  One thread.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from typing import NamedTuple

from cisfs.format.scratch_geometry import MAX_BLOCKS, MAX_LEVEL, Unit, unit_around

_RECORD = struct.Struct("=Q16s")  # from its lowest bit on: level, blank blocks, version; the tag
_LEVEL_BITS = 3
_LEVEL_MASK = (1 << _LEVEL_BITS) - 1
_BLANK_MASK = (1 << MAX_BLOCKS) - 1
_VERSION_SHIFT = _LEVEL_BITS + MAX_BLOCKS  # leaves 45 bits: at 10 us for each write, eleven years
_PIECE = 4096  # records that are looked at, or emptied, in one go


class Written(NamedTuple):
    """A unit that holds data; `blank` has a bit for each block of it that is a hole by now."""

    unit: Unit
    version: int
    tag: bytes
    blank: int = 0

    def blank_blocks(self) -> Iterator[int]:
        """The blocks that are holes."""
        return (
            self.unit.block + index
            for index in range(self.blank.bit_length())
            if self.blank >> index & 1
        )


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
                written = _parsed(block, word, tag)
                found.append(written)
                block = written.unit.end
            elif block % _PIECE == 0 and self._is_empty(block, block + _PIECE):
                block += _PIECE
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
        unit = written.unit
        self._clear(unit.block, unit.end)
        word = (written.version << MAX_BLOCKS | written.blank) << _LEVEL_BITS | unit.level
        _RECORD.pack_into(self._memory, unit.block * _RECORD.size, word, written.tag)

    def blank(self, first: int, end: int) -> list[Unit]:
        """Make the blocks [first, end) holes; return the units that hold no data any more."""
        emptied = []
        for written in self.written(first, end):
            unit = written.unit
            low, high = max(first, unit.block), min(end, unit.end)
            bits = ((1 << (high - low)) - 1) << (low - unit.block)
            if written.blank | bits == (1 << (unit.end - unit.block)) - 1:
                self._clear(unit.block, unit.end)
                emptied.append(unit)
            else:
                self.put(written._replace(blank=written.blank | bits))
        return emptied

    def _clear(self, first: int, end: int) -> None:
        """Empty records.  What is empty is not written to, for that would take memory."""
        if not self._is_empty(first, end):
            low, high = first * _RECORD.size, end * _RECORD.size
            self._memory[low:high] = bytes(high - low)

    def _is_empty(self, first: int, end: int) -> bool:
        piece = self._memory[first * _RECORD.size : end * _RECORD.size]
        return piece.count(0) == len(piece)


def _parsed(block: int, word: int, tag: bytes) -> Written:
    unit = Unit(block, word & _LEVEL_MASK)
    return Written(unit, word >> _VERSION_SHIFT, tag, word >> _LEVEL_BITS & _BLANK_MASK)
