"""Signals that ask a long command to end: raised once, and not where that would lose something.

The first one is raised as Interrupted wherever the process is; those that follow are not, so that
what is being undone is undone to its end.  Does not know what is interrupted.  One thread; the
state is the process's, because signals are.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

_owner = 0  # the process that the handlers are for
_received = False
_pending = 0  # the signal that is put off
_holds = 0


class Interrupted(BaseException):
    """A signal asks for the end; like KeyboardInterrupt no Exception, for nothing handles it."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@contextlib.contextmanager
def raised() -> Iterator[None]:
    """Have signals raised as Interrupted in this block; ignored ones stay ignored, as by nohup."""
    global _owner, _received, _pending
    _owner, _received, _pending = os.getpid(), False, 0
    before = {number: signal.getsignal(number) for number in ENDING}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, _receive)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _owner = 0


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Put off what arrives to the end of this block: what is made in it gets an owner in it."""
    global _holds, _pending
    _holds += 1
    try:
        yield
    finally:
        _holds -= 1
    if _pending and not _holds:
        number, _pending = _pending, 0
        raise Interrupted(number)


def settle() -> None:
    """From here on nothing is raised: what was to be interrupted is done."""
    global _received
    _received = True


def _receive(number: int, _frame: FrameType | None) -> None:
    global _received, _pending
    if os.getpid() != _owner:
        os._exit(128 + number)  # forked just now, and not yet at its own handlers
    if _received:
        return
    _received = True
    if not _holds:
        raise Interrupted(number)
    _pending = number
