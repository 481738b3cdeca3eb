"""The journal of one mount: which units are being overwritten, in a file mapped into memory.

A store into the map survives the death of this process; `hold` makes it survive the machine's.
Slot 0 holds the one operation under way (operations are serial), the others hold regions of files
that were promised durable and are being changed.  Knows nothing of how a file is mended.

One thread at a time.
"""

from __future__ import annotations

import mmap
import os
import secrets
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cisfs.errors import FormatError
from cisfs.format import journal as form
from cisfs.format.journal import Record
from cisfs.format.names import JOURNAL_FILE
from cisfs.layer.directory import READ_WRITE_FLAGS, open_regular

_REGIONS = form.HEADER_SIZE + form.RECORD_SIZE  # where the held records begin


class Journal:
    """A journal open for writing, empty at first."""

    def __init__(self, directory: int, key: bytes, checkpoint: Callable[[], None]) -> None:
        """Make the journal file ready in `directory` (a descriptor).

        `checkpoint` makes everything written to the vault so far durable; it is called when the
        journal is full, before its records are dropped.  Raises OSError.
        """
        self._key = key
        self._id = secrets.token_bytes(16)
        self._checkpoint = checkpoint
        fd = open_regular(directory, JOURNAL_FILE, READ_WRITE_FLAGS | os.O_CREAT)
        try:
            # Allocated now: a store into a sparse map on a full disk would be a SIGBUS.
            os.posix_fallocate(fd, 0, form.FILE_SIZE)
            self._map = mmap.mmap(fd, form.FILE_SIZE)
        finally:
            os.close(fd)
        self._map[:] = form.pack_header(self._id, _boot_id()).ljust(form.FILE_SIZE, b"\0")
        self._map.flush()
        self._clear_held()

    def begin(self, record: Record) -> None:
        """Write down the operation that is about to change the vault."""
        start = form.HEADER_SIZE
        packed = form.pack_record(self._key, self._id, record)
        self._map[start : start + form.RECORD_SIZE] = packed

    def end(self) -> None:
        """The operation that `begin` announced is complete."""
        start = form.HEADER_SIZE
        self._map[start : start + form.RECORD_SIZE] = form.FREE

    def held(self, file_id: bytes) -> Collection[Record]:
        """The records that are kept of a file."""
        return self._held.get(file_id, {})

    def hold(self, records: Sequence[Record]) -> None:
        """Keep records of one file, durably, until `settle`.  Raises OSError."""
        if len(self._free) < len(records):
            self._checkpoint()
            self._map[_REGIONS:] = bytes(form.FILE_SIZE - _REGIONS)
            self._clear_held()
        for record in records:
            slot = self._free.pop()
            self._held.setdefault(record.file_id, {})[record] = slot
            self._put(slot, form.pack_record(self._key, self._id, record))
        self._map.flush()

    def settle(self, file_id: bytes) -> None:
        """Drop the records of a file: everything written to it is durable."""
        for slot in self._held.pop(file_id, {}).values():
            self._put(slot, form.FREE)
            self._free.append(slot)

    def close(self) -> None:
        """Leave an empty journal behind; whatever it spoke of is durable before."""
        if self._held:
            self._checkpoint()
        self._map[form.HEADER_SIZE :] = bytes(form.FILE_SIZE - form.HEADER_SIZE)
        self._map.close()

    def _clear_held(self) -> None:
        self._held: dict[bytes, dict[Record, int]] = {}
        self._free = list(range(form.SLOTS - 1, 0, -1))

    def _put(self, slot: int, data: bytes) -> None:
        start = form.HEADER_SIZE + slot * form.RECORD_SIZE
        self._map[start : start + form.RECORD_SIZE] = data


@dataclass(frozen=True, slots=True)
class LeftOver:
    """What the last mount left in flight.

    `operation` is the change under way when its process died; it is None when the machine was
    restarted since, for then only `regions`, the durable records, are to be trusted.
    """

    operation: Record | None = None
    regions: list[Record] = field(default_factory=list)

    def file_ids(self) -> set[bytes]:
        """The files that anything is said of."""
        ids = {record.file_id for record in self.regions}
        return ids | {self.operation.file_id} if self.operation else ids

    def of(self, file_id: bytes) -> LeftOver:
        """The part that speaks of one file."""
        mine = self.operation is not None and self.operation.file_id == file_id
        return LeftOver(
            self.operation if mine else None,
            [record for record in self.regions if record.file_id == file_id],
        )


def read_left_over(directory: int, key: bytes) -> LeftOver:
    """Read the journal in `directory` (a descriptor); empty after a clean end.  Raises OSError.

    A journal that is missing, truncated or not ours has nothing to say: its loss costs the
    mending, and gains an attacker nothing.
    """
    try:
        fd = open_regular(directory, JOURNAL_FILE)
    except FileNotFoundError:
        return LeftOver()
    try:
        data = os.pread(fd, form.FILE_SIZE, 0)
    finally:
        os.close(fd)
    try:
        journal_id, boot_id = form.parse_header(data)
    except FormatError:
        return LeftOver()
    operation, *regions = (
        form.parse_record(key, journal_id, data[start : start + form.RECORD_SIZE])
        for start in range(form.HEADER_SIZE, form.FILE_SIZE, form.RECORD_SIZE)
    )
    return LeftOver(
        operation if boot_id == _boot_id() else None,
        [record for record in regions if record is not None],
    )


def _boot_id() -> bytes:
    text = Path("/proc/sys/kernel/random/boot_id").read_text("ascii")
    return bytes.fromhex(text.strip().replace("-", ""))
