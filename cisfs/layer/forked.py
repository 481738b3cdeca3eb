"""Work in pieces, shared out among forked processes, because AES-XTS holds the GIL.

Knows nothing of the work.  Each process takes the next piece that nobody has taken, and what it
says comes to the parent through a pipe of its own.  No process outlives the call: the parent kills
and reaps what is left when it goes, and a worker whose parent is gone ends with its next word.
"""

from __future__ import annotations

import errno
import os
import signal
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, Pipe, wait
from typing import Any, NoReturn, TypeVar

from cisfs.errors import CisfsError
from cisfs.keys import memory

Word = TypeVar("Word")
Work = Callable[[Iterator[int]], Iterable[Word]]

# Held back while a fork is under way: an exception of theirs must not lose a process, nor unwind
# the parent's frames in the child.
_SIGNALS = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP})


def share_out(
    pieces: int, work: Work[Word], workers: int | None = None
) -> Generator[Word, None, None]:
    """Call `work` in `workers` processes (default: one for each CPU we may use); yield its words.

    Each call gets an iterator over pieces from 0 to `pieces` - 1, of which every one is given out
    once; what it yields, anything that can be pickled, comes out in the order of arrival.  An
    exception in a worker is raised here, OSError with its errno; CisfsError if one was killed.
    Close the iterator to stop early.
    """
    if workers is None:
        workers = len(os.sched_getaffinity(0))
    if workers < 1:
        raise ValueError(f"{workers} workers")
    crew: list[_Worker] = []
    counter = os.eventfd(1, os.EFD_CLOEXEC)
    try:
        for _ in range(min(workers, pieces)):
            _hire(crew, work, counter, pieces)
        yield from _words(crew)
    finally:
        os.close(counter)
        for worker in crew:
            worker.dismiss()


@dataclass
class _Worker:
    pid: int
    ear: Connection
    reaped: bool = False

    def check(self) -> None:
        """Wait for the end of a worker that says no more; CisfsError if it was not its own."""
        _, status = os.waitpid(self.pid, 0)
        self.reaped = True
        code = os.waitstatus_to_exitcode(status)
        if code < 0:
            raise CisfsError(
                f"a worker process was killed by signal {-code} ({signal.strsignal(-code)}); "
                "was there too little memory?"
            )
        if code:
            raise CisfsError(f"a worker process ended with status {code}")

    def dismiss(self) -> None:
        """Stop it, if it is still there."""
        self.ear.close()
        if not self.reaped:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


def _words(crew: list[_Worker]) -> Iterator[Any]:
    talking: dict[object, _Worker] = {worker.ear: worker for worker in crew}
    while talking:
        for ear in wait([worker.ear for worker in talking.values()]):
            try:
                word = talking[ear].ear.recv()
            except (EOFError, OSError):  # ended, orderly or in the middle of a word
                talking.pop(ear).check()
                continue
            if isinstance(word, BaseException):
                raise word
            yield word


def _hire(crew: list[_Worker], work: Work[Word], counter: int, pieces: int) -> None:
    """Fork one more worker into the crew."""
    ear, mouth = Pipe(duplex=False)
    held = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        pid = os.fork()
        if pid == 0:
            others = [ear, *(worker.ear for worker in crew)]
            _live(lambda: work(_taken(counter, pieces)), mouth, others, held)
        crew.append(_Worker(pid, ear))
    finally:
        mouth.close()
        signal.pthread_sigmask(signal.SIG_SETMASK, held)


def _taken(counter: int, pieces: int) -> Iterator[int]:
    """Take pieces as long as there are any.

    The eventfd holds the number of the next piece, plus one: to read it takes it away, so the
    others wait until it is put back.  Whoever dies in between is noticed by the parent, which ends
    the others.
    """
    while True:
        piece = os.eventfd_read(counter) - 1
        os.eventfd_write(counter, min(piece + 1, pieces) + 1)
        if piece >= pieces:
            return
        yield piece


def _live(
    work: Callable[[], Iterable[object]],
    mouth: Connection,
    others: Iterable[Connection],
    held: Iterable[int],
) -> NoReturn:
    """The life of a worker; nothing of the parent's runs here again."""
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a ^C reaches the parent too, which kills us
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
        for other in others:
            other.close()
        memory.lock()  # a fork's is not
        for word in work():
            mouth.send(word)
        code = 0
    except MemoryError:
        _say(mouth, OSError(errno.ENOMEM, os.strerror(errno.ENOMEM)))
    except BaseException as error:  # noqa: BLE001 - whatever it was is raised by the parent
        error.add_note(f"in a worker process:\n{traceback.format_exc()}")
        _say(mouth, error)
    finally:
        os._exit(code)


def _say(mouth: Connection, error: BaseException) -> None:
    with suppress(OSError):  # the parent is gone
        try:
            mouth.send(error)
        except Exception:  # noqa: BLE001 - what cannot be pickled is refused in several ways
            mouth.send(CisfsError(f"{type(error).__name__}: {error}"))
