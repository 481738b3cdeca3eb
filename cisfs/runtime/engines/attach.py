"""The user's streams while a container of a daemon runs: its socket, the terminal, signals.

Does not know whose container it is, nor what the daemon's interface looks like beyond the frames
of an attached stream.  Single-threaded; signals are noticed through a pipe, never handled at once.
Source: Docker Engine API 1.41, ContainerAttach, "Stream format".
"""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from cisfs.runtime import terminal
from cisfs.runtime.line import FORWARDED

_PIECE = 1 << 16  # bytes
_STDIN, _STDOUT, _STDERR = 0, 1, 2
_FRAME = struct.Struct(">BxxxL")
_LAST_WORDS = 2.0  # seconds for output that is under way when the container has ended


class Stream:
    """An attached container's streams; `framed` when output and errors share the socket."""

    def __init__(self, connection: socket.socket, *, framed: bool, takes_input: bool) -> None:
        """Serve `connection` with this process's standard streams; close it with `close`."""
        self._connection = connection
        self._framed = framed
        self._pending = b""
        self._input_open = takes_input
        self.ended = False

    def sources(self) -> list[int]:
        """Return the descriptors to wait for."""
        if self.ended:
            return []
        return [self._connection.fileno(), *([_STDIN] if self._input_open else [])]

    def transfer(self, ready: list[int]) -> None:
        """Move what has arrived on the `ready` ones of the sources."""
        if not self.ended and self._connection.fileno() in ready:
            self._show()
        if not self.ended and self._input_open and _STDIN in ready:
            self._take_input()

    def drain(self) -> None:
        """Show what is still under way."""
        while not self.ended:
            ready, _, _ = select.select([self._connection], [], [], _LAST_WORDS)
            if not ready:
                return
            self._show()

    def close(self) -> None:
        """Close the socket."""
        self._connection.close()

    def _show(self) -> None:
        more = True
        while more and not self.ended:
            try:
                data = self._connection.recv(_PIECE)
            except OSError:
                data = b""
            self.ended = not data
            self._print(data)
            # What TLS has already decrypted is seen by no select.
            more = bool(getattr(self._connection, "pending", lambda: 0)())

    def _print(self, data: bytes) -> None:
        if not self._framed:
            terminal.write(_STDOUT, data)
            return
        self._pending += data
        for target, text in self._frames():
            terminal.write(_STDERR if target == _STDERR else _STDOUT, text)

    def _frames(self) -> Iterator[tuple[int, bytes]]:
        while len(self._pending) >= _FRAME.size:
            target, length = _FRAME.unpack_from(self._pending)
            end = _FRAME.size + length
            if len(self._pending) < end:
                return
            text, self._pending = self._pending[_FRAME.size : end], self._pending[end:]
            yield target, text

    def _take_input(self) -> None:
        data = terminal.read(_STDIN, _PIECE)
        with suppress(OSError):  # the container takes no more
            if data:
                self._connection.sendall(data)
            elif data is not None:
                self._input_open = False
                self._connection.shutdown(socket.SHUT_WR)


def attend(stream: Stream | None, end: int, deliver: Callable[[int], None], signals: int) -> None:
    """Serve the stream and pass signals to `deliver` until the descriptor `end` becomes readable.

    `signals` is what `signals_noticed` gave.
    """
    while True:
        sources = [*(stream.sources() if stream is not None else []), signals, end]
        ready, _, _ = select.select(sources, [], [])
        if stream is not None:
            stream.transfer(ready)
        if signals in ready:
            for number in os.read(signals, _PIECE):
                deliver(number)
        if end in ready:
            if stream is not None:
                stream.drain()
            return


@contextmanager
def signals_noticed() -> Iterator[int]:
    """Give a descriptor on which the numbers of signals arrive that are not to be obeyed here."""
    receive, send = os.pipe()
    os.set_blocking(send, False)
    before = signal.set_wakeup_fd(send, warn_on_full_buffer=False)
    previous = {
        number: signal.signal(number, lambda _number, _frame: None)
        for number in FORWARDED
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield receive
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(before)
        os.close(receive)
        os.close(send)
