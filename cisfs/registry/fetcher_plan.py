"""What to fetch next of a layer that is not all here: what readers wait for, then the rest.

Readers' units come first, with what follows them where a reader seems to go on.  When none has
asked for a moment, the rest is filled in.  What failed is tried again after a while, what was wrong
after a longer one.  Does not know registries, files or sockets.

For several threads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain
from time import monotonic
from typing import Protocol

from cisfs.format.sealed_geometry import LayerGeometry

_NEAR = 512 << 10  # bytes fetched for a read that nothing led up to
_AHEAD = 4 << 20  # for one that goes on where others have read
_TRIGGER = 1 << 20  # bytes before the end of what is on its way at which more is sent for
_REST = 16 << 20  # bytes of the rest at a time
_FIRST_WAIT, _LONGEST_WAIT = 0.25, 5.0  # seconds after failures
_FIRST_BAN, _LONGEST_BAN = 2.0, 60.0  # seconds in which a unit that was wrong is left alone


class Missing(Protocol):
    """What is missing: see `cisfs.layer.filling.Filler`."""

    geometry: LayerGeometry

    def lacks(self, unit: int) -> bool:
        """Tell whether a unit is missing."""

    def missing(self, units: range) -> Iterator[int]:
        """Yield those of `units` that are missing, in order."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Units that one request is to bring; somebody waits for them if they are `wanted`."""

    units: range
    wanted: bool


@dataclass(slots=True)
class Waiter:
    """Who waits for units: `tell` is called once, when the last of them is here."""

    left: set[int]
    tell: Callable[[], None]


@dataclass(slots=True)
class _Ban:
    until: float
    wait: float


class Plan:
    """The plan for one layer; threads ask for the `next` piece and say what came of it."""

    def __init__(self, missing: Missing, *, quiet: float) -> None:
        """`quiet`: seconds without a reader's wish after which the rest is filled in."""
        self._missing = missing
        self._geometry = missing.geometry
        self._quiet = quiet
        self._changed = threading.Condition()
        self._wanted: dict[int, list[Waiter]] = {}  # units, in the order they were asked for
        self._flying: set[int] = set()
        self._banned: dict[int, _Ban] = {}
        self._ahead: int | None = None  # a unit to go on with
        self._cursor = 0  # where the rest is looked for
        self._last_want = monotonic()
        self._not_before = 0.0
        self._failures = 0
        self._is_closed = False

    # -- readers -----------------------------------------------------------------------------

    def want(self, units: range, tell: Callable[[], None]) -> Waiter:
        """Send for what is missing of `units`; `tell` is called when all is here, or at once."""
        with self._changed:
            left = {unit for unit in units if self._missing.lacks(unit)}
            waiter = Waiter(left, tell)
            self._last_want = monotonic()
            for unit in units:
                if unit in left:
                    self._wanted.setdefault(unit, []).append(waiter)
            self._look_ahead(units[-1])
            self._changed.notify_all()
        if not left:
            tell()
        return waiter

    def forget(self, waiter: Waiter) -> None:
        """Somebody does not wait any more."""
        with self._changed:
            for unit in waiter.left:
                waiting = self._wanted.get(unit, [])
                if waiter in waiting:
                    waiting.remove(waiter)
                if not waiting:
                    self._wanted.pop(unit, None)

    @property
    def is_pressing(self) -> bool:
        """Whether somebody waits for what is not on its way."""
        now = monotonic()
        return any(self._is_open(unit, now) for unit in list(self._wanted))

    # -- threads -----------------------------------------------------------------------------

    def next(self, *, rest: bool) -> Piece | None:
        """Return what to fetch, waiting until there is something; None: end.

        The `rest` is for one thread only, so that it takes one connection.
        """
        with self._changed:
            while not self._is_closed:
                now = monotonic()
                piece = self._choose(now, rest) if now >= self._not_before else None
                if piece is not None:
                    self._flying.update(piece.units)
                    return piece
                self._changed.wait(self._time_to_wait(now))
        return None

    def arrived(self, unit: int) -> None:
        """A unit is here."""
        with self._changed:
            self._flying.discard(unit)
            self._banned.pop(unit, None)
            waiting = self._wanted.pop(unit, [])
            for waiter in waiting:
                waiter.left.discard(unit)
            met = [waiter for waiter in waiting if not waiter.left]
        for waiter in met:
            waiter.tell()

    def finished(self, piece: Piece) -> None:
        """A piece has come, or as much of it as was worth waiting for."""
        with self._changed:
            self._failures = 0
            self._land(piece)

    def failed(self, piece: Piece, *, progress: bool = False) -> int:
        """A piece has not come whole; returns how many failed one after the other.

        One that made `progress` begins the count anew.
        """
        with self._changed:
            self._failures = 1 if progress else self._failures + 1
            wait = min(_LONGEST_WAIT, _FIRST_WAIT * (1 << min(self._failures - 1, 10)))
            self._not_before = monotonic() + wait
            self._land(piece)
            return self._failures

    def ban(self, unit: int) -> None:
        """Leave a unit that was wrong alone for a while."""
        with self._changed:
            before = self._banned.get(unit)
            wait = min(_LONGEST_BAN, 2 * before.wait) if before is not None else _FIRST_BAN
            self._banned[unit] = _Ban(monotonic() + wait, wait)

    def close(self) -> None:
        """Let `next` return None from now on."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    @property
    def is_closed(self) -> bool:
        """Whether the end has come."""
        return self._is_closed

    def _land(self, piece: Piece) -> None:
        self._flying.difference_update(piece.units)
        self._changed.notify_all()

    # -- choosing, with the lock held ----------------------------------------------------------

    def _choose(self, now: float, rest: bool) -> Piece | None:
        for unit in self._wanted:
            if self._is_open(unit, now):
                return Piece(self._run(unit, self._span(unit), now), wanted=True)
        if self._ahead is not None:
            first, self._ahead = self._ahead, None
            if self._is_open(first, now):
                return Piece(self._run(first, _AHEAD, now), wanted=True)
        if rest and now >= self._last_want + self._quiet:
            return self._of_the_rest(now)
        return None

    def _of_the_rest(self, now: float) -> Piece | None:
        parts = range(self._cursor, self._geometry.unit_count), range(self._cursor)
        for unit in chain.from_iterable(map(self._missing.missing, parts)):
            if self._is_open(unit, now):
                units = self._run(unit, _REST, now)
                self._cursor = units.stop
                return Piece(units, wanted=False)
        return None

    def _span(self, unit: int) -> int:
        """How many bytes to fetch for a reader at `unit`."""
        return _AHEAD if unit and not self._missing.lacks(unit - 1) else _NEAR

    def _run(self, first: int, size: int, now: float) -> range:
        """The units from `first` on that can be fetched together, `size` bytes at most."""
        limit = min(first + len(self._geometry.units_of(0, size)), self._geometry.unit_count)
        stop = first + 1
        while stop < limit and self._is_open(stop, now):
            stop += 1
        return range(first, stop)

    def _is_open(self, unit: int, now: float) -> bool:
        """Whether a unit is to be fetched now."""
        ban = self._banned.get(unit)
        return (
            unit not in self._flying
            and self._missing.lacks(unit)
            and (ban is None or now >= ban.until)
        )

    def _look_ahead(self, unit: int) -> None:
        """Send for more where a reader nears the end of what is on its way."""
        last = unit
        limit = unit + len(self._geometry.units_of(0, _TRIGGER))
        while last in self._flying and last < limit:
            last += 1
        if unit < last < min(limit, self._geometry.unit_count):
            self._ahead = last

    def _time_to_wait(self, now: float) -> float:
        """Seconds until something could be chosen though nothing has happened."""
        times = [self._not_before, self._last_want + self._quiet]
        times += [ban.until for ban in self._banned.values()]
        return min([time - now for time in times if time > now], default=1.0)
