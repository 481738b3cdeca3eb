"""What the workers of a mount tell their supervisor, in memory that they share.

Each worker has a seat, and writes there which request it has in hand and since when.  It waits for
nobody, and a worker that is killed leaves its last word standing, which is the point.

Does not know what requests are.  One writer for each seat; a reader may see a seat between its two
numbers being written, so what it sees is worth acting on only when it stays.
"""

from __future__ import annotations

import mmap
import struct
import time

_SEAT = struct.Struct("=QQ")  # when the request was taken (monotonic, ns; 0: idle), its number


class Board:
    """The seats of `count` workers."""

    def __init__(self, count: int) -> None:
        """Make the board, all seats idle; processes forked afterwards share it."""
        self._memory = mmap.mmap(-1, _SEAT.size * count)

    def seat(self, index: int) -> Seat:
        """Return a worker's own seat, made idle."""
        seat = Seat(self._memory, index * _SEAT.size)
        seat.rest()
        return seat

    def in_hand(self, index: int) -> int:
        """Return the number of the request that a worker has in hand; 0 for none."""
        taken, number = _SEAT.unpack_from(self._memory, index * _SEAT.size)
        return number if taken else 0

    def busy_for(self, index: int) -> float:
        """Return for how many seconds a worker has had its request; 0.0 when it is idle."""
        taken, _ = _SEAT.unpack_from(self._memory, index * _SEAT.size)
        return (time.monotonic_ns() - taken) / 1e9 if taken else 0.0


class Seat:
    """One worker's place on the board."""

    __slots__ = ("_memory", "_offset")

    def __init__(self, memory: mmap.mmap, offset: int) -> None:
        """Used by `Board.seat` only."""
        self._memory = memory
        self._offset = offset

    def take(self, number: int) -> None:
        """Say: request `number` is in hand, from now on."""
        _SEAT.pack_into(self._memory, self._offset, time.monotonic_ns(), number)

    def rest(self) -> None:
        """Say: nothing in hand."""
        _SEAT.pack_into(self._memory, self._offset, 0, 0)
