"""Mending a file whose change was cut off: docs/FORMAT.md, section 7.2.

Works on what the journal names and on nothing else: a unit that fails its check outside of the
named ranges stays as it is, and reading it stays an error.  Knows neither names nor the journal's
file.  One thread at a time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cisfs.format.journal import Record
from cisfs.layer.units import Units


@dataclass(frozen=True, slots=True)
class Mended:
    """What mending did to one file: its size now, in bytes, and the units that it tagged anew."""

    size: int
    units: tuple[int, ...]
    resized: bool

    @property
    def changed(self) -> bool:
        """Whether anything had to be mended at all."""
        return self.resized or bool(self.units)


def mend(units: Units, operation: Record | None, regions: Sequence[Record]) -> Mended:
    """Bring a file back to a state in which every byte can be read.

    `operation` is the one change that was under way, exact, where the machine has not been
    restarted since; `regions` are the records that survive a power cut.  Units that were being
    overwritten keep whatever 16-byte blocks of old and new content they hold, as they would in an
    unencrypted file; content that was being appended may be dropped.  Raises OSError.
    """
    units.whole = None
    stored = os.fstat(units.fd).st_size
    size = units.geometry.plain_size_below(stored)
    named = [record for record in (operation, *regions) if record is not None]
    if not _ends_well(units, stored, size, operation):
        size = _torn_size(units, size, operation, regions)
    resized = units.geometry.cipher_size(size) != stored or not units.end_is_intact(size)
    torn = tuple(_mend_units(units, size, named, resized))
    if resized:
        units.write_at(units.trailer(size), units.geometry.trailer_offset(size))
        os.ftruncate(units.fd, units.geometry.cipher_size(size))
    return Mended(size, torn, resized)


def _ends_well(units: Units, stored: int, size: int, operation: Record | None) -> bool:
    """Whether the file ends where its stored size says, and was not just being cut."""
    if units.geometry.cipher_size(size) != stored or not units.end_is_intact(size):
        return False
    cutting = operation is not None and operation.new_size < operation.old_size
    return not cutting or operation is None or size == operation.new_size


def _torn_size(
    units: Units, implied: int, operation: Record | None, regions: Sequence[Record]
) -> int:
    """The size for a file whose end is torn: what was promised, and whole units after it."""
    if operation is not None:
        return min(implied, operation.old_size, operation.new_size)
    promised = min((record.old_size for record in regions), default=0)
    size = implied
    while size > promised:
        last = units.geometry.unit_count(size) - 1
        if units.is_intact(last, size):
            break
        size = max(promised, units.geometry.unit_start(last))
    return min(size, implied)


def _mend_units(units: Units, size: int, named: Sequence[Record], resized: bool) -> Iterator[int]:
    """Tag the torn units among the named ones, mark the holes among them; yield the torn."""
    count, full = units.geometry.unit_count(size), units.geometry.full_units(size)
    spans = {(record.first, min(record.end, count)) for record in named}
    if resized and count > full:
        spans.add((full, count))  # the last unit's padding moved with the end
    done = -1
    for first, end in sorted(spans):
        for unit, after in _stored_runs(units, max(first, done), end, full):
            if after > unit:
                units.holes.mark(units.fd, unit, after)
            elif not units.is_intact(unit, size):
                units.store(unit, [units.load_unchecked(unit, size)], None)
                yield unit
        done = max(done, end)


def _stored_runs(units: Units, first: int, end: int, full: int) -> Iterator[tuple[int, int]]:
    """Walk the units [first, end): yields (unit, unit) for data, (first, end) for a tagless run.

    Where the backing file system knows that nothing is stored, nothing is read.
    """
    unit = first
    while unit < end:
        start = unit
        while unit < min(end, full) and units.holes.is_tagless(units.fd, unit):
            unit = max(unit + 1, min(end, full, units.next_stored(unit + 1)))
        if unit > start:
            yield start, unit
        else:
            yield unit, unit
            unit += 1
