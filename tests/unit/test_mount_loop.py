"""The loop under pyfuse3, driven by a session that looks like pyfuse3's own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Coroutine
from typing import Any

import pytest

from cisfs.mount.loop import DirectLoop
from cisfs.mount.pyfuse import Session


class _Session:
    """The shape of pyfuse3's main() and _session_loop(): nursery, lock, wait, read, handle."""

    def __init__(self, loop: DirectLoop, requests: int) -> None:
        self.loop = loop
        self.left = requests
        self.handled = 0

    async def main(self) -> None:
        async with self.loop.open_nursery() as nursery:
            nursery.start_soon(self._requests, name="pyfuse-01")

    async def _requests(self) -> None:
        lock = self.loop.Lock()
        while self.left:
            try:
                async with lock:
                    await self.loop.lowlevel.wait_readable(7)
            except self.loop.ClosedResourceError:
                return
            self.left -= 1
            self.handled += 1
            self.loop.attention = self.handled == 3


def test_a_session_runs_to_its_end_without_any_event_loop() -> None:
    loop = DirectLoop(lambda: False)
    session = _Session(loop, requests=10)
    loop.run(session.main())
    assert session.handled == 10


def test_attention_is_paid_between_two_requests_and_may_end_the_session() -> None:
    asked: list[int] = []

    def attend() -> bool:
        asked.append(session.handled)
        return True

    loop = DirectLoop(attend)
    session = _Session(loop, requests=10)
    loop.run(session.main())
    assert asked == [3]
    assert session.handled == 3


def test_a_session_that_would_wait_for_something_is_an_error_not_a_hang() -> None:
    async def waits() -> None:
        await asyncio.sleep(0)

    with pytest.raises(RuntimeError, match="waits for an event loop"):
        DirectLoop(lambda: False).run(waits())


def test_a_second_task_is_refused() -> None:
    async def task() -> None:
        return

    async def session() -> None:
        async with DirectLoop(lambda: False).open_nursery() as nursery:
            nursery.start_soon(task)
            with pytest.raises(RuntimeError, match="second task"):
                nursery.start_soon(_never, name="pyfuse-02")

    def _never() -> Awaitable[None]:
        raise AssertionError("started")

    DirectLoop(lambda: False).run(session())


class _BrokenOff:
    """A loop whose session ends like one that the kernel ended in the midst of a read."""

    def __init__(self, error: type[OSError]) -> None:
        self._error = error

    def run(self, session: Coroutine[Any, Any, None]) -> None:
        session.close()
        raise self._error


@pytest.mark.parametrize("error", [ConnectionAbortedError, OSError])
def test_a_request_in_hand_when_the_kernel_ends_the_connection_is_an_orderly_end(
    error: type[OSError],
) -> None:
    session = Session.__new__(Session)
    vars(session)["_loop"] = _BrokenOff(error)
    refused = contextlib.nullcontext() if error is ConnectionAbortedError else pytest.raises(error)
    with refused:
        session.serve()
