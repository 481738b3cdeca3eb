"""Holes of one file: authenticated markers that tell a hole from a unit that was zeroed.

docs/FORMAT.md, section 3.4.  Works on a backing descriptor; knows nothing of plaintext.
One thread at a time.
"""

from __future__ import annotations

import errno
import os
from hmac import compare_digest

from cisfs.crypto.units import UnitCipher
from cisfs.format.geometry import TAG_SIZE, Geometry, hole_blocks, hole_candidates
from cisfs.format.header import MARKER_SIZE, MAX_HOLE_LEVEL, NO_TAG, pack_marker, parse_marker


class Holes:
    """The hole markers of one open file."""

    __slots__ = ("_cipher", "_geometry", "_last")

    def __init__(self, geometry: Geometry, cipher: UnitCipher) -> None:
        self._geometry = geometry
        self._cipher = cipher
        self._last = (0, 0)  # the hole seen last, so that a long one is not looked up per unit

    def covers(self, fd: int, unit: int) -> bool:
        """Tell whether a marker vouches that `unit`, a slot without a tag, is a hole."""
        if self._last[0] <= unit < self._last[1]:
            return True
        for first in hole_candidates(unit):
            level = self._level(fd, first)
            if level is not None and unit < first + (1 << level):
                self._last = (first, first + (1 << level))
                return True
        return False

    def last_end(self, unit: int) -> int:
        """The end of the hole around `unit` if it was the one seen last, else `unit`."""
        return self._last[1] if self._last[0] <= unit < self._last[1] else unit

    def mark(self, fd: int, first: int, end: int) -> None:
        """Write markers that make the tagless slots of the full units [first, end) a hole."""
        for unit, level in hole_blocks(first, end):
            self._mark_block(fd, unit, level)

    def survey(self, fd: int, first: int, end: int) -> tuple[tuple[int, int], bool]:
        """Return the range of [first, end) and every hole that reaches into it from outside.

        All are full units of the file.  Also tells whether any of them is of a hole, so that a
        change of them takes more than overwriting.
        """
        low, high = first, end
        tagless = [unit for unit in range(first, end) if self.is_tagless(fd, unit)]
        for unit in {first, end - 1}.intersection(tagless):
            for start in hole_candidates(unit):
                level = self._level(fd, start)
                if level is not None and unit < start + (1 << level):
                    low, high = min(low, start), max(high, start + (1 << level))
        return (low, high), bool(tagless)

    def carve(self, fd: int, around: tuple[int, int], first: int, end: int) -> None:
        """Prepare to take the units [first, end) out of their holes, `around` being their survey.

        Every marker that will then be needed is written, but for the one that stands before
        `first` now and covers it: until `shrink` replaces that, each unit stays covered.  So this
        may fail (a full disk) or be cut off, and nothing has changed.
        """
        low, high = around
        self.mark(fd, end, high)
        for unit, level in list(hole_blocks(low, first))[1:]:
            self._mark_block(fd, unit, level)

    def shrink(self, fd: int, around: tuple[int, int], first: int) -> None:
        """End the hole that reached past `first` there, after `carve` and the change itself."""
        self.forget()
        for unit, level in list(hole_blocks(around[0], first))[:1]:
            self._mark_block(fd, unit, level)

    def forget(self) -> None:
        """Drop what is remembered of the file: it changed."""
        self._last = (0, 0)

    def is_marker_block(self, unit: int, index: int, block: bytes) -> bool:
        """Tell whether a 16-byte block, the first or second of a unit, is of its hole marker."""
        if index == 0:
            return block[0] <= MAX_HOLE_LEVEL and not any(block[1:])
        levels = range(MAX_HOLE_LEVEL + 1)
        return any(compare_digest(block, self._cipher.hole_tag(unit, level)) for level in levels)

    def marker(self, unit: int, level: int) -> bytes:
        """The 32 bytes that say: `2**level` units from `unit` on are a hole."""
        return pack_marker(level, self._cipher.hole_tag(unit, level))

    def _mark_block(self, fd: int, unit: int, level: int) -> None:
        if self.is_tagless(fd, unit):
            marker = self.marker(unit, level)
            if os.pwrite(fd, marker, self._geometry.slot_offset(unit)) != len(marker):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return
        # Data stands where the marker would: mark the rest of the block piece by piece.
        for smaller in range(level):
            self._mark_block(fd, unit + (1 << smaller), smaller)

    def is_tagless(self, fd: int, unit: int) -> bool:
        """Tell whether the slot of a full unit has no tag: a hole, or zeroed."""
        return os.pread(fd, TAG_SIZE, self._geometry.tag_offset(unit)) == NO_TAG

    def _level(self, fd: int, unit: int) -> int | None:
        if not self.is_tagless(fd, unit):
            return None
        found = parse_marker(os.pread(fd, MARKER_SIZE, self._geometry.slot_offset(unit)))
        if found is None:
            return None
        level, tag = found
        if unit & ((1 << level) - 1) or not compare_digest(tag, self._cipher.hole_tag(unit, level)):
            return None
        return level
