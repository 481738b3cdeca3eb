"""When the time for which layers are unlocked is up for a container that uses them.

Only keys that were unlocked to that end count (`cisfs unlock --stop`).  Their terms may change
while the container runs, so they are looked at now and then.  Does not know how a signal is sent.
One thread.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterable

from cisfs.keys import keyring

GRACE = 10.0  # seconds between asking a container to end and killing it
_PERIOD = 10.0  # seconds between looks: a key may be unlocked anew, on other terms


class Deadline:
    """The end of the time of some keys, which are given by their hex ids."""

    def __init__(self, keys: Iterable[str]) -> None:
        """Look at the terms of the keys for the first time."""
        self._ends: dict[str, float | None] = {key: None for key in keys if key}
        self._look()

    def wait(self) -> float | None:
        """Return for how many seconds at most to wait before asking again; None is for ever."""
        if not self._ends:
            return None
        end = self._end()
        return _PERIOD if end is None else min(max(0.0, end - time.time()), _PERIOD)

    def is_over(self) -> bool:
        """Tell whether the time of any of the keys is up."""
        self._look()
        end = self._end()
        return end is not None and end <= time.time()

    def _look(self) -> None:
        """Take note of the terms.  A key that is gone was to end when it was last seen to."""
        for key in self._ends:
            terms = keyring.terms(key)
            if terms is not None:
                self._ends[key] = terms.until if terms.stops else None

    def _end(self) -> float | None:
        return min((end for end in self._ends.values() if end is not None), default=None)


class TimeUp:
    """What is to be sent to a container, and when, because the time of its layers is up."""

    def __init__(self, keys: Iterable[str], number: int) -> None:
        """`keys` are hex ids of keys, `number` the signal that asks for the end."""
        self._deadline = Deadline(keys)
        self._number = number
        self._kill_at: float | None = None

    def wait(self) -> float | None:
        """Return for how many seconds at most to wait before `due`; None is for ever."""
        if self._kill_at is None:
            return self._deadline.wait()
        return max(0.0, self._kill_at - time.monotonic())

    def due(self) -> int | None:
        """Return the signal that is due now: first the one that asks, then the one that kills."""
        now = time.monotonic()
        if self._kill_at is None:
            if not self._deadline.is_over():
                return None
            self._kill_at = now + GRACE
            return self._number
        if now < self._kill_at:
            return None
        self._kill_at = now + GRACE
        return signal.SIGKILL
