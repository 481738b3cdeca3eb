"""The key slots of a sealed layer on disk: read whole at any time, and replaced without a gap.

docs/FORMAT.md, section 10.  Readers and writers exclude each other with locks on the slots' bytes
(fcntl(2), "Open file description locks"), which a mounted layer does not hold for longer than it
takes to open it.  Does not know what a slot holds.  Any number of processes.
"""

from __future__ import annotations

import fcntl
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cisfs.errors import UsageError
from cisfs.format.sealed_geometry import (
    RESERVED_OFFSET,
    RESERVED_SIZE,
    SECOND_SLOTS_OFFSET,
    SLOTS_OFFSET,
    SLOTS_SIZE,
)
from cisfs.format.slotarea import AREAS_SIZE, MARK, SlotAreas, SlotText
from cisfs.layer.writing import write_at

_FLOCK = struct.Struct("hhqqi4x")  # struct flock: type, whence, start, length, pid


def read(fd: int) -> SlotAreas:
    """Return the key slots of the layer that `fd` refers to.  Raises FormatError, OSError."""
    with _locked(fd, fcntl.F_RDLCK):
        return SlotAreas.parse(os.pread(fd, AREAS_SIZE, SLOTS_OFFSET))


@contextmanager
def kept(fd: int) -> Iterator[SlotText]:
    """Yield what the key slots say, which nobody changes while the block runs.

    What is about to take the layer's place has to be made of nothing older.  Not to be nested on
    one descriptor.  Raises FormatError, OSError.
    """
    with _locked(fd, fcntl.F_RDLCK):
        yield SlotAreas.parse(os.pread(fd, AREAS_SIZE, SLOTS_OFFSET)).text


def packed(text: SlotText) -> bytes:
    """Return a copy's bytes.  Raises UsageError if there is no room for them in a layer."""
    try:
        return text.pack()
    except ValueError as error:
        raise UsageError(
            f"there is no room: {error}; remove some or name fewer recipients"
        ) from None


def update(fd: int, change: Callable[[SlotText], SlotText]) -> SlotText:
    """Replace what the key slots of the layer say by what `change` makes of it; return that.

    `fd` is open for reading and writing.  At every instant one of the copies is whole, and durable
    before the other is touched; when this returns, nothing is left of what was there before.
    Raises what `change` raises, UsageError if there is no room, FormatError; OSError, and then the
    change was made or not.
    """
    with _locked(fd, fcntl.F_WRLCK):
        found = SlotAreas.parse(os.pread(fd, AREAS_SIZE, SLOTS_OFFSET))
        if found.is_marked:  # somebody was killed
            _finish(fd, found.text.pack())
        changed = change(found.text)
        data = packed(changed)
        _write(fd, MARK, RESERVED_OFFSET)  # eight bytes that change: no disk writes half of them
        _write(fd, data, SECOND_SLOTS_OFFSET)
        _finish(fd, data)
    return changed


def _finish(fd: int, data: bytes) -> None:
    """Let the first copy be as the second is, or as it is, and clear the rest."""
    _write(fd, data, SLOTS_OFFSET)
    _write(fd, bytes(SLOTS_SIZE), SECOND_SLOTS_OFFSET)
    _write(fd, bytes(RESERVED_SIZE), RESERVED_OFFSET)


def _write(fd: int, data: bytes, offset: int) -> None:
    """Write all of `data`, durably.

    Where it was a hole, or is shared with a copy, the disk may be full; that is then as if somebody
    had been killed.
    """
    write_at(fd, data, offset)
    os.fdatasync(fd)


@contextmanager
def _locked(fd: int, kind: int) -> Iterator[None]:
    area = (SLOTS_OFFSET, AREAS_SIZE)
    fcntl.fcntl(fd, fcntl.F_OFD_SETLKW, _FLOCK.pack(kind, os.SEEK_SET, *area, 0))
    try:
        yield
    finally:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLKW, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, *area, 0))
