"""The data units of one backing file: read, check, decrypt; encrypt, tag, write.

Does not know names, journals or when to do which; the plaintext size is always the caller's.
One thread at a time: all files of a vault share two buffers.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from hmac import compare_digest

from cisfs.crypto.keys import SecretKey, file_keys
from cisfs.crypto.units import UnitCipher
from cisfs.errors import FormatError, IntegrityError
from cisfs.format.geometry import BLOCK_SIZE, TAG_SIZE, Geometry, hole_blocks, padded
from cisfs.format.header import MARKER_SIZE, NO_TAG, FileHeader, pack_trailer, parse_trailer
from cisfs.layer.fallocate import punch
from cisfs.layer.holes import Holes

Bytes = bytes | memoryview


@dataclass(slots=True)
class Buffers:
    """Two reusable buffers, for ciphertext and plaintext: fresh large ones cost page faults."""

    cipher: memoryview = field(default_factory=lambda: memoryview(bytearray(1 << 21)))
    plain: memoryview = field(default_factory=lambda: memoryview(bytearray(1 << 21)))

    def reserve(self, size: int) -> None:
        """Make both at least `size` bytes long."""
        if len(self.cipher) < size:
            self.cipher = memoryview(bytearray(size))
            self.plain = memoryview(bytearray(size))


class Units:
    """The units of one file, over its backing descriptor `fd`."""

    __slots__ = ("_buffers", "cipher", "fd", "geometry", "header", "holes", "whole")

    def __init__(self, fd: int, header: FileHeader, master: SecretKey, buffers: Buffers) -> None:
        self.fd = fd
        self.header = header
        self.geometry = Geometry(header.unit_size)
        self.cipher = UnitCipher(*file_keys(master, header.file_id, header.fields()))
        self.holes = Holes(self.geometry, self.cipher)
        self._buffers = buffers
        # All stored bytes of a small file, from its opening to the first read or write: most files
        # are read once, so one system call serves for both.
        self.whole: bytes | None = None

    # -- reading ---------------------------------------------------------------------------

    def load(self, first: int, last: int, size: int) -> memoryview:
        """Return the decrypted units `first` to `last` of a file of `size` bytes.

        The view is valid until the next call on any file of the vault, may be written to, and is
        longer than the content.  Raises IntegrityError, naming the unit, before a byte of an
        altered one is decrypted; FormatError for a truncated file; OSError.
        """
        geometry, cipher = self.geometry, self.cipher
        slots = self.read_slots(first, last, size)
        plain = self._buffers.plain
        source = target = 0
        for unit in range(first, last + 1):
            length = padded(geometry.unit_length(unit, size))
            body = slots[source : source + length]
            source += length + TAG_SIZE
            tag = slots[source - TAG_SIZE : source]
            if tag == NO_TAG and self._is_hole(unit, length):
                plain[target : target + length] = bytes(length)
            elif cipher.verify(unit, body, tag):
                cipher.decrypt_into(unit, body, plain[target:])
            else:
                raise IntegrityError(f"unit {unit} was altered")
            target += length
        return plain

    def scratch(self) -> memoryview:
        """The plaintext buffer itself, to put together a unit that has no old content."""
        return self._buffers.plain

    def load_torn(self, unit: int, size: int) -> bytes:
        """Return a unit as its blocks decrypt, whatever its tag says: for mending only.

        A block that was never written, or is of a hole's marker, is zeros: ciphertext looks like
        neither.
        """
        stored = bytes(self.read_slots(unit, unit, size)[:-TAG_SIZE])
        plain = self._buffers.plain[: len(stored)]
        self.cipher.decrypt_into(unit, stored, plain)
        for at in range(0, len(stored), BLOCK_SIZE):
            block = stored[at : at + BLOCK_SIZE]
            index = at // BLOCK_SIZE
            if not any(block) or (index < 2 and self.holes.is_marker_block(unit, index, block)):
                plain[at : at + BLOCK_SIZE] = bytes(BLOCK_SIZE)
        return bytes(plain[: self.geometry.unit_length(unit, size)])

    def empty(self, unit: int) -> None:
        """Make a tagless full unit's slot all zeros, where it is not."""
        start = self.geometry.slot_offset(unit)
        stored = os.pread(self.fd, self.geometry.unit_size, start)
        if any(stored):
            self.write_at(bytes(len(stored)), start)

    def allocate(self, first: int, end: int) -> None:
        """Make sure of the space for full units [first, end) of a hole.  Raises OSError."""
        start, stop = self.geometry.slot_offset(first), self.geometry.slot_offset(end)
        os.posix_fallocate(self.fd, start, stop - start)

    def is_intact(self, unit: int, size: int) -> bool:
        """Tell whether a unit of a file of `size` bytes is as it was written; decrypts nothing."""
        try:
            slot = self.read_slots(unit, unit, size)
        except FormatError:
            return False
        body, tag = slot[:-TAG_SIZE], slot[-TAG_SIZE:]
        hole = tag == NO_TAG and self._is_hole(unit, len(body))
        return hole or self.cipher.verify(unit, body, tag)

    def altered(self, size: int, first: int = 0) -> Iterator[int]:
        """The units, from `first` on, of a file of `size` bytes that are not as written.

        Long holes are skipped where the backing file system knows that nothing is stored.
        """
        unit, count = first, self.geometry.unit_count(size)
        while unit < count:
            if not self.is_intact(unit, size):
                yield unit
            unit += 1
            hole_end = min(self.holes.last_end(unit), count)
            if hole_end > unit:
                unit = min(hole_end, self.next_stored(unit))

    def next_stored(self, unit: int) -> int:
        """The first unit from `unit` on of which the backing file stores anything."""
        try:
            offset = os.lseek(self.fd, self.geometry.slot_offset(unit), os.SEEK_DATA)
        except OSError:
            return unit  # nothing further, or no SEEK_DATA here
        return max(unit, self.geometry.unit_at_stored(offset))

    def data_runs(self, first: int, end: int) -> Iterator[tuple[int, int]]:
        """The ranges of full units among [first, end) that are not of a hole."""
        unit = first
        while unit < end:
            if self.holes.is_tagless(self.fd, unit):
                unit = max(unit + 1, self.next_stored(unit + 1))
                continue
            start = unit
            while unit < end and not self.holes.is_tagless(self.fd, unit):
                unit += 1
            yield start, unit

    def data_spans(self, size: int) -> Iterator[tuple[int, int]]:
        """The ranges of units of a file of `size` bytes that are not of a hole.

        To read them is to check them; that the others are a hole is checked here.  Raises
        IntegrityError for a unit that was zeroed, OSError.
        """
        full, count = self.geometry.full_units(size), self.geometry.unit_count(size)
        unit = start = 0
        while unit < full:
            if not self.holes.is_tagless(self.fd, unit):
                unit += 1
                continue
            if start < unit:
                yield start, unit
            if not self.holes.covers(self.fd, unit):
                raise IntegrityError(f"unit {unit} was altered")
            hole_end = min(self.holes.last_end(unit), full)
            unit = start = max(unit + 1, min(hole_end, self.next_stored(unit + 1)))
        if start < count:
            yield start, count

    def empty_out(self, first: int, end: int) -> None:
        """Make full units [first, end), all of which hold data, a hole; this takes no space.

        A marker lies where its unit's data lay, and all else is given back.  Raises OSError,
        EOPNOTSUPP where that cannot be.
        """
        self.holes.forget()
        for unit, level in hole_blocks(first, end):
            marked = self.geometry.slot_offset(unit)
            self.write_at(self.holes.marker(unit, level), marked)
            start, stop = marked + MARKER_SIZE, self.geometry.slot_offset(unit + (1 << level))
            if not punch(self.fd, start, stop - start):
                raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    def read_slots(self, first: int, last: int, size: int) -> memoryview:
        """Return the stored slots `first` to `last`, read in one go; FormatError if cut short."""
        geometry = self.geometry
        start = geometry.slot_offset(first)
        end = geometry.slot_offset(last) + padded(geometry.unit_length(last, size)) + TAG_SIZE
        self._buffers.reserve(end - start)
        if self.whole is not None:
            whole, self.whole = self.whole, None
            view = memoryview(whole)[start:end]
            got = len(view)
        else:
            view = self._buffers.cipher[: end - start]
            got = os.preadv(self.fd, [view], start)
        if got != end - start:
            raise FormatError(f"truncated within the units {first} to {last}")
        return view

    def end_is_intact(self, size: int) -> bool:
        """Tell whether the file says that it ends at `size` bytes."""
        start, length = self.geometry.trailer_offset(size), self.geometry.trailer_length(size)
        if self.whole is not None:
            data = self.whole[start : start + length]
        else:
            data = os.pread(self.fd, length, start)
        try:
            return compare_digest(parse_trailer(data, length), self.cipher.end_tag(size))
        except FormatError:
            return False

    def _is_hole(self, unit: int, length: int) -> bool:
        return length == self.geometry.unit_size and self.holes.covers(self.fd, unit)

    # -- writing ---------------------------------------------------------------------------

    def store(self, first: int, spans: Sequence[Bytes], end_at: int | None) -> None:
        """Encrypt and write units from `first` on, in one system call.

        All `spans` but the last are full units.  With `end_at`, the file's plaintext size, the
        last span is the file's last unit, and the trailer follows it.  Raises OSError, when part
        of it may have been written.
        """
        cipher = self.cipher
        self._buffers.reserve(len(spans) * self.geometry.slot_size + 64)
        out = self._buffers.cipher
        at = 0
        for unit, span in enumerate(spans, first):
            length = padded(len(span))
            if length != len(span):
                span = bytes(span).ljust(length, b"\0")
            cipher.encrypt_into(unit, span, out[at:])
            tag = cipher.tag(unit, out[at : at + length])
            at += length + TAG_SIZE
            out[at - TAG_SIZE : at] = tag
        if end_at is not None:
            trailer = self.trailer(end_at)
            out[at : at + len(trailer)] = trailer
            at += len(trailer)
        self.write_at(out[:at], self.geometry.slot_offset(first))

    def trailer(self, size: int) -> bytes:
        """The bytes that end a file of `size` bytes."""
        return pack_trailer(self.cipher.end_tag(size), self.geometry.trailer_length(size))

    def write_at(self, data: Bytes, offset: int) -> None:
        """Write all of `data`; a short write is the full disk's way of saying ENOSPC."""
        self.whole = None
        written = os.pwrite(self.fd, data, offset)
        while written < len(data):
            more = os.pwrite(self.fd, data[written:], offset + written)
            if more == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            written += more
