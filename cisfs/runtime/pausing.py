"""Pausing what has to go on again whatever becomes of this process, even if it is killed.

A process of its own waits for that.  Does not know what is paused, or how.  Forks, so it is for a
process with one thread.
"""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def resumed_at_last(resume: Callable[[], object]) -> Iterator[None]:
    """Have `resume` called if this process ends in the block; call it before pausing anything."""
    watched = os.pidfd_open(os.getpid())
    try:
        watcher = os.fork()
        if watcher == 0:
            _watch(watched, resume)
    finally:
        os.close(watched)
    try:
        yield
    finally:
        os.kill(watcher, signal.SIGKILL)
        os.waitpid(watcher, 0)


def _watch(watched: int, resume: Callable[[], object]) -> None:
    """Be the watcher; never returns."""
    try:
        os.setsid()  # what is sent to the whole command is not for it
        select.select([watched], [], [])
        resume()
    finally:
        os._exit(0)
