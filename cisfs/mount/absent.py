"""A worker's line to the fetcher of its layer: what is needed, and word when it is here.

The fetcher may be away, die and come back: the line is made anew, and what was asked for is asked
for again.  Does not know requests or what is served.  One thread; never waits.
"""

from __future__ import annotations

import errno
import os
import socket
from time import monotonic

from cisfs.errors import FormatError
from cisfs.format.wants import Want, parse_here
from cisfs.layer.lazy import SOCKET

RETRY = 0.1  # seconds between two attempts to reach the fetcher
_PIECE = 64  # bytes: no message is so long


class Line:
    """The line of one process."""

    def __init__(self, directory: int) -> None:
        """`directory` is a descriptor of the layer's directory, which stays the caller's.

        It becomes the process's working directory, as a socket's path must be short.
        """
        os.fchdir(directory)
        self._socket: socket.socket | None = None
        self._next_attempt = 0.0
        self._wants: dict[int, Want] = {}  # what was not answered yet

    @property
    def fd(self) -> int:
        """The descriptor that answers come from, -1 while there is none."""
        return self._socket.fileno() if self._socket is not None else -1

    def ask(self, want: Want) -> None:
        """Ask for units, now and whenever the fetcher comes back, until `forget`."""
        self._wants[want.number] = want
        if self._socket is not None:
            self._send(want)
        else:
            self._is_connected()  # and then all has been asked for

    def forget(self, number: int) -> None:
        """An answer is not needed any more."""
        self._wants.pop(number, None)

    def answers(self) -> list[int]:
        """Return the numbers of the wants that have been met since the last call."""
        met: list[int] = []
        while self._is_connected() and self._socket is not None:
            try:
                data = self._socket.recv(_PIECE)
                if not data:
                    raise ConnectionResetError(errno.ECONNRESET, "the fetcher has gone")
                met.append(parse_here(data))
            except BlockingIOError:
                break
            except (OSError, FormatError):
                self._lose()
        return met

    def close(self) -> None:
        """Nothing is needed any more."""
        self._wants.clear()
        self._lose()

    def _is_connected(self) -> bool:
        """Whether there is a line; if not, and if it is time, one is made."""
        if self._socket is None and monotonic() >= self._next_attempt:
            self._next_attempt = monotonic() + RETRY
            self._socket = connected()
            if self._socket is not None:
                for want in list(self._wants.values()):
                    self._send(want)
        return self._socket is not None

    def _send(self, want: Want) -> None:
        try:
            if self._socket is not None:
                self._socket.send(want.pack())
        except OSError:  # full, too: a new line begins anew
            self._lose()

    def _lose(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def connected(directory: str = ".") -> socket.socket | None:
    """Return a line to the fetcher of the layer in `directory`, None if there is none."""
    made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    made.setblocking(False)
    try:
        made.connect(f"{directory}/{SOCKET}")
    except OSError:
        made.close()
        return None
    return made
