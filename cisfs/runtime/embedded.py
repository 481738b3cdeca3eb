"""The life of one `cisfs run` as its user sees it: start the supervisor, pass signals, clean up.

Stays in the user's session and namespaces and mounts nothing.  Does not know what happens inside.
Single-threaded; signal handlers only write to the line.
"""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import TYPE_CHECKING

from cisfs.errors import EngineError
from cisfs.mount import syscalls
from cisfs.runtime import line, workspace
from cisfs.runtime.console import Console
from cisfs.runtime.request import Outcome, Request
from cisfs.runtime.supervisor import supervise

if TYPE_CHECKING:
    from cisfs.layer.opening import Layer


def run(request: Request, layers: list[Layer]) -> Outcome:
    """Run the container over `layers` (open, read-only; closed on return); return how it ended.

    Raises EngineError when it could not be started, OSError when /run cannot be written.
    """
    syscalls.keep_memory_private()  # keys were read here, and Python cannot erase them all
    with ExitStack() as undo:
        for layer in layers:
            undo.callback(layer.close)
        workspace.sweep()
        upper, lower = line.line()
        undo.callback(upper.close)
        console = undo.enter_context(Console()) if request.terminal else None
        undo.enter_context(_signals_forwarded(upper, console))
        place = workspace.claim()
        undo.callback(os.close, place.lock)
        undo.callback(place.remove)
        supervisor = _fork(request, layers, place, upper, lower)
        undo.callback(os.waitpid, supervisor, 0)
        undo.callback(upper.close)  # first of all: without a listener the supervisor ends
        outcome = _attend(upper, console)
    if outcome is None:
        raise EngineError("the container's supervisor was killed, and the container with it")
    return outcome


def _fork(
    request: Request,
    layers: list[Layer],
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
        supervise(request, layers, place, lower)
    lower.close()
    return pid


def _attend(upper: line.Upper, console: Console | None) -> Outcome | None:
    """Serve the terminal until the supervisor reports; None when it died without a report."""
    while True:
        sources = console.sources() if console is not None else []
        ready, _, _ = select.select([upper.fileno(), *sources], [], [])
        if console is not None:
            console.transfer(ready)
        if upper.fileno() in ready:
            message = upper.receive()
            if isinstance(message, line.Terminal) and console is not None:
                console.attach(message.master)
            elif not isinstance(message, line.Terminal):
                return message


@contextmanager
def _signals_forwarded(upper: line.Upper, console: Console | None) -> Iterator[None]:
    """Pass signals to the supervisor instead of obeying them; ignored ones stay ignored."""

    def forward(number: int, _: FrameType | None) -> None:
        if number == signal.SIGWINCH and console is not None:
            console.copy_size()
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
