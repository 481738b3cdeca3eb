"""What a proxy may do to requests, answers and connections, and what it notes about them.

Does not know sockets.  `RandomCuts` and `Bucket` are for several threads.
"""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tests.registry.harness.messages import Head, Headers


class CutError(Exception):
    """The connection is to be broken now."""


@dataclass
class Seen:
    """A request that came, and what became of it."""

    method: str
    target: str
    headers: Headers = field(repr=False)
    received: int = 0  # bytes of the request's body
    status: int = 0
    sent: int = 0  # bytes of the answer's body
    cut: bool = False

    def header(self, name: str) -> str | None:
        """The first header of that name."""
        return Head("", self.headers).get(name)


@dataclass
class Answer:
    """Said instead of the registry: the request goes no further.  `repeat`: the body, for ever."""

    status: int
    headers: Headers = field(default_factory=list)
    body: bytes = b""
    repeat: bool = False


@dataclass
class Fault:
    """What is done to a request that goes to the registry, and to its answer."""

    delay: float = 0.0  # seconds before anything
    silent: bool = False  # the request is taken, and nothing ever said
    cut_request_at: int | None = None  # bytes of the request's body
    cut_answer_at: int | None = None  # bytes of the answer's body
    truncate_at: int | None = None  # bytes of the answer's body, then an orderly end
    swallow_answer: bool = False  # the registry does it all, the client hears nothing
    ignore_range: bool = False
    without_headers: tuple[str, ...] = ()  # of the answer
    headers: Headers = field(default_factory=list)  # put into the answer
    alter: Callable[[bytes], bytes] | None = None  # the answer's body, piece by piece, same length


@dataclass
class Rule:
    """Which requests an answer or fault is for.  `target` is searched for in "METHOD TARGET"."""

    target: str
    does: Answer | Fault | Callable[[Seen], Answer | Fault | None]
    times: int | None = None  # how often, None for ever
    used: int = 0

    def matches(self, seen: Seen) -> bool:
        """Whether it is for that request; does not count."""
        if self.times is not None and self.used >= self.times:
            return False
        return re.search(self.target, f"{seen.method} {seen.target}") is not None


class RandomCuts:
    """Breaks connections at random places, `count` times in all, each `span` bytes or so apart."""

    def __init__(self, seed: int, count: int, span: int) -> None:
        self._random = random.Random(seed)
        self._span = span
        self._lock = threading.Lock()
        self.left = count
        self._next = self._random.randrange(span)

    def passed(self, size: int) -> int | None:
        """Count bytes of a body; returns after how many of them to cut, None for not."""
        with self._lock:
            self._next -= size
            if self.left <= 0 or self._next > 0:
                return None
            at = max(0, size + self._next)
            self.left -= 1
            self._next = self._random.randrange(1, 2 * self._span)
            return at


class Bucket:
    """Bytes a second, shared by all connections of one direction."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._lock = threading.Lock()
        self._free_at = time.monotonic()

    def take(self, size: int) -> None:
        """Wait until `size` bytes may pass."""
        with self._lock:
            now = time.monotonic()
            # A sleep is never exact: what one overslept may be caught up with, within a little.
            self._free_at = max(self._free_at, now - 0.02) + size / self._rate
            wait = self._free_at - now
        if wait > 0:
            time.sleep(wait)
