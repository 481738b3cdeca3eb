"""Ending a container of an engine from outside, through the runtime that made it.

The engine sees it end as it would by itself.  Signals go to the runtime, never to a number that may
have come to mean another process.  Does not know why the container is to end.  Safe in any thread.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from cisfs.errors import EngineError
from cisfs.runtime import dispositions
from cisfs.runtime.ending import stop_signal
from cisfs.runtime.oci import record

_PATIENCE = 15.0  # seconds for a container that is only being made
_LAST_PATIENCE = 30.0  # for what was killed to end, and for its scratch to be written back
_POLL = 0.05


@dataclass(frozen=True, slots=True)
class Runtime:
    """The way to a container: the runtime's program, and the root it keeps the container below.

    `ends_at_once`: the container ends with its first process.
    """

    program: str
    root: str
    container: str
    ends_at_once: bool

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Self:
        """Return the way to the container of a record."""
        return cls(
            record["runtime"],
            record["runtime_root"],
            record["container"],
            record["ends_at_once"],
        )

    def first(self) -> int | None:
        """Return the number of its first process; None if it is not made yet, or has ended."""
        done = self._ask("state", self.container)
        with contextlib.suppress(ValueError, KeyError, TypeError):
            state = json.loads(done.stdout)
            return int(state["pid"]) if state["status"] != "stopped" else None
        return None

    def end(self, number: int) -> bool:
        """Send a signal that is to end it; tells whether there was a container to send it to.

        The kernel drops a signal for the first process of a container unless that handles it
        (pid_namespaces(7)): it is killed then, as there is nothing to wait for.
        """
        pid = self.first()
        if pid is None:
            return False
        if self.ends_at_once and not dispositions.handles(pid, number):
            number = signal.SIGKILL
        everyone = [] if self.ends_at_once or number != signal.SIGKILL else ["--all"]
        self._ask("kill", *everyone, self.container, str(int(number)))
        return True

    def _ask(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.program, "--root", self.root, *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )


def stop(place: Path, seconds: float) -> None:
    """Ask the container of a record in `place` to end, and kill it when it has not in some seconds.

    Returns when nothing of it is left: its layers are not mounted any more.  Raises EngineError.
    """
    of = record.read(place)
    if of is None:
        return
    runtime = Runtime.of(of)
    if _asked(runtime, place, of):
        _await_first(runtime, seconds)
        runtime.end(signal.SIGKILL)
    end = time.monotonic() + _LAST_PATIENCE
    while _is_there(place, of):
        if time.monotonic() > end:
            raise EngineError(
                f"container {of['container']} does not end: its processes were killed, but its "
                f"layers are still mounted; look into {place}"
            )
        time.sleep(_POLL)


def _asked(runtime: Runtime, place: Path, of: Mapping[str, Any]) -> bool:
    """Ask the container to end, as soon as there is one; tells whether there was."""
    number, end = stop_signal(of["stop_signal"]), time.monotonic() + _PATIENCE
    while not runtime.end(number):
        if not _is_there(place, of) or time.monotonic() > end:
            return False
        time.sleep(_POLL)
    return True


def _await_first(runtime: Runtime, seconds: float) -> None:
    """Wait until the first process has ended, for so many seconds at most."""
    pid = runtime.first()
    if pid is None:
        return
    try:
        first = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        select.select([first], [], [], seconds)
    finally:
        os.close(first)


def _is_there(place: Path, of: Mapping[str, Any]) -> bool:
    """Whether this container, and none that came after it, is still there."""
    current = record.read(place)
    return current is not None and current["started"] == of["started"]
