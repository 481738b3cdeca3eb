"""Ending and removing containers of the embedded engine from outside: `cisfs stop`, `cisfs rm`.

Talks to the keeper and to the container's first process by signals, through descriptors that
cannot come to mean another process.  Any number of processes may try it at once.
"""

from __future__ import annotations

import os
import re
import select
import signal
import time

from cisfs.errors import EngineError
from cisfs.runtime import listing
from cisfs.runtime.line import ENDING
from cisfs.runtime.listing import RUNNING, Container

_PATIENCE = 10.0  # seconds for what the kernel ends, and for the keeper to notice
_POLL = 0.01


def stop_signal(name: str | None) -> int:
    """Return the number of an image's stop signal: "SIGQUIT", "QUIT", "3", "SIGRTMIN+3".

    None, and what is no signal, is SIGTERM.
    """
    text = (name or "").upper().removeprefix("SIG")
    if match := re.fullmatch(r"RTMIN(?:\+(\d{1,2}))?", text):
        return min(int(signal.SIGRTMIN) + int(match[1] or 0), int(signal.SIGRTMAX))
    if text.isascii() and text.isdigit() and 0 < int(text) <= int(signal.SIGRTMAX):
        return int(text)
    return getattr(signal, f"SIG{text}", signal.SIGTERM) if text.isalnum() else signal.SIGTERM


def stop(container: Container, seconds: float) -> None:
    """Ask the container to end, and kill it when it has not after some seconds.

    Raises EngineError when it goes on all the same.
    """
    if container.state.status != RUNNING:
        return
    init = _opened(container.state.init)
    if init is not None:
        try:
            _end(container, init, seconds)
        finally:
            os.close(init)
    _await_end(container)


def _end(container: Container, init: int, seconds: float) -> None:
    number = stop_signal(container.state.stop_signal)
    keeper = _opened(container.keeper) if number in ENDING else None
    if keeper is None:
        _send(init, number)
    else:
        # The keeper sees to it that a command that handles none ends at once.
        if _is_running(container):
            _send(keeper, number)
        os.close(keeper)
    if not _ended(init, seconds):
        _send(init, signal.SIGKILL)
        _ended(init, _PATIENCE)


def remove(container: Container, force: bool) -> None:
    """Take an ended container off the list; with `force`, kill it first.  Raises EngineError."""
    if container.state.status == RUNNING:
        if not force:
            raise EngineError(
                f"container {container.state.name} is running: stop it first "
                f"(cisfs stop {container.state.name}), or remove it with --force"
            )
        stop(container, 0)
    keeper = _opened(container.keeper)
    if keeper is None:
        return
    try:
        if _is_kept(container):
            _send(keeper, signal.SIGTERM)
            _ended(keeper, _PATIENCE)
    finally:
        os.close(keeper)


def _await_end(container: Container) -> None:
    """Wait until the list says what the kernel has said already."""
    deadline = time.monotonic() + _PATIENCE
    while _is_running(container):
        if time.monotonic() > deadline:
            raise EngineError(f"container {container.state.name} does not end")
        time.sleep(_POLL)


def _is_running(container: Container) -> bool:
    current = listing.current(container)
    return current is not None and current.state.status == RUNNING


def _is_kept(container: Container) -> bool:
    current = listing.current(container)
    return current is not None and current.keeper == container.keeper


def _opened(process: int) -> int | None:
    """Return a descriptor that means this process and never another; None when it is gone."""
    try:
        return os.pidfd_open(process)
    except OSError:
        return None


def _send(process: int, number: int) -> None:
    try:
        signal.pidfd_send_signal(process, number)
    except ProcessLookupError:
        pass  # it has just ended by itself


def _ended(process: int, seconds: float) -> bool:
    """Tell whether the process of a pidfd ends within so many seconds."""
    ready, _, _ = select.select([process], [], [], seconds)
    return bool(ready)
