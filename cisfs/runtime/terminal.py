"""Bytes to and from terminals and pipes that may be hung up, and the user's terminal in raw mode.

Does not know what runs at the other end.  Safe anywhere.
"""

from __future__ import annotations

import os
import select
import termios
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress


def read(descriptor: int, most: int) -> bytes | None:
    """Read a piece; empty at the end, None if there is nothing now and the descriptor never waits.

    A terminal's master side reports the end as EIO (pty(7)).
    """
    try:
        return os.read(descriptor, most)
    except BlockingIOError:
        return None
    except OSError:
        return b""


def write(descriptor: int, data: bytes) -> None:
    """Write all of `data`, or drop it when nobody is there to read it any more."""
    with suppress(OSError):
        while data:
            try:
                data = data[os.write(descriptor, data) :]
            except BlockingIOError:  # others who have it open may have made it so
                select.select([], [descriptor], [])


@contextmanager
def raw(descriptor: int) -> Iterator[None]:
    """Pass every key on as it is, while the block runs; restore the terminal afterwards."""
    saved = termios.tcgetattr(descriptor)
    tty.setraw(descriptor, termios.TCSADRAIN)
    try:
        yield
    finally:
        with suppress(termios.error):  # hung up: there is nothing left to restore
            termios.tcsetattr(descriptor, termios.TCSADRAIN, saved)
