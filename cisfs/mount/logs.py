"""Logs that whoever makes a server fail, again and again, cannot fill a disk with.

A container can have requests fail as fast as it makes them: on a full disk, or where a layer was
altered.  So what was said is not said again for a minute, and a file grows up to a limit.  Does not
know what is logged.  One thread; forks go on with what their parents know.
"""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

from cisfs.format.said import printable

FILE_LIMIT = 16 << 20  # bytes that are added to a file; those of containers are in memory, in /run
_FULL = b"cisfs: the log is full: nothing more is written to it\n"
_SILENCE = 60.0  # seconds
_MOST_REMEMBERED = 4096  # texts; some 1 MiB


class OneLine(logging.Formatter):
    """Makes one line of what is said, whatever names are in it; only tracebacks take more."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """Return the line."""
        return printable(super().formatMessage(record))


class Repeats(logging.Filter):
    """Lets a text pass once in a while."""

    def __init__(self) -> None:
        """Remember nothing yet."""
        super().__init__()
        self._said: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether `record` is to be logged."""
        text, now = record.getMessage(), time.monotonic()
        if now - self._said.get(text, -_SILENCE) < _SILENCE:
            return False
        if len(self._said) >= _MOST_REMEMBERED:
            self._said.clear()
        self._said[text] = now
        return True


class LimitedFile(logging.StreamHandler):  # type: ignore[type-arg]  # generic to mypy only
    """Adds to a file, which others may add to as well, until it has grown by `FILE_LIMIT`."""

    def __init__(self, path: Path) -> None:
        """Open it, made for its owner only if it is not there.  Raises OSError."""
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        super().__init__(os.fdopen(fd, "a"))
        self._fd = fd
        self._limit = os.fstat(fd).st_size + FILE_LIMIT
        self._is_full = False

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, or say once that there is no room for it."""
        if self._is_full:
            return
        if os.fstat(self._fd).st_size < self._limit:
            super().emit(record)
            return
        self._is_full = True
        os.write(self._fd, _FULL)
