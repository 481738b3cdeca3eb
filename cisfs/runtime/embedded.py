"""The life of one `cisfs run` as its user sees it: start the supervisor, pass signals, clean up.

Stays in the user's session and namespaces and mounts nothing.  Does not know what happens inside,
nor whether anybody watches.  Single-threaded; signal handlers only write to the line.
"""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import FrameType

from cisfs.errors import EngineError
from cisfs.mount import syscalls
from cisfs.runtime import holdings, line, workspace
from cisfs.runtime.console import Console
from cisfs.runtime.holdings import Opened
from cisfs.runtime.listing import Registration, State, default_name
from cisfs.runtime.output import Recorder
from cisfs.runtime.request import Outcome, Request
from cisfs.runtime.supervisor import supervise


@dataclass(frozen=True, slots=True)
class View:
    """Who takes the container's output, if not this process's own streams; who learns of it."""

    streams: Console | Recorder | None = None
    log: tuple[int, ...] = ()  # descriptors, for those who ask for the output
    on_start: Callable[[Registration], None] | None = None  # it then owns the entry in the list


def run(request: Request, opened: Opened, view: View | None = None) -> Outcome:
    """Run the container over layers, which are closed on return; return how it ended.

    Raises EngineError when it could not be started, NoKeyError when a layer was locked meanwhile,
    OSError when /run cannot be written.
    """
    view = view or View(Console() if request.terminal else None)
    with ExitStack() as undo:
        for layer in opened.layers:
            undo.callback(layer.close)
        workspace.sweep()
        upper, lower = line.line()
        undo.callback(upper.close)
        streams = view.streams
        if streams is not None:
            undo.push(streams)
        undo.enter_context(_signals_forwarded(upper, streams))
        place = workspace.claim()
        undo.callback(os.close, place.lock)
        undo.callback(place.remove)
        state = _state(request, opened, place.identifier, bool(view.log))
        entry = Registration(state, view.log)
        withdrawal = undo.enter_context(ExitStack())
        withdrawal.callback(entry.withdraw)
        holdings.confirm(opened)
        supervisor = _fork(request, opened, place, upper, lower)
        undo.callback(os.waitpid, supervisor, 0)
        undo.callback(upper.close)  # first of all: without a listener the supervisor ends

        def started(process: int) -> None:
            entry.started(supervisor, process)
            if view.on_start is not None:
                withdrawal.pop_all()
                view.on_start(entry)

        outcome = _attend(upper, streams, started)
    if outcome is None:
        raise EngineError("the container's supervisor was killed, and the container with it")
    return outcome


def _state(request: Request, opened: Opened, identifier: str, detached: bool) -> State:
    return State(
        identifier=identifier,
        name=request.name or default_name(identifier),
        image=request.image,
        command=request.arguments,
        created=time.time(),
        detached=detached,
        stop_signal=request.stop_signal,
        holdings=(*opened.holdings, *holdings.of_scratch(request.scratch_place)),
    )


def _fork(
    request: Request,
    opened: Opened,
    place: workspace.Workspace,
    upper: line.Upper,
    lower: line.Lower,
) -> int:
    """Fork the supervisor as the first process of a new PID namespace; return its id."""
    try:
        syscalls.unshare(syscalls.CLONE_NEWPID)
    except PermissionError:
        raise EngineError(
            "not allowed to make namespaces (this root lacks CAP_SYS_ADMIN); "
            "inside a container, run that one privileged"
        ) from None
    # What is buffered would otherwise be printed twice.
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        upper.close()
        supervise(request, opened, place, lower)
    lower.close()
    return pid


def _attend(
    upper: line.Upper, streams: Console | Recorder | None, started: Callable[[int], None]
) -> Outcome | None:
    """Serve the streams until the supervisor reports; None when it died without a report."""
    while True:
        sources = streams.sources() if streams is not None else []
        ready, _, _ = select.select([upper.fileno(), *sources], [], [])
        if streams is not None:
            streams.transfer(ready)
        if upper.fileno() not in ready:
            continue
        message = upper.receive()
        if isinstance(message, line.Started):
            started(message.process)
        elif not isinstance(message, line.Terminal):
            return message
        elif streams is not None:
            streams.attach(message.master)


@contextmanager
def _signals_forwarded(upper: line.Upper, streams: Console | Recorder | None) -> Iterator[None]:
    """Pass signals to the supervisor instead of obeying them; ignored ones stay ignored."""

    def forward(number: int, _: FrameType | None) -> None:
        if number == signal.SIGWINCH and streams is not None:
            streams.copy_size()
        else:
            upper.forward(number)

    previous = {}
    for number in line.FORWARDED:
        if signal.getsignal(number) is not signal.SIG_IGN:
            previous[number] = signal.signal(number, forward)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
