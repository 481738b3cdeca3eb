"""The `os` of the layer, made to fail at a chosen call: death of the process, or a full disk.

`FaultyOs` takes the place of the module `os` in the modules that change an encrypted file.  All
calls are real ones on real files; only the chosen one is cut short.  Knows no format.
One test at a time.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from cisfs.layer.fallocate import punch

MODULES = ("units", "holes", "file", "mend")


class Died(BaseException):
    """The process is dead: no cleaning up may follow, as after `kill -9`."""


@dataclass(frozen=True)
class Change:
    """One call that changed a file: pwrite of `data` at `number`, or ftruncate to it."""

    call: str
    number: int
    data: bytes = b""

    def __str__(self) -> str:
        return f"{self.call}({self.number}, {len(self.data)} bytes)"

    def make(self, fd: int) -> None:
        """Make the same change to a file."""
        if self.call == "pwrite":
            os.pwrite(fd, self.data, self.number)
        else:
            os.ftruncate(fd, self.number)


@dataclass(frozen=True)
class Fault:
    """What goes wrong at a call: only `part` of the bytes is written, then `error` is raised."""

    part: int = 0
    error: BaseException | None = None


class FaultyOs:
    """Stands in for `os`; counts the calls that change a file."""

    def __init__(self) -> None:
        self.changes = 0
        self.fault: Callable[[int, int], Fault | None] = lambda _number, _length: None
        self.full_from: int | None = None  # from this call on, the disk has no free block
        self.dead = False
        self.log: list[Change] = []
        self.allocated: list[tuple[int, int]] = []

    def __getattr__(self, name: str) -> object:
        if self.dead:
            raise Died
        return getattr(os, name)

    def pwrite(self, fd: int, data: bytes | memoryview, offset: int) -> int:
        """os.pwrite, or a part of it, or none of it."""
        fault = self._next(len(data))
        if self.full_from is not None and self.changes >= self.full_from:
            stored = _already_stored(fd, offset, len(data))
            if any(low <= offset and offset + len(data) <= high for low, high in self.allocated):
                stored = len(data)
            fault = Fault(stored, None if stored else no_space())
        kept = bytes(data if fault is None else data[: fault.part])
        if kept:
            self.log.append(Change("pwrite", offset, kept))
            os.pwrite(fd, kept, offset)
        if fault is not None and fault.error is not None:
            raise fault.error
        return len(kept)

    def ftruncate(self, fd: int, size: int) -> None:
        """os.ftruncate, or none of it."""
        fault = self._next(0)
        if fault is not None and fault.error is not None:
            raise fault.error
        self.log.append(Change("ftruncate", size))
        os.ftruncate(fd, size)

    def punch(self, fd: int, offset: int, size: int) -> bool:
        """Punch a hole, or a part of it, or none of it."""
        fault = self._next(size)
        kept = size if fault is None or fault.error is None else fault.part
        if kept:
            self.log.append(Change("pwrite", offset, bytes(kept)))
            punch(fd, offset, kept)
        if fault is not None and fault.error is not None:
            raise fault.error
        return True

    def posix_fallocate(self, fd: int, offset: int, length: int) -> None:
        """os.posix_fallocate, or none of it: what it allocated can be written on a full disk."""
        full = self.full_from is not None and self.changes >= self.full_from - 1
        if full and _already_stored(fd, offset, length) < length:
            raise no_space()
        os.posix_fallocate(fd, offset, length)
        self.allocated.append((offset, offset + length))

    def _next(self, length: int) -> Fault | None:
        if self.dead:
            raise Died
        self.changes += 1
        return self.fault(self.changes, length)


def _already_stored(fd: int, offset: int, length: int) -> int:
    """How many bytes from `offset` on lie in pages that the file has already."""
    at = offset
    while at < offset + length:
        page = at & -4096
        try:
            if os.lseek(fd, page, os.SEEK_DATA) != page:
                break
        except OSError:
            break  # past the end
        at = page + 4096
    return max(0, min(at, offset + length) - offset)


def install(monkeypatch: pytest.MonkeyPatch) -> FaultyOs:
    """Put a FaultyOs into the modules that change encrypted files."""
    faulty = FaultyOs()
    for name in MODULES:
        monkeypatch.setattr(f"cisfs.layer.{name}.os", faulty)
    monkeypatch.setattr("cisfs.layer.units.punch", faulty.punch)
    return faulty


def die_at(faulty: FaultyOs, call: int, part: float) -> None:
    """Let the process die in the `call`th change, after that part of its bytes was written."""

    def fault(number: int, length: int) -> Fault | None:
        if number < call:
            return None
        faulty.dead = True
        # Sectors, pages and cache lines are made of 16-byte blocks: nothing tears one.
        return Fault(int(length * part) & -16, Died())

    faulty.fault = fault


def fail_at(faulty: FaultyOs, call: int) -> None:
    """Let the `call`th change fail for want of space; a later one succeeds."""
    faulty.fault = lambda number, _length: Fault(0, no_space()) if number == call else None


def cut_short_at(faulty: FaultyOs, call: int) -> None:
    """Let the `call`th change, if it writes, write half and say so, and the next one fail."""
    failing = 0

    def fault(number: int, length: int) -> Fault | None:
        nonlocal failing
        if number == call and length:
            failing = number + 1
            return Fault(length // 2 & -16)
        return Fault(0, no_space()) if number == failing else None

    faulty.fault = fault


def no_space() -> OSError:
    """What the kernel says when the disk is full."""
    return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
