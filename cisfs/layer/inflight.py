"""What one open file tells the journal before it changes: docs/FORMAT.md, section 7.

Every change is announced, which costs a store to memory.  A change of content that the user may
count on after a power cut (it was there when the file was opened, or was fsynced since) is made
only after a record of its region is durable.  Knows no descriptors and no keys.

One thread at a time.
"""

from __future__ import annotations

from collections.abc import Collection

from cisfs.format.geometry import Geometry
from cisfs.format.journal import Record
from cisfs.layer.journal import Journal

REGION_UNITS = 256


class InFlight:
    """Announces the changes of one open file."""

    __slots__ = ("_file_id", "_geometry", "_journal", "_stable")

    def __init__(
        self, journal: Journal, file_id: bytes, geometry: Geometry, stable: int | None
    ) -> None:
        """`stable` is the size in bytes that is promised durable, None for a new file."""
        self._journal = journal
        self._file_id = file_id
        self._geometry = geometry
        self._stable = stable

    def begin(self, old: int, new: int, first: int, end: int) -> Record:
        """The units [first, end) are about to be written, the size to go from `old` to `new`.

        Raises OSError if the record could not be made durable; then nothing may be written.
        """
        if self._stable is not None:
            self._promise(self._stable, old, new, first, end)
        record = Record(self._file_id, old, new, first, end)
        self._journal.begin(record)
        return record

    def end(self) -> None:
        """What was announced is complete."""
        self._journal.end()

    def settle(self, size: int) -> None:
        """Everything up to `size` bytes was made durable."""
        self._stable = size
        self._journal.settle(self._file_id)

    def _promise(self, stable: int, old: int, new: int, first: int, end: int) -> None:
        """Make sure that a durable record speaks of every promised thing that is touched."""
        units = self._geometry.unit_count(stable)
        wanted = []
        if first < units:
            start = first // REGION_UNITS * REGION_UNITS
            stop = -(-min(end, units) // REGION_UNITS) * REGION_UNITS
            wanted.append(Record(self._file_id, stable, stable, start, stop))
        if old != new:  # where the file ends is changing, and where it may be cut to
            wanted.append(Record(self._file_id, stable, min(stable, new), units, units))
        held = self._journal.held(self._file_id)
        missing = [record for record in wanted if not _is_covered(record, held)]
        if missing:
            self._journal.hold(missing)


def _is_covered(wanted: Record, held: Collection[Record]) -> bool:
    if wanted in held:
        return True
    least = min(wanted.old_size, wanted.new_size)
    return any(
        record.first <= wanted.first
        and wanted.end <= record.end
        and min(record.old_size, record.new_size) <= least
        for record in held
    )
