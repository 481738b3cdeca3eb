"""Keeping the local store within a size: data of layers that nobody uses leaves the disk.

What was pulled can be fetched again, so such layers lose units, those that were used longest ago
first.  One that is mounted or being fetched loses nothing, nor does one that was loaded from a
file, which does not count either.  The size is in a file `limit` in the
store: decimal digits and a newline, 0 or no file for none.  Does not know where data comes from.
Any number of processes may do it at once.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from cisfs.errors import BusyError, CisfsError, FormatError
from cisfs.format.sealed import LayerHeader
from cisfs.format.sealed_geometry import HEADER_SIZE, LayerGeometry
from cisfs.layer import lazy, origin, presence
from cisfs.layer.fallocate import punch
from cisfs.layer.filling import claim, runs
from cisfs.layer.locking import try_lock
from cisfs.layer.presence import Presence
from cisfs.layer.pulled import LAYER, SEALED
from cisfs.layer.wholefile import whole_file
from cisfs.layer.writing import sync_directory, write_all

LIMIT = "limit"  # in the store
_MOST_DIGITS = 19
_BLOCK = 512  # bytes that stat(2) counts in
_AT_ONCE = 1024  # units

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Pulled:
    path: Path
    used: int  # when it was last opened, in ns
    size: int  # bytes on the disk


def set_limit(store: Path, limit: int) -> None:
    """Have `store` keep at most `limit` bytes of pulled layers from now on, 0 for any number.

    Raises OSError.
    """
    store.mkdir(parents=True, exist_ok=True)
    with whole_file(store / LIMIT, replace=True) as fd:
        write_all(fd, b"%d\n" % limit)


def limit_of(store: Path) -> int:
    """Return the limit of `store` in bytes, 0 if it has none.  Raises FormatError, OSError."""
    path = store / LIMIT
    try:
        with path.open("rb") as file:
            text = file.read(_MOST_DIGITS + 2).strip()
    except FileNotFoundError:
        return 0
    if not text.isdigit() or len(text) > _MOST_DIGITS:
        raise FormatError(f"{path} is no number of bytes")
    return int(text)


def make_room(store: Path, more: int) -> int:
    """Free space so that `more` bytes fit into the limit of `store`; return how many were freed.

    Raises FormatError, OSError.
    """
    limit = limit_of(store)
    return evict(store, max(0, limit - more)) if limit else 0


def evict(store: Path, limit: int) -> int:
    """Free space until all pulled layers in `store` take at most `limit` bytes; return the bytes.

    It may be less than that takes, as what is in use stays, and what is damaged.  Raises OSError.
    """
    layers = sorted(_pulled(store), key=lambda each: each.used)
    excess = sum(each.size for each in layers) - limit
    freed = 0
    for each in layers:
        if freed >= excess:
            break
        try:
            freed += _shrink(each.path, excess - freed)
        except BusyError:
            pass  # it is in use
        except (CisfsError, OSError) as error:
            log.warning("%s cannot be given up: %s", each.path, error)
    return freed


def _pulled(store: Path) -> Iterator[_Pulled]:
    """The layers that can be fetched again."""
    for path in (store / SEALED).glob(f"sha256:*/{LAYER}"):
        with suppress(CisfsError, OSError):
            if origin.Origin.read(path.parent).is_loaded:
                continue
            used = (path.parent / origin.NAME).stat().st_mtime_ns
            yield _Pulled(path, used, path.stat().st_blocks * _BLOCK)


def _shrink(path: Path, wanted: int) -> int:
    """Free `wanted` bytes of a layer, or what there is; returns how many.  Raises BusyError."""
    claimed = claim(path.parent)
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            if not try_lock(fd):
                raise BusyError(f"layer {path} is in use")
            return _punched(path, fd, wanted)
        finally:
            os.close(fd)
    finally:
        os.close(claimed)


def _punched(path: Path, fd: int, wanted: int) -> int:
    header = LayerHeader.parse(os.pread(fd, HEADER_SIZE, 0))
    found = _presence(path, header)
    before = os.fstat(fd).st_blocks
    freed = 0
    for units in _from_the_end(found, header.geometry):
        if freed >= wanted:
            break
        found.take_back(units)  # before the data goes: a bit never vouches for what is not there
        for run in runs(sorted(units)):
            start, last = header.geometry.unit_offset(run.start), run.stop - 1
            stop = header.geometry.unit_offset(last) + header.geometry.unit_length(last)
            punch(fd, start, stop - start)
        freed = (before - os.fstat(fd).st_blocks) * _BLOCK
    return freed


def _presence(path: Path, header: LayerHeader) -> Presence:
    """What is here of a layer; of one that was complete, all of it from now on."""
    place = path.parent / presence.NAME
    if not place.exists():
        new = path.parent / f".{presence.NAME}"
        new.unlink(missing_ok=True)
        lazy.write_presence(new, header, full=True)
        new.rename(place)
        sync_directory(path.parent)
    return presence.opened(path.parent)


def _from_the_end(found: Presence, geometry: LayerGeometry) -> Iterator[list[int]]:
    """The units that are here, some at a time; last those that a starting container reads."""
    for stop in range(geometry.unit_count, 0, -_AT_ONCE):
        units = range(max(0, stop - _AT_ONCE), stop)
        here = [unit for unit in units if found.has(unit)]
        if here:
            yield here
