"""Holes of one file: authenticated markers that tell a hole from a unit that was zeroed.

docs/FORMAT.md, section 3.4.  Works on a backing descriptor; knows nothing of plaintext.
One thread at a time.
"""

from __future__ import annotations

import os
from hmac import compare_digest

from cisfs.crypto.units import UnitCipher
from cisfs.format.geometry import TAG_SIZE, Geometry, hole_blocks, hole_candidates
from cisfs.format.header import MARKER_SIZE, NO_TAG, pack_marker, parse_marker


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

    def survey(self, fd: int, first: int, end: int) -> tuple[int, int]:
        """Return the smallest range that holds [first, end) and every hole that touches it.

        Both `first` and `end - 1` are full units of the file.
        """
        low, high = first, end
        for unit in {first, end - 1}:
            if not self.is_tagless(fd, unit):
                continue
            for start in hole_candidates(unit):
                level = self._level(fd, start)
                if level is not None and unit < start + (1 << level):
                    low, high = min(low, start), max(high, start + (1 << level))
        return low, high

    def carve(self, fd: int, surveyed: tuple[int, int], end: int) -> None:
        """Take the units before `end` out of the hole that reaches past it.

        Call it right before units [first, end) are written or cut off, with what `survey` said of
        them and after that range went to the journal; and call `shrink` right after.
        """
        self._last = (0, 0)
        self.mark(fd, end, max(end, surveyed[1]))

    def shrink(self, fd: int, surveyed: tuple[int, int], first: int) -> None:
        """End the hole that reached from before `first` past it at `first`."""
        self._last = (0, 0)
        self.mark(fd, surveyed[0], first)

    def _mark_block(self, fd: int, unit: int, level: int) -> None:
        if self.is_tagless(fd, unit):
            marker = pack_marker(level, self._cipher.hole_tag(unit, level))
            os.pwrite(fd, marker, self._geometry.slot_offset(unit))
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
