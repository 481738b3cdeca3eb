"""One open encrypted file: read, write, truncate and sync plaintext.

Implements docs/FORMAT.md, section 3, in the write order of section 7.  Does not know names,
directories or FUSE.  One thread at a time: all files of a vault share two buffers, and what `read`
returns is valid until the next call.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

from cisfs.crypto.keys import ID_SIZE, SecretKey
from cisfs.errors import IntegrityError
from cisfs.format.geometry import EMPTY_SIZE, HEADER_SIZE, MAX_PLAIN_SIZE, TAG_SIZE
from cisfs.format.header import FileHeader
from cisfs.format.journal import Record
from cisfs.layer.inflight import InFlight
from cisfs.layer.journal import Journal
from cisfs.layer.mend import mend
from cisfs.layer.units import Buffers, Bytes, Units


@dataclass(frozen=True, slots=True)
class FileContext:
    """What all files of an open vault share; `journal` is None where nothing may be written."""

    master: SecretKey
    unit_size: int
    buffers: Buffers
    journal: Journal | None


class EncryptedFile:
    """An open file of a vault; `size` is its plaintext size in bytes, `fd` its descriptor."""

    __slots__ = ("_in_flight", "_torn", "_units", "fd", "file_id", "size")

    def __init__(self, units: Units, size: int, in_flight: InFlight | None) -> None:
        self._units = units
        self._in_flight = in_flight
        self._torn: Record | None = None  # a failed change that could not be mended yet
        self.fd = units.fd
        self.file_id = units.header.file_id
        self.size = size

    @classmethod
    def create(cls, fd: int, context: FileContext) -> Self:
        """Make the empty backing file `fd` an empty encrypted one.  Raises OSError."""
        header = FileHeader(context.unit_size, secrets.token_bytes(ID_SIZE))
        units = Units(fd, header, context.master, context.buffers)
        units.write_at(header.pack() + units.trailer(0), 0)
        return cls(units, 0, _in_flight(context, units, None))

    @classmethod
    def open(cls, fd: int, context: FileContext) -> Self:
        """Open what `fd` holds, and take `fd` over.

        Raises FormatError for a truncated or foreign file, IntegrityError if its end or its header
        was altered, OSError.
        """
        units, stored = open_units(fd, context)
        size = units.geometry.plain_size(stored)
        if not units.end_is_intact(size):
            raise IntegrityError("the end of the file, or its header, was altered")
        return cls(units, size, _in_flight(context, units, size))

    def reopen(self, fd: int, context: FileContext) -> None:
        """Go on with `fd`, the same backing file opened for writing; close the old one."""
        os.close(self.fd)
        self.fd = self._units.fd = fd
        self._in_flight = _in_flight(context, self._units, self.size)

    @property
    def writable(self) -> bool:
        """Whether this was opened for writing."""
        return self._in_flight is not None

    def close(self) -> None:
        """Close the descriptor; what is not yet durable stays in the journal."""
        os.close(self.fd)
        self.fd = -1

    def read(self, offset: int, length: int) -> memoryview:
        """Return up to `length` bytes from `offset`, fewer only at the end of the file.

        The view is valid until the next call on any file of the vault.  Raises IntegrityError,
        naming the unit, before a byte of an altered unit is decrypted; OSError.
        """
        if self._torn is not None:
            self._settle_change()
        length = min(length, self.size - offset)
        if length <= 0:
            return memoryview(b"")
        geometry = self._units.geometry
        last = geometry.unit_at(offset + length - 1)
        plain = self._units.load(geometry.unit_at(offset), last, self.size)
        skip = geometry.within_unit(offset)
        return plain[skip : skip + length]

    def damaged_units(self) -> list[int]:
        """Check every unit, decrypting none; returns the numbers of the altered ones."""
        return list(self._units.altered(self.size))

    def data_spans(self) -> Iterator[tuple[int, int]]:
        """The parts of the file, as (offset, end), that are not holes: whole units, in order.

        Raises IntegrityError for a unit that only pretends to be of a hole, OSError.
        """
        geometry = self._units.geometry
        for first, end in self._units.data_spans(self.size):
            yield geometry.unit_start(first), min(geometry.unit_start(end), self.size)

    def write(self, offset: int, data: Bytes) -> int:
        """Write all of `data` at `offset`; a gap past the end becomes a hole.  Returns its length.

        Raises OSError, when the old content is still readable; IntegrityError if a unit that
        changes in part was altered.
        """
        if not data:
            return 0
        if self._torn is not None:
            self._settle_change()
        end = offset + len(data)
        _check_limit(end)
        if offset > self.size:
            self.truncate(offset)
        first = self._units.geometry.unit_at(offset)
        self._store(first, self._spans(offset, memoryview(data)), max(self.size, end))
        return len(data)

    def truncate(self, size: int) -> None:
        """Set the plaintext size; new bytes are zeros that cost no space.  Raises OSError."""
        _check_limit(size)
        if self._torn is not None:
            self._settle_change()
        if size < self.size:
            self._cut(size)
        elif size > self.size:
            self._grow(size)

    def discard(self, offset: int, length: int) -> None:
        """Make bytes of the file zeros; full units among them become a hole, and take no space.

        Raises OSError, EOPNOTSUPP if the backing file system has no holes; IntegrityError if a unit
        that changes in part was altered.
        """
        geometry = self._units.geometry
        end = min(offset + length, self.size)
        first, stop = geometry.unit_after(offset), geometry.full_units(end)
        if first >= stop:
            self.write(offset, bytes(max(0, end - offset)))
            return
        self.write(offset, bytes(geometry.unit_start(first) - offset))
        self.write(geometry.unit_start(stop), bytes(end - geometry.unit_start(stop)))
        for begin, over in self._units.data_runs(first, stop):
            with self._announced(self.size, begin, over):
                self._units.empty_out(begin, over)

    def sync(self, datasync: bool) -> None:
        """Make the content durable, and the metadata too unless `datasync`.  Raises OSError."""
        (os.fdatasync if datasync else os.fsync)(self.fd)
        if self._in_flight is not None:
            self._in_flight.settle(self.size)

    def _spans(self, offset: int, data: memoryview) -> list[Bytes]:
        """Cut new content at the unit boundaries, completed with old content at both edges."""
        units, geometry = self._units, self._units.geometry
        end = offset + len(data)
        first, last = geometry.unit_at(offset), geometry.unit_at(end - 1)
        skip, stop = geometry.within_unit(offset), end - geometry.unit_start(last)
        old_tail = geometry.unit_length(last, self.size)
        if first == last and (skip or stop < old_tail):
            plain = units.load(first, first, self.size) if old_tail else units.scratch()
            plain[skip:stop] = data
            return [plain[: max(stop, old_tail)]]
        spans: list[Bytes] = []
        if skip:
            head = bytes(units.load(first, first, self.size)[:skip])
            spans.append(head + data[: geometry.unit_size - skip])
            data = data[geometry.unit_size - skip :]
        size = geometry.unit_size
        spans += (data[at : at + size] for at in range(0, len(data), size))
        if stop < old_tail:
            tail = units.load(last, last, self.size)[stop:old_tail]
            spans[-1] = bytes(spans[-1]) + tail
        return spans

    def _store(self, first: int, spans: list[Bytes], new_size: int) -> None:
        """Write whole units from `first` on; the last is the file's last if the size changes."""
        units = self._units
        end = first + len(spans)
        inner = min(end, units.geometry.full_units(self.size))
        end_at = new_size if new_size != self.size else None
        if first >= inner:  # no full unit is overwritten, so no hole is either
            with self._announced(new_size, first, end):
                units.store(first, spans, end_at)
            return
        around = self._carved(first, inner)
        with self._announced(new_size, around[0], max(end, around[1])):
            units.store(first, spans, end_at)
            units.holes.shrink(units.fd, around, first)

    def _cut(self, size: int) -> None:
        """Make the file shorter: a new last unit and end, then drop what follows."""
        units, geometry = self._units, self._units.geometry
        first, rest = geometry.full_units(size), geometry.within_unit(size)
        # Loaded before the announcement: an altered unit must not come under what is mended.
        last = bytes(units.load(first, first, self.size)[:rest]) if rest else b""
        around = (first, first)
        if first < geometry.full_units(self.size):
            around = self._carved(first, first + 1)
        with self._announced(size, around[0], first + 1):
            if last:
                units.store(first, [last], size)
            else:
                units.write_at(units.trailer(size), geometry.trailer_offset(size))
            os.ftruncate(self.fd, geometry.cipher_size(size))
            units.holes.shrink(units.fd, around, first)

    def _carved(self, first: int, end: int) -> tuple[int, int]:
        """Prepare full units [first, end) for a change, if they are of a hole; see `Holes.survey`.

        Afterwards the change itself needs no more space, so it cannot fail half-way for want of it.
        """
        if self._in_flight is None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        units = self._units
        around, concerned = units.holes.survey(units.fd, first, end)
        if concerned:
            units.holes.carve(units.fd, around, first, end)
            units.allocate(first, end)
        return around

    def _grow(self, size: int) -> None:
        """Make the file longer by zeros: holes for full units, stored zeros for a last part."""
        units, geometry = self._units, self._units.geometry
        first, full = geometry.full_units(self.size), geometry.full_units(size)
        old = geometry.within_unit(self.size)
        part = bytes(units.load(first, first, self.size)[:old]) if old else b""
        with self._announced(size, first, max(first, geometry.unit_count(size))):
            hole = first
            os.ftruncate(self.fd, geometry.cipher_size(size))
            if part:
                units.store(first, [part.ljust(geometry.unit_length(first, size), b"\0")], None)
                hole += 1
            if full > hole:
                units.holes.mark(self.fd, hole, full)
            rest = geometry.within_unit(size)
            if rest and full >= hole:
                units.store(full, [bytes(rest)], size)
            else:
                units.write_at(units.trailer(size), geometry.trailer_offset(size))

    @contextlib.contextmanager
    def _announced(self, new_size: int, first: int, end: int) -> Iterator[None]:
        """Announce a change to the journal; afterwards the size is `new_size`.

        A change that fails half-way (a full disk) is mended on the spot, as after a crash.
        """
        if self._in_flight is None:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        record = self._in_flight.begin(self.size, new_size, first, end)
        try:
            yield
        except BaseException:
            self._torn = record
            with contextlib.suppress(OSError):
                self._settle_change()
            raise
        self._in_flight.end()
        self.size = new_size

    def _settle_change(self) -> None:
        """Mend what a failed change left; asked again at the next access if that fails too."""
        if self._torn is not None:
            self.size = mend(self._units, self._torn, []).size
            self._torn = None
        if self._in_flight is not None:
            self._in_flight.end()


def open_units(fd: int, context: FileContext) -> tuple[Units, int]:
    """Read a file's header; returns its units and its stored size, with its end unchecked.

    Raises FormatError, IntegrityError, OSError.
    """
    stored = os.fstat(fd).st_size
    small = stored <= EMPTY_SIZE + TAG_SIZE + context.unit_size
    data = os.pread(fd, stored if small else HEADER_SIZE, 0)
    header = FileHeader.parse(data)
    if header.unit_size != context.unit_size:
        raise IntegrityError(
            f"units of {header.unit_size} bytes in a vault with units of {context.unit_size}"
        )
    units = Units(fd, header, context.master, context.buffers)
    if small:
        units.whole = data
    return units, stored


def _in_flight(context: FileContext, units: Units, stable: int | None) -> InFlight | None:
    if context.journal is None:
        return None
    return InFlight(context.journal, units.header.file_id, units.geometry, stable)


def _check_limit(size: int) -> None:
    if size > MAX_PLAIN_SIZE:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG))
