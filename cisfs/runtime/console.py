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
import tty
from types import TracebackType

Attributes = list[int | list[bytes | int]]  # tcgetattr(3)

_PIECE = 4096  # bytes: a terminal's own buffer is no larger
_STDIN, _STDOUT = 0, 1
_DRAIN_TIME = 1.0  # seconds for the last output after the container has ended


class Console:
    """Standard input's terminal; restored on exit from the `with` block."""

    def __init__(self) -> None:
        """Leave the terminal alone until `attach`."""
        self._master: int | None = None
        self._saved: Attributes | None = None
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
        try:
            self._drain()
        finally:
            self._restore()

    def attach(self, master: int) -> None:
        """Connect the terminal with the container's, whose master side this object then owns."""
        self._master = master
        self._saved = termios.tcgetattr(_STDIN)
        tty.setraw(_STDIN, termios.TCSADRAIN)
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
            data = _read(_STDIN)
            if data:
                _write(self._master, data)
            else:
                self._input_open = False  # the user's terminal has been hung up
        if self._master is not None and self._master in ready and not self._show():
            self._close_master()

    def _show(self) -> bool:
        """Print one piece of output; False when the container's side is closed for good."""
        if self._master is None:
            return False
        data = _read(self._master)
        if data:
            _write(_STDOUT, data)
        return bool(data)

    def _drain(self) -> None:
        deadline = time.monotonic() + _DRAIN_TIME
        while self._master is not None and time.monotonic() < deadline:
            ready, _, _ = select.select([self._master], [], [], deadline - time.monotonic())
            if not ready or not self._show():
                self._close_master()

    def _close_master(self) -> None:
        if self._master is not None:
            master, self._master = self._master, None
            os.close(master)

    def _restore(self) -> None:
        self._close_master()
        if self._saved is not None:
            try:
                termios.tcsetattr(_STDIN, termios.TCSADRAIN, self._saved)
            except termios.error:
                pass  # hung up: there is nothing left to restore
            self._saved = None


def _read(descriptor: int) -> bytes:
    """Read a piece; empty at the end, which a terminal's master side reports as EIO (pty(7))."""
    try:
        return os.read(descriptor, _PIECE)
    except OSError:
        return b""


def _write(descriptor: int, data: bytes) -> None:
    """Write all of `data`, or drop it when nobody is there to read it any more."""
    try:
        while data:
            data = data[os.write(descriptor, data) :]
    except OSError:
        pass
