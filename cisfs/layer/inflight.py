"""What one open file tells the journal before it changes: docs/FORMAT.md, section 7.

Every change is announced, which costs a store to memory.  A change of content that the user may
count on after a power cut (it was there when the file was opened, or was fsynced since) is made
only after a record of its region is durable.  Knows no descriptors and no keys.

One thread at a time.
"""

from __future__ import annotations

from cisfs.format.geometry import Geometry
from cisfs.format.journal import Record
from cisfs.layer.journal import Journal

REGION_UNITS = 256
_END = (-1, -1)  # stands, among the regions, for "where the file ends is changing"


class InFlight:
    """Announces the changes of one open file."""

    __slots__ = ("_file_id", "_generation", "_geometry", "_held", "_journal", "_stable")

    def __init__(
        self, journal: Journal, file_id: bytes, geometry: Geometry, stable: int | None
    ) -> None:
        """`stable` is the size in bytes that is promised durable, None for a new file."""
        self._journal = journal
        self._file_id = file_id
        self._geometry = geometry
        self._stable = stable
        self._held: dict[tuple[int, int], int] = {}  # regions [start, stop) -> slot
        self._generation = journal.generation

    def begin(self, old: int, new: int, first: int, end: int) -> Record:
        """The units [first, end) are about to be written, the size to go from `old` to `new`.

        Raises OSError if the record could not be made durable; then nothing may be written.
        """
        if self._stable is not None:
            self._promise(self._stable, old != new, first, end)
        record = Record(self._file_id, old, new, first, end)
        self._journal.begin(record)
        return record

    def end(self) -> None:
        """What was announced is complete."""
        self._journal.end()

    def settle(self, size: int) -> None:
        """Everything up to `size` bytes was made durable."""
        self._stable = size
        if self._generation == self._journal.generation:
            for slot in self._held.values():
                self._journal.drop(slot)
        self._held.clear()
        self._generation = self._journal.generation

    def _promise(self, stable: int, resized: bool, first: int, end: int) -> None:
        """Make sure that a durable record speaks of every promised thing that is touched."""
        if self._generation != self._journal.generation:
            self._held.clear()
            self._generation = self._journal.generation
        units = self._geometry.unit_count(stable)
        wanted = []
        if first < units:
            last = min(end, units) - 1
            wanted.append((first // REGION_UNITS, last // REGION_UNITS + 1))
        if resized:
            wanted.append(_END)
        missing = [span for span in wanted if not self._is_held(span)]
        for span in missing:
            start, stop = span[0] * REGION_UNITS, span[1] * REGION_UNITS
            if span == _END:
                start = stop = units
            slot = self._journal.hold(Record(self._file_id, stable, stable, start, stop))
            self._held[span] = slot
        if missing:
            self._journal.sync()

    def _is_held(self, span: tuple[int, int]) -> bool:
        return span in self._held or any(
            start <= span[0] and span[1] <= stop for start, stop in self._held
        )
