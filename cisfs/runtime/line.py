"""The line between `cisfs run` and the supervisor of its container.

Down go signal numbers, one byte each; up come the container's terminal, its start, and how it all
ended.
Either side learns from the closed line that the other has died.  Does not know what a signal means
to the container.  One reader and one writer on each end; sending from a signal handler is safe.
"""

from __future__ import annotations

import json
import signal
import socket
from dataclasses import dataclass

from cisfs.runtime.request import Outcome

# Signals that `cisfs run` passes on instead of obeying; those of the second tuple ask for the end.
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
FORWARDED = (*ENDING, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH)
_TEXT_LIMIT = 4096  # characters
_MESSAGE_LIMIT = 1 << 16  # bytes; JSON writes a character in at most 12


@dataclass(frozen=True, slots=True)
class Terminal:
    """The container's terminal is ready: the descriptor of its master side."""

    master: int


@dataclass(frozen=True, slots=True)
class Started:
    """The container runs: its first process, by its number in the supervisor's namespace."""

    process: int


class Upper:
    """The end that `cisfs run` itself holds."""

    def __init__(self, line: socket.socket) -> None:
        """Own `line`."""
        self._line = line

    def fileno(self) -> int:
        """For select."""
        return self._line.fileno()

    def forward(self, number: int) -> None:
        """Pass a signal on; dropped when hundreds wait already or the other side is gone."""
        try:
            self._line.send(bytes([number]), socket.MSG_DONTWAIT)
        except OSError:
            pass  # including a line already closed: a handler may run at any moment

    def receive(self) -> Outcome | Terminal | Started | None:
        """Return the next message, None when the supervisor is gone."""
        try:
            data, descriptors, _, _ = socket.recv_fds(self._line, _MESSAGE_LIMIT, 1)
        except ConnectionResetError:
            return None
        if not data:
            return None
        if descriptors:
            return Terminal(descriptors[0])
        fields = json.loads(data)
        return Started(**fields) if "process" in fields else Outcome(**fields)

    def close(self) -> None:
        """Close this end; the supervisor then ends the container."""
        self._line.close()


class Lower:
    """The end that the supervisor holds."""

    def __init__(self, line: socket.socket) -> None:
        """Own `line`."""
        self._line = line
        self.hung_up = False  # `cisfs run` was killed

    def fileno(self) -> int:
        """For select."""
        return self._line.fileno()

    def next_signal(self) -> int | None:
        """Return a signal that waits to be passed on, None when there is none now."""
        if self.hung_up:
            return None
        try:
            data = self._line.recv(1, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        except ConnectionResetError:
            data = b""
        if not data:
            self.hung_up = True
            return None
        return data[0]

    def send_terminal(self, master: int) -> None:
        """Hand over the master side of the container's terminal."""
        socket.send_fds(self._line, [b"terminal"], [master])

    def send_started(self, process: int) -> None:
        """Report the container's first process."""
        self._send({"process": process})

    def send_outcome(self, outcome: Outcome) -> None:
        """Report the end."""
        self._send({"exit_code": outcome.exit_code, "message": outcome.message[:_TEXT_LIMIT]})

    def _send(self, fields: dict[str, object]) -> None:
        """Report; without a listener it is nobody's business any more."""
        try:
            self._line.send(json.dumps(fields).encode())
        except (BrokenPipeError, ConnectionResetError):
            pass

    def close(self) -> None:
        """Close this end, in the process that keeps the other."""
        self._line.close()


def line() -> tuple[Upper, Lower]:
    """Return both ends of a new line."""
    upper, lower = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return Upper(upper), Lower(lower)
