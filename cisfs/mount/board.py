"""What the workers of a mount tell their supervisor, in memory that they share.

Each worker has a seat, and writes there which request it has in hand and since when, and which it
has put aside until what they ask for has come.  It waits for nobody, and a worker that is killed
leaves its last word standing, which is the point.

Does not know what requests are.  One writer for each seat; a reader may see a seat between its two
numbers being written, so what it sees is worth acting on only when it stays.
"""

from __future__ import annotations

import mmap
import struct
import time

ASIDE = 1024  # requests that a worker can put aside

_SEAT = struct.Struct("=QQ")  # when the request was taken (monotonic, ns; 0: idle), its number
_ASIDES = struct.Struct(f"={ASIDE}Q")  # numbers, in any place; 0: none
_NUMBER = struct.Struct("=Q")


class Board:
    """The seats of `count` workers."""

    def __init__(self, count: int) -> None:
        """Make the board, all seats idle; processes forked afterwards share it."""
        self._asides = _SEAT.size * count
        self._memory = mmap.mmap(-1, self._asides + _ASIDES.size * count)

    def seat(self, index: int) -> Seat:
        """Return a worker's own seat, made idle."""
        seat = Seat(self._memory, index * _SEAT.size, self._asides + index * _ASIDES.size)
        seat.rest()
        for place, number in enumerate(self._all_aside(index)):
            if number:
                seat.take_up(place)
        return seat

    def in_hand(self, index: int) -> int:
        """Return the number of the request that a worker has in hand; 0 for none."""
        taken, number = _SEAT.unpack_from(self._memory, index * _SEAT.size)
        return number if taken else 0

    def aside(self, index: int) -> list[int]:
        """Return the numbers of the requests that a worker has put aside."""
        return [number for number in self._all_aside(index) if number]

    def _all_aside(self, index: int) -> tuple[int, ...]:
        return _ASIDES.unpack_from(self._memory, self._asides + index * _ASIDES.size)

    def busy_for(self, index: int) -> float:
        """Return for how many seconds a worker has had its request; 0.0 when it is idle."""
        taken, _ = _SEAT.unpack_from(self._memory, index * _SEAT.size)
        return (time.monotonic_ns() - taken) / 1e9 if taken else 0.0


class Seat:
    """One worker's place on the board."""

    __slots__ = ("_asides", "_memory", "_offset")

    def __init__(self, memory: mmap.mmap, offset: int, asides: int) -> None:
        """Used by `Board.seat` only."""
        self._memory = memory
        self._offset = offset
        self._asides = asides

    def take(self, number: int) -> None:
        """Say: request `number` is in hand, from now on."""
        _SEAT.pack_into(self._memory, self._offset, time.monotonic_ns(), number)

    def rest(self) -> None:
        """Say: nothing in hand."""
        _SEAT.pack_into(self._memory, self._offset, 0, 0)

    def put_aside(self, place: int, number: int) -> None:
        """Say: request `number` is put aside; `place`, below ASIDE, was free."""
        _NUMBER.pack_into(self._memory, self._asides + place * _NUMBER.size, number)

    def take_up(self, place: int) -> None:
        """Say: what was put aside there is not so any more."""
        self.put_aside(place, 0)
