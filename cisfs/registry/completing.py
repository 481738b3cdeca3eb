"""A layer that was attached gets the rest from a pull: in its own file, which may be mounted.

Whoever has it mounted goes on with the same file, and needs no fetcher any more.  What is taken is
checked from the identity on, as what a fetcher brings is.  Does not know registries.  One process
for each layer (`alone`); one thread.
"""

from __future__ import annotations

import os
import signal
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic, sleep

from cisfs.errors import (
    BusyError,
    FormatError,
    IntegrityError,
    NotAVaultError,
    WrongContentError,
)
from cisfs.format.presence import bit_count
from cisfs.format.sealed_geometry import TREE_BLOCK_SIZE
from cisfs.layer.filling import Filler, claim
from cisfs.mount.absent import connected

_PATIENCE = 20.0  # seconds: a fetcher that is just starting cannot be told to end
_TICK = 0.01
_AT_ONCE = 1024  # units
_CREDENTIALS = struct.Struct("=3i")  # struct ucred: pid, uid, gid


@contextmanager
def alone(directory: Path) -> Iterator[int]:
    """Yield the claim to the layer in `directory`, whose fetcher is told to end.

    A fetcher may be killed at any moment, and its readers wait for another or for the data.  Raises
    BusyError if it stays, OSError.
    """
    claimed = _claim(directory)
    try:
        yield claimed
    finally:
        os.close(claimed)


def _claim(directory: Path) -> int:
    until = monotonic() + _PATIENCE
    while True:
        try:
            return claim(directory)
        except BusyError:
            if monotonic() > until:
                raise BusyError(
                    f"layer {directory.name} is being fetched by another process, which does not "
                    "end; what was pulled is kept: pull again"
                ) from None
        _end_fetcher(directory)
        sleep(_TICK)


def _end_fetcher(directory: Path) -> None:
    """Tell whoever listens in a layer's directory to end, if anybody does."""
    place = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        line = connected(f"/proc/self/fd/{place}")
    finally:
        os.close(place)
    if line is None:
        return
    with line, suppress(OSError):
        found = line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        process = os.pidfd_open(_CREDENTIALS.unpack(found)[0])
        try:
            if _is_alive(line):  # so the number was still its own
                signal.pidfd_send_signal(process, signal.SIGTERM)
        finally:
            os.close(process)


def _is_alive(line: socket.socket) -> bool:
    try:
        return bool(line.recv(1))
    except BlockingIOError:
        return True


def fill_in(directory: Path, claimed: int, fd: int) -> bool:
    """Take what is missing or damaged of the layer in `directory` from a bare one at `fd`.

    False if what is there is not fit to be gone on with.  Raises WrongContentError if `fd` is not
    that layer, OSError.
    """
    try:
        filler = Filler(directory, claimed)
    except (NotAVaultError, FormatError, IntegrityError):
        return False
    try:
        if filler.presence.header.bits != bit_count(filler.geometry):  # it is another layer's
            return False
        count = filler.geometry.unit_count
        for start in range(0, count, _AT_ONCE):
            units = range(start, min(start + _AT_ONCE, count))
            try:
                _fill(filler, units, fd)
            except IntegrityError:  # or what is wrong was here: by now it is missing
                _fill(filler, units, fd)
        filler.settle()
    except IntegrityError as error:
        raise WrongContentError(f"the blob of {filler.name} has another content: {error}") from None
    finally:
        os.close(filler.fd)
    return True


def _fill(filler: Filler, units: range, fd: int) -> None:
    _fill_tree(filler, units, fd)
    filler.doubt(units)
    _fill_tree(filler, units, fd)
    geometry = filler.geometry
    for unit in filler.missing(units):
        filler.put_unit(unit, os.pread(fd, geometry.unit_length(unit), geometry.unit_offset(unit)))


def _fill_tree(filler: Filler, units: range, fd: int) -> None:
    for run in filler.blocks_for(units):
        start = filler.geometry.block_offset(run.start)
        data = os.pread(fd, len(run) * TREE_BLOCK_SIZE, start)
        found = (data[at : at + TREE_BLOCK_SIZE] for at in range(0, len(data), TREE_BLOCK_SIZE))
        filler.put_blocks(dict(zip(run, found, strict=False)))
