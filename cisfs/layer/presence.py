"""The file `present` beside a sealed layer that is not all here: what is, and what is not.

Its bits are in memory that all processes share: the fetcher sets them, whoever reads the layer
looks.  What a bit says is true at every instant, also after the machine has lost its power
(`cisfs.format.presence`).  Does not know where missing data comes from.

One process at a time writes, any number read; each object belongs to one process or its forks.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from cisfs.errors import FormatError
from cisfs.format.presence import (
    BOOT_ID_OFFSET,
    COMPLETE_OFFSET,
    SIZE,
    PresenceHeader,
)

NAME = "present"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Presence:
    """The bits of one layer."""

    def __init__(self, fd: int, *, writable: bool = False) -> None:
        """Map the file that `fd` refers to, which stays the caller's and is open for writing.

        Raises FormatError, OSError.
        """
        header = _begin(fd)
        self.header = header
        access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
        self._map = mmap.mmap(fd, header.file_size, access=access)
        self._lock = threading.Lock()
        self._revoked: set[int] = set()  # bits taken back since what is durable was last seen to
        view = memoryview(self._map)
        self._now = view[SIZE : SIZE + header.set_size]
        self._durable = view[SIZE + header.set_size :]

    @property
    def is_complete(self) -> bool:
        """Whether it has been said, durably, that nothing is missing."""
        return bool(self._map[COMPLETE_OFFSET])

    def has(self, bit: int) -> bool:
        """Tell whether the data of a bit is here."""
        return bool(self._now[bit >> 3] >> (bit & 7) & 1)

    def has_all(self, bits: range) -> bool:
        """Tell whether the data of all of them is here.  `bits` has a step of 1."""
        return _all_set(self._now, bits)

    def missing(self, bits: range) -> Iterator[int]:
        """Yield those of `bits` whose data is not here, in order."""
        for start in range(bits.start, bits.stop, 1024):
            some = range(start, min(start + 1024, bits.stop))
            if not self.has_all(some):
                yield from (bit for bit in some if not self.has(bit))

    def count(self, bits: range) -> int:
        """How many of `bits` are here."""
        return len(bits) - sum(1 for _ in self.missing(bits))

    # -- for the writer ----------------------------------------------------------------------

    def add(self, bit: int) -> None:
        """Say that the kernel has the data of a bit."""
        with self._lock:
            self._now[bit >> 3] |= 1 << (bit & 7)

    def take_back(self, bits: Sequence[int]) -> None:
        """Say, durably, that the data of some bits is not here.  Raises OSError."""
        with self._lock:
            self._map[COMPLETE_OFFSET] = 0
            self._revoked.update(bits)
            for bit in bits:
                self._now[bit >> 3] &= ~(1 << (bit & 7))
                self._durable[bit >> 3] &= ~(1 << (bit & 7))
            self._map.flush()

    def settle(self, fd: int) -> None:
        """Make the data in the layer's file, which `fd` refers to, durable, then what it says here.

        Raises OSError; then nothing is said.
        """
        with self._lock:
            seen = bytearray(self._now)
            self._revoked.clear()
        os.fdatasync(fd)
        with self._lock:
            for bit in self._revoked:  # meanwhile; it may have come again, but was not synced
                seen[bit >> 3] &= ~(1 << (bit & 7))
            self._durable[:] = seen

    def complete(self, fd: int) -> bool:
        """Settle, and say that nothing is missing, unless something is; tells which.

        Raises OSError.
        """
        self.settle(fd)
        with self._lock:  # something may have been taken back meanwhile
            if not _all_set(self._durable, range(self.header.bits)):
                return False
            self._map.flush()
            self._map[COMPLETE_OFFSET] = 1
        return True


def _all_set(found: memoryview, bits: range) -> bool:
    first, last = bits[0] >> 3, bits[-1] >> 3
    some = int.from_bytes(found[first : last + 1], "little") >> (bits[0] & 7)
    mask = (1 << len(bits)) - 1
    return some & mask == mask


def _begin(fd: int) -> PresenceHeader:
    """Make the bits true for this run of the machine, whoever comes first; return the header."""
    fcntl.flock(fd, fcntl.LOCK_EX)
    try:
        header = PresenceHeader.parse(os.pread(fd, SIZE, 0))
        if os.fstat(fd).st_size != header.file_size:
            raise FormatError("its size is wrong")
        if header.boot_id != boot_id():
            durable = os.pread(fd, header.set_size, SIZE + header.set_size)
            os.pwrite(fd, durable, SIZE)
            os.pwrite(fd, boot_id(), BOOT_ID_OFFSET)  # last: it vouches for the rest
    finally:
        fcntl.flock(fd, fcntl.LOCK_UN)
    return header


def says_complete(path: Path) -> bool:
    """Tell whether there is no file at `path`, or one that says that nothing is missing."""
    try:
        with path.open("rb", buffering=0) as file:
            return file.read(SIZE)[COMPLETE_OFFSET : COMPLETE_OFFSET + 1] == b"\1"
    except FileNotFoundError:
        return True


def opened(directory: Path) -> Presence:
    """Return what is here of the layer in `directory`, for its one writer.

    Raises FormatError, OSError.
    """
    fd = os.open(directory / NAME, os.O_RDWR | os.O_CLOEXEC)
    try:
        return Presence(fd, writable=True)
    finally:
        os.close(fd)


def create(fd: int, header: PresenceHeader, *, full: bool = False) -> None:
    """Write a new file: nothing is here, or `full`, everything, durably.  Raises OSError."""
    bits = ((1 << header.bits) - 1 if full else 0).to_bytes(header.set_size, "little")
    for offset, data in ((SIZE + header.set_size, bits), (SIZE, bits), (0, header.pack())):
        os.pwrite(fd, data, offset)
    os.fsync(fd)


def boot_id() -> bytes:
    """Return what tells this run of the machine from all others, 16 bytes (random(4))."""
    return bytes.fromhex(_BOOT_ID.read_text().strip().replace("-", ""))
