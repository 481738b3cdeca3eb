"""Trying something out where it can leave nothing behind, and for so long only.

It happens in a forked process that is the first of its own PID namespace, alone in its own mount
namespace, with a tmpfs over /run to work in.  When it ends, or is killed because its time is up,
the kernel takes everything with it that it started and mounted.  Does not know what is tried.
Needs root.  Forks, so it is for processes with one thread.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from cisfs.errors import CisfsError
from cisfs.mount import process, syscalls

PLACE = Path("/run/probe")  # in the probe's own /run
PATIENCE = 30.0  # seconds

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
_LONGEST = 1 << 16
_DONE = b"+"
_REFUSED = b"-"


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of it: what the probe returned, or why it did not."""

    worked: bool
    said: str


def attempt(probe: Callable[[Path], str], patience: float = PATIENCE) -> Answer:
    """Call `probe` with an empty directory in isolation, for `patience` seconds at most.

    What it raises is in the answer.  Raises OSError when no process can be had.
    """
    receive, send = os.pipe()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        os.close(receive)
        _isolate(probe, send, parent)
    os.close(send)
    try:
        answer = _answer(receive, patience)
    finally:
        os.close(receive)
        os.kill(pid, signal.SIGTERM)
        os.waitpid(pid, 0)  # by then nothing is left of the probe
    said = answer[1:].decode(errors="replace")
    return Answer(answer[:1] == _DONE, said if answer else "the probe was killed")


def _answer(receive: int, patience: float) -> bytes:
    ready, _, _ = select.select([receive], [], [], patience)
    if not ready:
        return _REFUSED + b"no answer after %d seconds" % patience
    return os.read(receive, _LONGEST)


def _isolate(probe: Callable[[Path], str], send: int, parent: int) -> NoReturn:
    """Be the process in between: it sees the probe off, and hears no keyboard."""
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        process.end_with_parent(parent)
        syscalls.unshare(syscalls.CLONE_NEWPID)
        pid = os.fork()
        if pid == 0:
            # Seen from a new PID namespace, the parent has no number.
            process.end_with_parent(0, signal.SIGKILL)
            _answer_with(probe, send)
        os.close(send)
        signal.sigwait((signal.SIGTERM,))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except OSError as error:
        _tell(send, _REFUSED + str(error.strerror).encode())
    finally:
        os._exit(0)


def _answer_with(probe: Callable[[Path], str], send: int) -> NoReturn:
    """Be the first process of the namespace: try, and tell."""
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        _settle()
        _tell(send, _DONE + probe(PLACE).encode())
    except CisfsError as error:
        _tell(send, _REFUSED + str(error).encode())
    except OSError as error:
        where = f"{os.fsdecode(error.filename)}: " if error.filename else ""
        _tell(send, _REFUSED + f"{where}{error.strerror or error}".encode())
    except BaseException as error:  # noqa: BLE001 - must not unwind into the parent's frames
        _tell(send, _REFUSED + f"{type(error).__name__}: {error}".encode())
    finally:
        os._exit(0)


def _settle() -> None:
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):  # servers log to standard error
        os.dup2(null, standard)
    syscalls.leave_mounts()
    syscalls.mount("proc", "/proc", "proc")
    syscalls.mount("cisfs", str(PLACE.parent), "tmpfs", options="mode=0755")
    PLACE.mkdir()
    os.chdir(PLACE)


def _tell(send: int, answer: bytes) -> None:
    with contextlib.suppress(BrokenPipeError):
        os.write(send, answer[:_LONGEST])
