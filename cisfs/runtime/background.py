"""A container in the background: a process of its own keeps it, and what it printed, until removed.

Starts that process, reports from it how the start went, and lets it linger after the container's
end until `cisfs rm`.  Does not know how a container is run.  Called once, by a process with one
thread.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import dataclass
from typing import NoReturn

from setproctitle import setproctitle

from cisfs.errors import CisfsError, EngineError
from cisfs.keys import memory
from cisfs.runtime import embedded
from cisfs.runtime.holdings import Opened
from cisfs.runtime.line import FORWARDED
from cisfs.runtime.listing import Registration
from cisfs.runtime.output import Log, Recorder
from cisfs.runtime.request import Outcome, Request

_TEXT_LIMIT = 512  # characters of what explains a start that failed
_REPORT_LIMIT = 4096  # bytes: a pipe takes so much at once (PIPE_BUF); JSON writes up to 6 for one


@dataclass(frozen=True, slots=True)
class Start:
    """How the start went: an `identifier`, or the reason why there is none."""

    identifier: str
    outcome: Outcome


def start(request: Request, opened: Opened) -> Start:
    """Start a container over layers, closed on return, which goes on without the caller.

    Raises EngineError when its keeper was killed.
    """
    receive, send = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    if os.fork() == 0:
        os.close(receive)
        _keep(request, opened, send)
    os.close(send)
    for layer in opened.layers:
        layer.abandon()
    # One message; the end of the file comes only when the last fork of the keeper has ended.
    report = os.read(receive, _REPORT_LIMIT)
    os.close(receive)
    if not report:
        raise EngineError("the process that was to keep the container was killed")
    fields = json.loads(report)
    return Start(fields["identifier"], Outcome(fields["exit_code"], fields["message"]))


def _keep(request: Request, opened: Opened, report: int) -> NoReturn:
    """Be the keeper: a forked child that never returns."""
    try:
        os.setsid()
        memory.lock()  # a fork's is not
        log, pipe = Log(), _redirect()
        keeper = _Keeper(request, log, report)
        keeper.run(opened, Recorder(log, pipe))
    except BaseException:  # noqa: BLE001 - a fork must not return into its parent's stack
        sys.excepthook(*sys.exc_info())
        sys.stderr.flush()
    os._exit(0)


def _redirect() -> int:
    """Make all output go to a pipe, and return where to read it; no input."""
    receive, send = os.pipe()
    os.set_blocking(receive, False)
    null = os.open(os.devnull, os.O_RDWR)
    for source, target in ((null, 0), (send, 1), (send, 2)):
        os.dup2(source, target)
    os.close(send)
    os.close(null)
    return receive


class _Keeper:
    """Runs the container, and reports its start once."""

    def __init__(self, request: Request, log: Log, report: int) -> None:
        self._request = request
        self._log = log
        self._report: int | None = report
        self._entry: Registration | None = None

    def run(self, opened: Opened, recorder: Recorder) -> None:
        """Keep the container until its end, and then until it is removed."""
        view = embedded.View(recorder, self._log.parts, self._started)
        try:
            outcome = embedded.run(self._request, opened, view)
            if outcome.message:
                self._log.append(f"cisfs: {outcome.message}\n".encode())
        except (CisfsError, OSError) as error:
            outcome = Outcome(EngineError.exit_code, str(error))
        if self._report is not None:
            self._tell("", self._explained(outcome))
        elif self._entry is not None and not self._request.remove:
            self._entry.ended(outcome.exit_code)
            self._linger(self._entry)
        if self._entry is not None:
            self._entry.withdraw()

    def _started(self, entry: Registration) -> None:
        self._entry = entry
        setproctitle(f"cisfs: keeper of {entry.name}")
        self._tell(entry.identifier, Outcome(0))

    def _tell(self, identifier: str, outcome: Outcome) -> None:
        if self._report is not None:
            fields = {
                "identifier": identifier,
                "exit_code": outcome.exit_code,
                "message": outcome.message,
            }
            os.write(self._report, json.dumps(fields).encode())
            os.close(self._report)
            self._report = None

    def _explained(self, outcome: Outcome) -> Outcome:
        """Return an outcome with what was printed, where that is all there is to explain it."""
        printed = " ".join(self._log.text().decode(errors="replace").split())
        message = outcome.message or printed
        return Outcome(outcome.exit_code or EngineError.exit_code, message[-_TEXT_LIMIT:])

    def _linger(self, entry: Registration) -> None:
        """Hold the state and the log until `cisfs rm`, or any signal that ends a process."""
        setproctitle(f"cisfs: {entry.name}, exited")
        ending = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, *FORWARDED}
        ending -= {signal.SIGWINCH}
        signal.pthread_sigmask(signal.SIG_BLOCK, ending)
        signal.sigwait(ending)
