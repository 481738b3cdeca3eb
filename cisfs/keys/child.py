"""Asking another program: bytes to its standard input, an answer from its standard output.

For key providers, and for what of ours must not share a process with the rest.  The child gets
three pipes and no other descriptor, and a session of its own, so that it is ended with whatever it
started and cannot ask at the terminal.  Time, answer and complaint are bounded.

Does not know what is asked.  Any number of threads at once; each child is reaped before returning.
"""

from __future__ import annotations

import os
import re
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import IO

from cisfs.errors import CisfsError
from cisfs.keys import memory

MAX_ANSWER = 1 << 20  # bytes
_MAX_COMPLAINT = 1 << 16  # bytes of standard error that are kept, the last ones
_MAX_LINE = 300  # characters of it that are quoted
_CHUNK = 1 << 16

# A key in base64 or hexadecimal has 43 characters or more.  Words and most paths have no digit.
_SECRET_LIKE = re.compile(r"(?=[A-Za-z+/=_-]*[0-9])[A-Za-z0-9+/=_-]{40,}")


@dataclass(frozen=True, slots=True)
class Ended:
    """How a child ended: its exit status (negative: the signal), answer and last complaint."""

    status: int
    answer: bytes = field(repr=False)
    complaint: str

    def why(self) -> str:
        """Say in words why it failed: its own if it had any."""
        if self.complaint:
            return self.complaint
        if self.status < 0:
            return f"ended by signal {-self.status}"
        return f"exit status {self.status}"


def ask(
    what: str,
    words: Sequence[str],
    request: bytes,
    timeout: float,
    environment: Mapping[str, str] | None = None,
) -> Ended:
    """Run the program `words`, write `request` to it and return how it ended, within `timeout` s.

    Raises CisfsError, which begins with `what`, if it cannot be started, does not end in time or
    answers more than 1 MiB; by then it and its process group are gone.
    """
    deadline = time.monotonic() + timeout
    try:
        child = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
            env=environment,
        )
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise CisfsError(f"{what}: cannot run {words[0]}: {reason}") from None
    memory.forbid_cores(child.pid)  # before it has anything of ours
    with child:
        try:
            answer, complaint = _converse(child, request, deadline)
            status = _end(child, deadline)
        except BaseException as error:
            # Not reaped yet, so the number is still that of its group and of nobody else's.
            if child.returncode is None:
                os.killpg(child.pid, signal.SIGKILL)
            if isinstance(error, TimeoutError):
                raise CisfsError(f"{what}: no answer within {timeout:g} s") from None
            if isinstance(error, OverflowError):
                raise CisfsError(f"{what}: the answer has more than {MAX_ANSWER} bytes") from None
            raise
    return Ended(status, answer, _last_line(complaint))


def _converse(
    child: subprocess.Popen[bytes], request: bytes, deadline: float
) -> tuple[bytes, bytes]:
    """Write the request while reading both outputs to their ends."""
    stdin, stdout, stderr = _pipes(child)
    answer, complaint = bytearray(), bytearray()
    unsent = memoryview(request)
    with selectors.DefaultSelector() as selector:
        for stream, event in (
            (stdin, selectors.EVENT_WRITE),
            (stdout, selectors.EVENT_READ),
            (stderr, selectors.EVENT_READ),
        ):
            os.set_blocking(stream.fileno(), False)
            selector.register(stream, event)
        while selector.get_map():
            for key, _ in selector.select(_left(deadline)):
                if key.fileobj is stdin:
                    unsent = _send(stdin, unsent)
                    done = not unsent
                elif key.fileobj is stdout:
                    done = _receive(stdout, answer)
                    if len(answer) > MAX_ANSWER:
                        raise OverflowError
                else:
                    done = _receive(stderr, complaint)
                    del complaint[:-_MAX_COMPLAINT]
                if done:
                    selector.unregister(key.fileobj)
                    if key.fileobj is stdin:
                        stdin.close()
    return bytes(answer), bytes(complaint)


def _pipes(child: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes], IO[bytes]]:
    if child.stdin is None or child.stdout is None or child.stderr is None:
        raise ValueError("a child without three pipes")
    return child.stdin, child.stdout, child.stderr


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _send(stream: IO[bytes], unsent: memoryview) -> memoryview:
    """Write what fits; returns the rest, nothing if the child does not want to know."""
    try:
        return unsent[os.write(stream.fileno(), unsent[:_CHUNK]) :]
    except BrokenPipeError:
        return unsent[:0]


def _receive(stream: IO[bytes], into: bytearray) -> bool:
    """Read what is there; tells whether it was the end."""
    chunk = os.read(stream.fileno(), _CHUNK)
    into += chunk
    return not chunk


def _end(child: subprocess.Popen[bytes], deadline: float) -> int:
    with suppress(subprocess.TimeoutExpired):
        return child.wait(timeout=_left(deadline))
    raise TimeoutError


def _last_line(complaint: bytes) -> str:
    """Return the last line that says something, fit to be shown, without what may be a key."""
    lines = complaint.decode("utf-8", "replace").splitlines()
    said = next((line.strip() for line in reversed(lines) if line.strip()), "")
    shown = "".join(each if each.isprintable() else " " for each in said)
    # Cut last: half a key would not look like one.
    return _SECRET_LIKE.sub("[...]", shown)[:_MAX_LINE]
