"""Mending a file whose change was cut off: docs/FORMAT.md, section 7.2.

Works on what the journal names and on nothing else: a unit that fails its check outside of the
named ranges stays as it is, and reading it stays an error.  Knows neither names nor the journal's
file.  One thread at a time.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from cisfs.format.geometry import END_SIZE
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
    units.holes.forget()
    stored = os.fstat(units.fd).st_size
    if operation is not None:
        size = _size_after_operation(units, stored, operation)
        named = [operation, *regions]
    else:
        size = _size_after_power_cut(units, stored, regions)
        named = list(regions)
    resized = units.geometry.cipher_size(size) != stored or not units.end_is_intact(size)
    torn = tuple(_mend_units(units, size, named, resized))
    if resized:
        units.write_at(units.trailer(size), units.geometry.trailer_offset(size))
        os.ftruncate(units.fd, units.geometry.cipher_size(size))
    units.holes.forget()
    return Mended(size, torn, resized)


def salvage_end(units: Units) -> bool:
    """Give a file whose end is missing a new one after its last whole unit.

    Tells whether that was done: not where not even the first unit is whole, for then it is the
    header that is wrong, and the content may yet be saved by putting that right.  Raises OSError.
    """
    geometry = units.geometry
    stored = os.fstat(units.fd).st_size
    # With its trailer, or without.
    sizes = (geometry.plain_size_below(stored), geometry.plain_size_below(stored + END_SIZE))
    size = max(_whole_until(units, size) for size in sizes)
    if not size:
        return False
    units.write_at(units.trailer(size), geometry.trailer_offset(size))
    os.ftruncate(units.fd, geometry.cipher_size(size))
    return True


def _whole_until(units: Units, size: int) -> int:
    damaged = next(units.altered(size), None)
    return size if damaged is None else units.geometry.unit_start(damaged)


def _size_after_operation(units: Units, stored: int, operation: Record) -> int:
    """The size after a change that stopped at any point of its order.

    A cut is completed, and growth is taken back unless it was complete: its end is written last.
    """
    new = operation.new_size
    complete = units.geometry.cipher_size(new) == stored and units.end_is_intact(new)
    if new > operation.old_size and complete:
        return new
    return min(units.geometry.plain_size_below(stored), operation.old_size, new)


def _size_after_power_cut(units: Units, stored: int, regions: Sequence[Record]) -> int:
    """The size when any part of what was written since the last fsync may be missing.

    Promised is the least size in the records.  What follows stays up to the first unit that is not
    whole: where the file was cut, or ended before, that is a tag and a trailer, not content.
    """
    geometry = units.geometry
    size = geometry.plain_size_below(stored)
    sizes = [min(record.old_size, record.new_size) for record in regions]
    promised = min([size, *sizes]) if sizes else 0
    damaged = next(units.altered(size, geometry.unit_at(promised)), None)
    if damaged is None or size == promised:
        return size
    if damaged <= geometry.unit_at(promised) + 1:
        return promised  # the trailer may begin in the next slot
    return geometry.unit_start(damaged)


def _mend_units(units: Units, size: int, named: Sequence[Record], resized: bool) -> Iterator[int]:
    """Tag the torn units among the named ones, mark the holes among them; yield the torn."""
    count, full = units.geometry.unit_count(size), units.geometry.full_units(size)
    spans = {(record.first, min(record.end, count)) for record in named}
    if resized and count > full:
        spans.add((full, count))  # the last unit's padding moved with the end
    done = 0
    for first, end in sorted(spans):
        for unit, after in _runs(units, max(first, done), end, full):
            if after > unit:
                units.holes.mark(units.fd, unit, after)
            elif not units.is_intact(unit, size):
                units.store(unit, [units.load_torn(unit, size)], None)
                yield unit
        done = max(done, end)


def _runs(units: Units, first: int, end: int, full: int) -> Iterator[tuple[int, int]]:
    """Walk the units [first, end): yields (unit, unit) for data, (first, end) for a tagless run.

    A full unit without a tag was a hole before the change, and is one again: what was already
    written into it goes.  Where the backing file system knows that nothing is stored, nothing is
    read.
    """
    unit = first
    while unit < end:
        start = unit
        while unit < min(end, full) and units.holes.is_tagless(units.fd, unit):
            units.empty(unit)
            unit = max(unit + 1, min(end, full, units.next_stored(unit + 1)))
        if unit > start:
            yield start, unit
        else:
            yield unit, unit
            unit += 1
