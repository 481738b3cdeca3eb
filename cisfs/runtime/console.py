"""The user's terminal while a container with `--tty` has its own: raw mode, bytes, window size.

Does not know what runs at the other end.  Single-threaded, in the process that owns the terminal;
the window size may be copied from a signal handler.
"""

from __future__ import annotations

import fcntl
import os
import select
import termios
import time
from contextlib import ExitStack
from types import TracebackType

from cisfs.runtime import terminal

_PIECE = 4096  # bytes: a terminal's own buffer is no larger
_STDIN, _STDOUT = 0, 1
_DRAIN_TIME = 1.0  # seconds for the last output after the container has ended


class Console:
    """Standard input's terminal; restored on exit from the `with` block."""

    def __init__(self) -> None:
        """Leave the terminal alone until `attach`."""
        self._master: int | None = None
        self._undo = ExitStack()
        self._input_open = True

    def __enter__(self) -> Console:
        """Return self."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Show what output is left, close the container's terminal, restore the user's."""
        with self._undo:
            self._drain()

    def attach(self, master: int) -> None:
        """Connect the terminal with the container's, whose master side this object then owns."""
        self._master = master
        self._undo.callback(self._close_master)
        self._undo.enter_context(terminal.raw(_STDIN))
        self.copy_size()

    def copy_size(self) -> None:
        """Give the container's terminal the size of the user's (ioctl_tty(2))."""
        if self._master is None:
            return
        try:
            size = fcntl.ioctl(_STDIN, termios.TIOCGWINSZ, b"\0" * 8)
            fcntl.ioctl(self._master, termios.TIOCSWINSZ, size)
        except OSError:
            pass  # one of the two has just been hung up

    def sources(self) -> list[int]:
        """Return the descriptors to wait for."""
        if self._master is None:
            return []
        return [self._master, *([_STDIN] if self._input_open else [])]

    def transfer(self, ready: list[int]) -> None:
        """Move what has arrived on the `ready` ones of the sources."""
        if self._master is not None and _STDIN in ready:
            data = terminal.read(_STDIN, _PIECE)
            if data:
                terminal.write(self._master, data)
            elif data is not None:
                self._input_open = False  # the user's terminal has been hung up
        if self._master is not None and self._master in ready and not self._show():
            self._close_master()

    def _show(self) -> bool:
        """Print one piece of output; False when the container's side is closed for good."""
        if self._master is None:
            return False
        data = terminal.read(self._master, _PIECE)
        if data:
            terminal.write(_STDOUT, data)
        return data != b""

    def _drain(self) -> None:
        deadline = time.monotonic() + _DRAIN_TIME
        while self._master is not None:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._master], [], [], left)[0] or not self._show():
                self._close_master()

    def _close_master(self) -> None:
        if self._master is not None:
            master, self._master = self._master, None
            os.close(master)
