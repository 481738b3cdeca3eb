"""Several blobs at a time, with one account of how far all of them are.

Does not know what a job does, only how many bytes it has.  Threads of its own for the length of one
call; `progress` is called by one of them at a time.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from cisfs.registry.download import Report

WORKERS = 4
_LINGER = 2.0  # seconds that an interrupted call waits for its threads, which wait for a registry


@dataclass(frozen=True, slots=True)
class Job:
    """`size` bytes that `run` reports one part after the other, as a download or upload does."""

    size: int
    run: Callable[[Report], object]


Progress = Callable[[int, int], None]  # bytes done, and bytes in all


def transfer(jobs: Sequence[Job], progress: Progress | None = None, workers: int = WORKERS) -> None:
    """Do all jobs, up to `workers` at a time, the large ones first.

    The first error ends the others at their next bytes, and is raised.  So does an interrupt.
    """
    account = _Account(sum(job.size for job in jobs), progress)
    waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
    for job in sorted(jobs, key=lambda job: -job.size):
        waiting.put(job)
    threads = [
        threading.Thread(target=_work, args=(waiting, account), daemon=True)
        for _ in range(min(workers, len(jobs)))
    ]
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    except BaseException:
        account.stop(_StoppedError())
        for thread in threads:
            if thread.ident is not None:
                thread.join(_LINGER)
        raise
    if account.error is not None:
        raise account.error


class _StoppedError(Exception):
    """Another job failed, or the user has had enough."""


class _Account:
    """What all jobs have done, and whether they are to go on."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self._total = total
        self._progress = progress
        self._done = 0
        self._lock = threading.Lock()
        self.error: BaseException | None = None

    def report(self, more: int) -> None:
        """Count bytes.  Raises _StoppedError in a job that is to end."""
        with self._lock:
            if self.error is not None:
                raise _StoppedError
            self._done += more
            if self._progress is not None:
                self._progress(self._done, self._total)

    def stop(self, error: BaseException) -> None:
        """Remember the first error; it ends the other jobs."""
        with self._lock:
            self.error = self.error or error


def _work(waiting: queue.SimpleQueue[Job], account: _Account) -> None:
    while account.error is None:
        try:
            job = waiting.get_nowait()
        except queue.Empty:
            return
        try:
            job.run(account.report)
        except BaseException as error:  # noqa: BLE001 - it is raised in the thread that waits
            account.stop(error)
