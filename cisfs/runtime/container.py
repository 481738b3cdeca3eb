"""A running container as seen by its supervisor: waiting for its end and passing signals to it.

Does not know how it was started or what it runs on.  Single-threaded; the one process that may wait
for the container's first process.
"""

from __future__ import annotations

import os
import select
import signal
import time
from dataclasses import replace

from cisfs.mount import proc
from cisfs.runtime import dispositions
from cisfs.runtime.deadline import TimeUp
from cisfs.runtime.line import ENDING, Lower
from cisfs.runtime.request import Outcome

_BEFORE_EXEC = "runc:["  # what runc names the process that will become the command
_EXEC_TIME = 5.0  # seconds; microseconds in truth
_RESET_TIME = 0.25  # seconds, likewise
_POLL = 0.001  # seconds
_INSISTENCE = 3  # this many requests to end ...
_INSISTENCE_TIME = 3.0  # ... within so many seconds kill what ignores them
EXPIRED = "the container was stopped: the time for which its layers were unlocked is up"


def end_by_signal(number: int) -> Outcome:
    """Return the outcome of a run that a signal ended, as shells count."""
    return Outcome(128 + number)


class Running:
    """The container whose first process is `pid`, a child of this process."""

    def __init__(self, pid: int) -> None:
        """Take over the duty to wait for `pid`."""
        self._pid = pid
        self._handle = os.pidfd_open(pid)
        self._ended_by: int | None = None
        self._requests: list[float] = []
        self._executed = False
        self._expired = False

    def attend(self, inbox: Lower, time_up: TimeUp) -> Outcome:
        """Pass signals on until the container ends; end it when `cisfs run` is gone.

        When its time is up it is sent what `time_up` says, and the outcome tells so.
        """
        try:
            while not self._ended(inbox, time_up.wait()):
                self._heed(time_up)
                while (number := inbox.next_signal()) is not None:
                    self.deliver(number)
                if inbox.hung_up:
                    self._send(signal.SIGKILL)
                    break
            return self._outcome()
        finally:
            os.close(self._handle)

    def deliver(self, number: int) -> None:
        """Do with a signal what it would do to an ordinary process.

        The kernel drops a signal for the first process of a container unless that handles it
        (pid_namespaces(7)); here ctrl-C ends `sleep` as everywhere else.  What ignores several
        requests in a row is killed.
        """
        self._wait_for_exec()
        if number in ENDING:
            now = time.monotonic()
            self._requests = [*self._requests[1 - _INSISTENCE :], now]
            insists = (
                len(self._requests) == _INSISTENCE and now - self._requests[0] <= _INSISTENCE_TIME
            )
            if insists:
                self._send(signal.SIGKILL)
                return
            if not dispositions.handles(self._pid, number):
                self._ended_by = number
                self._send(signal.SIGKILL)
                return
        self._send(number)

    def _ended(self, inbox: Lower, seconds: float | None) -> bool:
        ready, _, _ = select.select([self._handle, inbox.fileno()], [], [], seconds)
        return self._handle in ready

    def _heed(self, time_up: TimeUp) -> None:
        number = time_up.due()
        if number is not None:
            self._expired = True
            self.deliver(number)

    def _send(self, number: int) -> None:
        try:
            signal.pidfd_send_signal(self._handle, number)
        except ProcessLookupError:
            pass  # it has just ended by itself

    def _wait_for_exec(self) -> None:
        """Let runc's last process become the command: what it is sent before that is lost.

        Inside execve(2) the name changes a moment before the handlers are reset, so a command that
        seems to have those of the Go runtime gets that moment once.
        """
        deadline = time.monotonic() + _EXEC_TIME
        while not self._executed and time.monotonic() < deadline:
            status = proc.status(self._pid)
            if status.get("Name", "").startswith(_BEFORE_EXEC):
                time.sleep(_POLL)
            elif dispositions.within(status, "SigCgt", signal.SIGURG):
                deadline = min(deadline, time.monotonic() + _RESET_TIME)
                time.sleep(_POLL)
            else:
                break
        self._executed = True

    def _outcome(self) -> Outcome:
        _, status = os.waitpid(self._pid, 0)
        code = os.waitstatus_to_exitcode(status)
        outcome = Outcome(code) if code >= 0 else end_by_signal(self._ended_by or -code)
        return replace(outcome, message=EXPIRED) if self._expired else outcome
