"""A proxy in front of a registry that limits bandwidth, cuts connections and misbehaves on request.

`Proxy.rules` are asked for every request, in order; the first that matches and is not used up
decides what happens.  Every request is recorded in `Proxy.seen`, with the bytes that passed.  Plain
sockets and one thread for each connection; does not know cisfs, and of registries only where to
forward to.
"""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator

from tests.registry.harness.faults import Answer, Bucket, CutError, Fault, RandomCuts, Rule, Seen
from tests.registry.harness.messages import Head, Stream

_PIECE = 1 << 16


class Proxy:
    """A running one.  `bandwidth` is in bytes a second for each direction, None for no limit."""

    def __init__(
        self,
        upstream: tuple[str, int],
        *,
        host: str = "127.0.0.1",
        bandwidth: float | None = None,
        latency: float = 0.0,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._upstream = upstream
        self._latency = latency
        self._tls = tls
        self.rules: list[Rule] = []
        self.cuts: RandomCuts | None = None
        self.seen: list[Seen] = []
        self.connections = 0
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []
        self._closed = False
        self.limit(bandwidth)
        self._listener = socket.create_server((host, 0), backlog=128)
        self.host, self.port = self._listener.getsockname()[:2]
        self._start(self._accept)

    @property
    def name(self) -> str:
        """As a reference begins with it."""
        return f"{self.host}:{self.port}"

    @property
    def received(self) -> int:
        """Bytes of requests' bodies."""
        return sum(each.received for each in self.seen)

    @property
    def sent(self) -> int:
        """Bytes of answers' bodies."""
        return sum(each.sent for each in self.seen)

    def limit(self, bandwidth: float | None) -> None:
        """Set the bandwidth anew."""
        self._up, self._down = (Bucket(bandwidth) if bandwidth else None for _ in range(2))

    def requests(self, target: str) -> list[Seen]:
        """Those whose "METHOD TARGET" a regular expression is found in."""
        return [s for s in self.seen if re.search(target, f"{s.method} {s.target}")]

    def forget(self) -> None:
        """Begin to record anew, without rules or cuts."""
        self.rules, self.seen, self.cuts = [], [], None

    def stop(self) -> None:
        """Break every connection and take no more, until `resume`: the registry is gone."""
        self._closed = True
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for sock in self._open:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def resume(self) -> None:
        """Be back at the same address."""
        self._closed = False
        self._listener = socket.create_server((self.host, self.port), backlog=128)
        self._start(self._accept)

    def _start(self, run: Callable[..., None], *words: object) -> None:
        thread = threading.Thread(target=run, args=words, daemon=True)
        with self._lock:
            self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._closed:
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            self._start(self._serve, sock)

    def _serve(self, sock: socket.socket) -> None:
        """Everything on one connection; whatever breaks it ends it."""
        with contextlib.suppress(OSError, ValueError), contextlib.closing(sock):
            if self._tls is not None:
                sock.settimeout(10)  # for the handshake
                sock = self._tls.wrap_socket(sock, server_side=True)
                sock.settimeout(None)
            with self._tracked(sock):
                try:
                    while not self._closed and self._exchange(Stream(sock)):
                        pass
                except CutError:  # a reset, as when a network goes away: nothing lingers
                    linger = struct.pack("ii", 1, 0)
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    @contextlib.contextmanager
    def _tracked(self, sock: socket.socket) -> Iterator[None]:
        """Have `stop` find a socket, and close it in the end."""
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._lock:
            self._open.add(sock)
        try:
            yield
        finally:
            with self._lock:
                self._open.discard(sock)
            sock.close()

    def _exchange(self, client: Stream) -> bool:
        """One request and its answer; tells whether another may follow."""
        head = client.head()
        if head is None:
            return False
        method, target, _ = head.line.split(" ", 2)
        seen = Seen(method, target, head.headers)
        fault = self._decide(seen)
        if isinstance(fault, Answer):
            self._answer(client, head, seen, fault)
            return False
        time.sleep(self._latency + fault.delay)
        try:
            if fault.silent:
                client.sock.recv(1)  # until the client gives up
                raise CutError
            sock = socket.create_connection(self._upstream)
            with self._tracked(sock):
                server = Stream(sock)
                self._send_request(client, head, server, seen, fault)
                return self._send_answer(client, server, seen, fault)
        except (CutError, OSError):
            seen.cut = True
            raise

    def _decide(self, seen: Seen) -> Answer | Fault:
        with self._lock:
            self.seen.append(seen)
            for rule in self.rules:
                if rule.matches(seen):
                    does = rule.does(seen) if callable(rule.does) else rule.does
                    if does is not None:
                        rule.used += 1
                        return does
        return Fault()

    def _answer(self, client: Stream, head: Head, seen: Seen, answer: Answer) -> None:
        for piece in client.body(head, answer=False):
            seen.received += len(piece)
        names = {name.lower() for name, _ in answer.headers}
        made = Head(f"HTTP/1.1 {answer.status} Said", [*answer.headers, ("Connection", "close")])
        if not answer.repeat and not names & {"content-length", "transfer-encoding"}:
            made = made.with_header("Content-Length", str(len(answer.body)))
        seen.status = answer.status
        client.sock.sendall(made.pack())
        while seen.method != "HEAD":
            self._send(client, answer.body, seen)
            if not answer.repeat or self._closed:
                return

    def _send_request(
        self, client: Stream, head: Head, server: Stream, seen: Seen, fault: Fault
    ) -> None:
        dropped = ("connection", "range") if fault.ignore_range else ("connection",)
        server.sock.sendall(head.without(*dropped).with_header("Connection", "close").pack())
        if (head.get("expect") or "").lower() == "100-continue":
            client.sock.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        chunked = "chunked" in (head.get("transfer-encoding") or "").lower()

        def send(piece: bytes) -> None:
            before, after = (b"%x\r\n" % len(piece), b"\r\n") if chunked else (b"", b"")
            self._pass(server, before + piece + after if chunked else piece, self._up)
            seen.received += len(piece)

        self._relay(client.body(head, answer=False), send, fault.cut_request_at)
        if chunked:
            server.sock.sendall(b"0\r\n\r\n")

    def _send_answer(self, client: Stream, server: Stream, seen: Seen, fault: Fault) -> bool:
        answer = server.head()
        if answer is None or fault.swallow_answer:
            raise CutError
        seen.status = int(answer.line.split(" ")[1])
        bodiless = seen.method == "HEAD" or seen.status in (204, 304)
        body = iter(()) if bodiless else server.body(answer, answer=True)
        keep = bodiless or answer.get("content-length") is not None
        if not keep:  # the end of the connection is the end of the body
            answer = answer.without("transfer-encoding")
        client.sock.sendall(_changed(answer, fault, keep).pack())

        def send(piece: bytes) -> None:
            self._send(client, fault.alter(piece) if fault.alter else piece, seen)

        if fault.truncate_at is not None:
            body, keep = _first(body, fault.truncate_at), False
        self._relay(body, send, fault.cut_answer_at)
        return keep

    def _relay(
        self, pieces: Iterable[bytes], send: Callable[[bytes], None], cut_at: int | None
    ) -> None:
        """Pass a body on, as far as it gets."""
        left = cut_at
        for piece in pieces:
            piece = piece if left is None else piece[:left]
            cut = self.cuts.passed(len(piece)) if self.cuts is not None else None
            send(piece if cut is None else piece[:cut])
            if left is not None:
                left -= len(piece)
            if cut is not None or left == 0:
                raise CutError

    def _send(self, client: Stream, piece: bytes, seen: Seen) -> None:
        """Send something of an answer's body; whoever has got it finds it counted."""
        seen.sent += len(piece)
        try:
            self._pass(client, piece, self._down)
        except OSError:
            seen.sent -= len(piece)
            raise

    def _pass(self, to: Stream, data: bytes, bucket: Bucket | None) -> None:
        view = memoryview(data)
        while view:
            piece, view = view[:_PIECE], view[_PIECE:]
            if bucket is not None:
                bucket.take(len(piece))
            to.sock.sendall(piece)


def _changed(answer: Head, fault: Fault, keep: bool) -> Head:
    answer = answer.without("connection", *fault.without_headers)
    for name, value in fault.headers:
        answer = answer.with_header(name, value)
    return answer if keep else answer.with_header("Connection", "close")


def _first(pieces: Iterable[bytes], size: int) -> Iterator[bytes]:
    for piece in pieces:
        yield piece[:size]
        size -= len(piece[:size])
        if size == 0:
            return


@contextlib.contextmanager
def proxy(
    upstream: tuple[str, int],
    *,
    host: str = "127.0.0.1",
    bandwidth: float | None = None,
    latency: float = 0.0,
    tls: ssl.SSLContext | None = None,
) -> Iterator[Proxy]:
    """A proxy until the end of the block; see `Proxy`."""
    made = Proxy(upstream, host=host, bandwidth=bandwidth, latency=latency, tls=tls)
    try:
        yield made
    finally:
        made.stop()
