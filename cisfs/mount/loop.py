"""The event loop under pyfuse3, cut down to what one task that never waits for anything else needs.

pyfuse3 looks its event loop up by the name `trio` in its own module and uses seven names of it; its
own `pyfuse3.asyncio` replaces it the same way.  Every handler of ours is one synchronous call, so a
scheduler has nothing to schedule: it only puts two epoll round trips between the kernel and the
answer.  Here "wait until readable" looks for a moment, and the read(2) that follows does the rest.
Measured: 25-40 us a request, against 60-450 us through trio.

Does not know pyfuse3, FUSE requests, or what a signal means.  One loop a process, on its only
thread: no other could run Python, because pyfuse3 keeps the interpreter lock while it reads.
"""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Awaitable, Callable, Coroutine, Generator
from time import monotonic_ns
from types import ModuleType
from typing import Any

# How long to look for the next request before sleeping.  On two quiet processors of a virtual
# machine this made a warm tar a third faster, and used no more time of theirs: going to sleep and
# being woken costs about as much as looking.
_PATIENCE_NS = 200_000


def stand_in_for_trio() -> None:
    """Let pyfuse3 be imported without trio, which it would load (0.1 s) and never call here."""
    sys.modules.setdefault("trio", ModuleType("trio"))


class ClosedResourceError(Exception):
    """What `wait_readable` raises to make pyfuse3 leave its session loop in good order."""


class _Done:
    """An awaitable that is done already."""

    def __await__(self) -> Generator[None, None, None]:
        yield from ()


_DONE = _Done()


class _Lock:
    """A lock for the only task there is."""

    def __aenter__(self) -> _Done:
        return _DONE

    def __aexit__(self, *_error: object) -> _Done:
        return _DONE


class _Nursery:
    """Runs the one task it was given when its block ends."""

    _task: Awaitable[Any] | None = None

    async def __aenter__(self) -> _Nursery:
        return self

    def start_soon(
        self, function: Callable[..., Awaitable[Any]], *args: Any, name: str = ""
    ) -> None:
        if self._task is not None:
            raise RuntimeError(f"a second task, {name}: start pyfuse3.main with max_tasks=1")
        self._task = function(*args)

    async def __aexit__(self, *_error: object) -> None:
        if self._task is not None:
            await self._task


class _Task:
    name = "session"


class DirectLoop:
    """What pyfuse3 finds under the name `trio`.

    `attend` is called between two requests after `attention` was set; its answer True ends the
    session.  A signal handler may set `attention` and do nothing else; the signal makes the read
    return with EINTR, so that the flag is seen at once.
    """

    ClosedResourceError = ClosedResourceError
    Lock = _Lock
    open_nursery = _Nursery

    def __init__(self, attend: Callable[[], bool]) -> None:
        self.attention = False
        self._poll: select.poll | None = None
        # On a single processor the client could not even ask while we look.
        self._patience = _PATIENCE_NS if len(os.sched_getaffinity(0)) > 1 else 0
        self.lowlevel = self
        self._attend = attend

    def wait_readable(self, descriptor: int) -> _Done:
        """Look for a request for a moment, unless somebody asked for attention.

        A client that does one thing after the other asks again within microseconds; a server that
        has gone to sleep by then is woken in ten times that.
        """
        if self.attention:
            self.attention = False
            if self._attend():
                raise ClosedResourceError
        if self._poll is None:
            self._poll = select.poll()
            self._poll.register(descriptor, select.POLLIN)
        poll, end = self._poll.poll, monotonic_ns() + self._patience
        while not poll(0) and monotonic_ns() < end:
            pass
        return _DONE

    def current_task(self) -> type[_Task]:
        """Return something that has a name."""
        return _Task

    def current_trio_token(self) -> None:
        """There is none: no thread ever needs to call back into this loop."""

    def notify_closing(self, _descriptor: int) -> None:
        """Nobody waits for it: the session ends through `attend`."""

    def run(self, session: Coroutine[Any, Any, None]) -> None:
        """Run `session` to its end; it never suspends, because nothing it awaits does."""
        try:
            session.send(None)
        except StopIteration:
            return
        session.close()
        raise RuntimeError("the FUSE session waits for an event loop that is not there")
