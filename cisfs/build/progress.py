"""How far a seal is, said on a terminal: one line that is drawn over and over.

Does not know what is being done.  The cursor stays at the line's beginning, so that whatever else
is written there takes its place.  One thread.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import TextIO

_INTERVAL = 0.1  # seconds between two drawings
_BAR = 24  # characters
_WIDTH = 80  # of a terminal that does not know its own
_CLEAR = "\x1b[K"  # ECMA-48, EL: erase to the end of the line


class Progress:
    """A line on `stream`, None to say nothing."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self._doing = ""
        self._total = 0
        self._drawn_at = 0.0

    def begin(self, doing: str, total: int = 0) -> None:
        """Begin to do something of `total` bytes, 0 if nobody knows how many."""
        self._doing, self._total = doing, total
        self._draw(0)

    def update(self, done: int) -> None:
        """Say that `done` bytes are done, unless something was said just now and more follows."""
        if 0 < self._total <= done or time.monotonic() >= self._drawn_at + _INTERVAL:
            self._draw(done)

    @property
    def begun(self) -> int:
        """Of how many bytes what is being done is, 0 if nobody knows."""
        return self._total

    def end(self) -> None:
        """Take the line away."""
        self._write("")

    def _draw(self, done: int) -> None:
        self._drawn_at = time.monotonic()
        self._write(line(self._doing, done, self._total))

    def _write(self, text: str) -> None:
        if self._stream is None:
            return
        with contextlib.suppress(OSError, ValueError):  # the terminal is gone
            width = os.get_terminal_size(self._stream.fileno()).columns or _WIDTH
            self._stream.write(f"{text[: max(0, width - 1)]}{_CLEAR}\r")
            self._stream.flush()


def line(doing: str, done: int, total: int) -> str:
    """Return the words for `done` of `total` bytes; the total may have been an estimate."""
    if not total:
        return f"{doing} ..." if not done else f"{doing} {_mib(done)} MiB"
    share = min(done / total, 1.0)
    filled = round(share * _BAR)
    bar = "#" * filled + "." * (_BAR - filled)
    return f"{doing:<11} [{bar}] {share:4.0%}  {_mib(done)} of {_mib(total)} MiB"


def _mib(size: int) -> str:
    return f"{size / (1 << 20):,.0f}"
