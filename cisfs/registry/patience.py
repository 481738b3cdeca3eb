"""How long a registry is waited for, and how often it is asked again.

Knows nothing of HTTP but its Retry-After.  Immutable values, safe anywhere, but for `Watch`, which
is one answer's.
"""

from __future__ import annotations

import datetime
import random
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from cisfs.errors import UnreachableError

_FIRST_WAIT = 0.25  # seconds; doubled each time


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds and counts.

    `connect`: to reach a host.  `idle`: for the next bytes of an answer; they also have to come at
    `slowest` bytes a second, or a server that sends one now and then would hold us for ever.
    `attempts`: to do one thing, the first included; what brought bytes does not count.
    `longest_wait`: between two attempts, whatever a server asks for.
    """

    connect: float = 10.0
    idle: float = 60.0
    slowest: int = 256
    attempts: int = 6
    longest_wait: float = 30.0

    def wait(self, failures: int, asked: float | None = None) -> float:
        """Return how long to wait after that many failures, at least as long as was `asked`.

        Random within the doubled time, so that those who failed together do not return together.
        """
        doubled = min(self.longest_wait, _FIRST_WAIT * (1 << min(failures, 20)))
        wait = doubled * random.uniform(0.5, 1.0)  # noqa: S311 - spreads load, keeps no secret
        return min(self.longest_wait, max(wait, asked or 0.0))


class Watch:
    """Tells a slow server from one that only keeps us waiting."""

    def __init__(self, patience: Patience) -> None:
        self._patience = patience
        self._bytes = 0
        self._seconds = 0.0

    def saw(self, size: int, seconds: float) -> None:
        """Count what came, and how long it was waited for.  Raises UnreachableError."""
        self._bytes += size
        self._seconds += seconds
        if self._seconds < self._patience.idle:
            return
        if self._bytes < self._patience.slowest * self._seconds:
            raise UnreachableError(f"too slow: {self._bytes} bytes in {self._seconds:.0f} s")
        self._bytes, self._seconds = 0, 0.0


def retry_after(value: str | None) -> float | None:
    """Return the seconds that a Retry-After asks for, None for none (RFC 9110, 10.2.3)."""
    if value is None:
        return None
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        when = parsedate_to_datetime(value)
        if when.tzinfo is None:
            when = when.replace(tzinfo=datetime.UTC)
        return max(0.0, (when - datetime.datetime.now(datetime.UTC)).total_seconds())
    except (ValueError, OverflowError):
        return None
