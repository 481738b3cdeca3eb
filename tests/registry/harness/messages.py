"""HTTP/1.1 messages as far as the proxy has to understand them: heads, and how long bodies are.

Reads from sockets, judges nothing.  One thread for each connection.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass, field

_LONGEST_HEAD = 1 << 17
_PIECE = 1 << 17

Headers = list[tuple[str, str]]


@dataclass
class Head:
    """The first line and the headers of a request or an answer."""

    line: str
    headers: Headers = field(default_factory=list)

    def get(self, name: str) -> str | None:
        """The first header of that name."""
        return next((v for n, v in self.headers if n.lower() == name.lower()), None)

    def without(self, *names: str) -> Head:
        """The same without some headers."""
        left_out = {name.lower() for name in names}
        return Head(self.line, [(n, v) for n, v in self.headers if n.lower() not in left_out])

    def with_header(self, name: str, value: str) -> Head:
        """The same with one header instead of any of its name."""
        return Head(self.line, [*self.without(name).headers, (name, value)])

    def pack(self) -> bytes:
        """As it is sent."""
        lines = [self.line, *(f"{n}: {v}" for n, v in self.headers), "", ""]
        return "\r\n".join(lines).encode("latin-1")


class Stream:
    """A socket's bytes, read ahead no further than a head's end."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self._held = b""

    def head(self) -> Head | None:
        """The next head, None at an orderly end or for what is none."""
        while b"\r\n\r\n" not in self._held:
            more = self.sock.recv(_PIECE)
            self._held += more
            if not more or len(self._held) > _LONGEST_HEAD or self._held[:1] < b"A":
                return None
        text, _, self._held = self._held.partition(b"\r\n\r\n")
        line, *rest = text.decode("latin-1").split("\r\n")
        pairs = (each.partition(":") for each in rest)
        return Head(line, [(name, value.strip()) for name, _, value in pairs])

    def some(self, limit: int = _PIECE) -> bytes:
        """Up to `limit` bytes, none at the end."""
        if self._held:
            piece, self._held = self._held[:limit], self._held[limit:]
            return piece
        return self.sock.recv(min(limit, _PIECE))

    def exactly(self, size: int) -> Iterator[bytes]:
        """A body of a known length; fewer bytes if the connection ends."""
        while size > 0 and (piece := self.some(size)):
            size -= len(piece)
            yield piece

    def chunked(self) -> Iterator[bytes]:
        """A chunked body, without its framing."""
        while size := int(self._line().partition(b";")[0] or b"0", 16):
            yield from self.exactly(size)
            self._line()
        while self._line():
            pass

    def until_end(self) -> Iterator[bytes]:
        """Everything."""
        while piece := self.some():
            yield piece

    def body(self, head: Head, *, answer: bool) -> Iterator[bytes]:
        """The body that follows `head`."""
        if "chunked" in (head.get("transfer-encoding") or "").lower():
            return self.chunked()
        length = head.get("content-length")
        if length is not None:
            return self.exactly(int(length))
        return self.until_end() if answer else iter(())

    def _line(self) -> bytes:
        while b"\r\n" not in self._held:
            more = self.sock.recv(_PIECE)
            if not more:
                return b""
            self._held += more
        line, _, self._held = self._held.partition(b"\r\n")
        return line
