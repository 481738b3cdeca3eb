"""The output of a container in the background: kept in memory, the latest of it, for `cisfs logs`.

What a container prints may be as secret as what it reads, so it is in no file: the keeper holds it
in two anonymous ones, an older and a newer part, which root can read through /proc.  Does not know
containers.  One writer; any number of readers.
"""

from __future__ import annotations

import os
import select
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

from cisfs.runtime import terminal

PART = 8 << 20  # bytes; at least so much of the latest output is kept, and at most twice that
_PIECE = 1 << 16
_HEAD = struct.Struct("<q")
_POLL = 0.1  # seconds between two looks at what is new
_DRAIN_TIME = 1.0  # seconds for the last output after the container has ended


class Log:
    """The writer's side.  Each part begins with the number of turns there were before it."""

    def __init__(self, part: int = PART) -> None:
        """Keep up to twice `part` bytes."""
        self._part = part
        self._turns = 0
        self._size = 0
        self.parts = os.memfd_create("cisfs log"), os.memfd_create("cisfs log")  # older, newer
        os.pwrite(self.parts[1], _HEAD.pack(0), 0)

    def append(self, data: bytes) -> None:
        """Add to the end."""
        while data:
            if self._size >= self._part:
                self._turn()
            piece = data[: self._part - self._size]
            os.pwrite(self.parts[1], piece, _HEAD.size + self._size)
            self._size += len(piece)
            data = data[len(piece) :]

    def _turn(self) -> None:
        """Make the newer part the older one, and begin an empty one."""
        older, newer = self.parts
        full = _HEAD.size + self._part
        os.pwrite(older, os.pread(newer, full, 0), 0)  # whatever was there was as long
        os.truncate(newer, 0)
        self._turns += 1
        self._size = 0
        os.pwrite(newer, _HEAD.pack(self._turns), 0)

    def text(self) -> bytes:
        """Return all that is kept."""
        return b"".join(read(os.getpid(), self.parts))


class Recorder:
    """Takes a container's output, from a pipe or its terminal, to a log."""

    def __init__(self, log: Log, pipe: int) -> None:
        """Read from `pipe`, which must not block, and stays the caller's."""
        self._log = log
        self._sources = [pipe]
        self._terminals: list[int] = []

    def __enter__(self) -> Recorder:
        """Return self."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Take what is still under way, and close the terminals."""
        try:
            self._drain()
        finally:
            while self._terminals:
                os.close(self._terminals.pop())

    def _drain(self) -> None:
        deadline = time.monotonic() + _DRAIN_TIME
        while self._sources and time.monotonic() < deadline:
            ready, _, _ = select.select(self._sources, [], [], 0)
            if not ready:
                return
            self.transfer(ready)

    def attach(self, master: int) -> None:
        """Read from a terminal, too, whose master side this object then owns."""
        self._sources.append(master)
        self._terminals.append(master)

    def copy_size(self) -> None:
        """There is no window whose size could be copied."""

    def sources(self) -> list[int]:
        """Return the descriptors to wait for."""
        return list(self._sources)

    def transfer(self, ready: list[int]) -> None:
        """Move what has arrived on the `ready` ones of the sources."""
        for descriptor in ready:
            if descriptor not in self._sources:
                continue
            data = terminal.read(descriptor, _PIECE)
            if data:
                self._log.append(data)
            elif data is not None:
                self._sources.remove(descriptor)


def read(
    keeper: int, parts: tuple[int, ...], goes_on: Callable[[], bool] = lambda: False
) -> Iterator[bytes]:
    """Yield what a log of process `keeper` holds, and what is added while `goes_on`.

    A reader that is slower than the writer by more than a part misses some.  Raises
    FileNotFoundError when the keeper is gone.
    """
    older, newer = (Path(f"/proc/{keeper}/fd/{part}") for part in parts)
    with older.open("rb", buffering=0) as past, newer.open("rb", buffering=0) as present:
        place = _Place((past.fileno(), present.fileno()))
        while True:
            last = not goes_on()
            while data := place.next():
                yield data
            if last:
                return
            time.sleep(_POLL)


class _Place:
    """How far a reader has come: so many bytes of the part with so many turns before it."""

    def __init__(self, parts: tuple[int, int]) -> None:
        self._parts = parts
        self._turns = -1
        self._position = 0

    def next(self) -> bytes:
        """Return a piece of what was not yet read, empty when there is none now."""
        while True:
            turns = {_turns(part): part for part in self._parts}
            part = turns.get(self._turns)
            data = b"" if part is None else os.pread(part, _PIECE, _HEAD.size + self._position)
            if part is not None and _turns(part) != self._turns:
                continue  # turned while it was read
            if data:
                self._position += len(data)
                return data
            later = [number for number in turns if number > self._turns]
            if not later:
                return b""
            self._turns, self._position = min(later), 0


def _turns(part: int) -> int:
    """Return the number that a part begins with, -1 when it has none now."""
    head = os.pread(part, _HEAD.size, 0)
    return int(_HEAD.unpack(head)[0]) if len(head) == _HEAD.size else -1
