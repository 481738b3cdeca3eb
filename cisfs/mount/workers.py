"""The workers of a mount: forked, watched, replaced, and their requests sent again.

Each reads requests from the same /dev/fuse.  One that dies, by whatever hand, or that sits on a
request for longer than anything takes, is replaced at once; then the kernel is told to send again
what had been taken and not answered (FUSE_NOTIFY_RESEND, Linux 6.9), so no reader ever learns of
it.  A kernel that cannot gets EIO for the request that the dead worker had in hand.

Does not know what a worker does, nor mounts.  For the supervisor, which has one thread; the methods
never wait.
"""

from __future__ import annotations

import errno
import logging
import os
import signal
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from cisfs.mount import proc, process, wire
from cisfs.mount.board import Board, Seat

# More deaths than this within the time are no accident: a worker that cannot live is then forked
# only now and again, instead of as fast as the machine can.
_STORM_DEATHS = 50
_STORM_SECONDS = 5.0
# A request that was in hand at so many deaths in a row is what they die of: it fails with EIO.
_FATAL_DEATHS = 10
_RESENT = 1 << 63  # set in the number of a request that was sent again (FUSE_UNIQUE_RESEND)

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Worker:
    """One process and its seat; `stopped` is since when it has been seen stopped, or None."""

    index: int
    pid: int
    stopped: float | None = None


class Crew:
    """The workers of one mount."""

    def __init__(
        self, device: int, count: int, work: Callable[[Seat], None], *, patience: float
    ) -> None:
        """`work` is a worker's life, in its own process; it returns when the mount is gone.

        A worker that has had a request for `patience` seconds is taken for hung.
        """
        self._device = device
        self._work = work
        self._patience = patience
        self._board = Board(count)
        self._count = count
        self._workers: dict[int, _Worker] = {}
        self._vacant: list[int] = []
        self._deaths: deque[float] = deque(maxlen=_STORM_DEATHS)
        self._suspects: dict[int, int] = {}  # requests, and the deaths in a row they were part of
        self._can_resend = True
        self.ended = False  # a worker has seen the end of the mount

    def start(self) -> None:
        """Fork all workers."""
        for index in range(self._count):
            self._fork(index)

    def look(self) -> None:
        """Bury the dead, end the hung, replace both; to be called at each SIGCHLD and tick."""
        for worker in list(self._workers.values()):
            pid, status = os.waitpid(worker.pid, os.WNOHANG)
            if pid:
                self._bury(worker, os.waitstatus_to_exitcode(status))
            elif self._is_hung(worker):
                log.warning(
                    "worker %d has not answered for %g s: it is replaced",
                    worker.pid,
                    self._patience,
                )
                os.kill(worker.pid, signal.SIGKILL)
        if not self.ended:
            self._fill()

    def dismiss(self) -> None:
        """Kill all workers and wait for them; the requests they had are not sent again."""
        for worker in self._workers.values():
            os.kill(worker.pid, signal.SIGKILL)
        for worker in self._workers.values():
            os.waitpid(worker.pid, 0)
        self._workers.clear()

    def _fork(self, index: int) -> None:
        seat = self._board.seat(index)
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            _live(lambda: self._work(seat), parent)
        self._workers[pid] = _Worker(index, pid)

    def _bury(self, worker: _Worker, code: int) -> None:
        del self._workers[worker.pid]
        if code == 0:
            self.ended = True
            return
        if not self.ended:
            how = process.signal_name(-code) if code < 0 else f"exit code {code}"
            log.warning("worker %d ended (%s): it is replaced", worker.pid, how)
            self._deaths.append(time.monotonic())
            self._vacant.append(worker.index)

    def _is_hung(self, worker: _Worker) -> bool:
        """Whether a worker sits on a request, or was stopped before it could say so."""
        if self._board.busy_for(worker.index) > self._patience:
            return True
        if not _is_stopped(worker.pid):
            worker.stopped = None
            return False
        now = time.monotonic()
        worker.stopped = worker.stopped or now
        return now - worker.stopped > self._patience

    def _fill(self) -> None:
        """Fork a worker for each empty seat, and see to what the dead ones had in hand."""
        if not self._vacant or self.is_hopeless:
            return
        in_hand = [self._board.in_hand(index) for index in self._vacant]
        aside = [number for index in self._vacant for number in self._board.aside(index)]
        while self._vacant:
            self._fork(self._vacant.pop())
        self._see_to(in_hand, aside)

    @property
    def is_hopeless(self) -> bool:
        """Whether workers die as fast as they are forked."""
        deaths = self._deaths
        return len(deaths) == deaths.maxlen and time.monotonic() - deaths[0] < _STORM_SECONDS

    def _see_to(self, in_hand: list[int], aside: list[int]) -> None:
        """Have what the dead had in hand, or put aside, sent again, or fail it."""
        before = self._suspects
        self._suspects = {
            number & ~_RESENT: before.get(number & ~_RESENT, 0) + 1
            for number in filter(None, in_hand)
        }
        fatal = [
            number
            for number in filter(None, in_hand)
            if self._suspects[number & ~_RESENT] >= _FATAL_DEATHS
        ]
        if fatal:
            log.error(
                "a request that %d workers died of, one after the other, fails", _FATAL_DEATHS
            )
            self._fail(fatal)
        if not self._resend():
            self._fail(in_hand + [number for number in aside if number not in in_hand])

    def _resend(self) -> bool:
        """Have the kernel send again what was not answered; False if it cannot."""
        if self._can_resend:
            try:
                os.write(self._device, wire.NOTIFY_RESEND)
            except OSError as error:
                if error.errno == errno.ENODEV:  # the mount is gone
                    return True
                self._can_resend = False
                log.warning(
                    "this kernel cannot send requests again (it takes Linux 6.9): "
                    "what a worker had in hand when it died fails with EIO"
                )
        return self._can_resend

    def _fail(self, requests: list[int]) -> None:
        for number in filter(None, requests):
            try:
                os.write(self._device, wire.error_reply(number, errno.EIO))
            except OSError:
                pass  # it was answered just before the worker died, or its reader has gone


def _live(work: Callable[[], None], parent: int) -> None:
    """Be a worker; nothing of the supervisor's code runs here again."""
    code = 1
    try:
        if os.getppid() == parent:
            work()
            code = 0
    except BaseException:  # must not unwind into the supervisor's frames
        log.exception("a worker failed")
    finally:
        os._exit(code)


def _is_stopped(pid: int) -> bool:
    fields = proc.stat(pid)
    return bool(fields) and fields[0] in "Tt"
