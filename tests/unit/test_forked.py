"""Work shared out among forked processes: every piece once, every failure said, nobody left."""

from __future__ import annotations

import errno
import os
import pickle
import signal
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from cisfs.errors import CisfsError, FormatError
from cisfs.layer.forked import share_out

Words = Iterator[tuple[int, int]]


def echo(pieces: Iterator[int]) -> Words:
    """Say which process took which piece."""
    for piece in pieces:
        yield os.getpid(), piece


def no_child_is_left() -> bool:
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return True
    return False


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    before = os.listdir("/proc/self/fd")
    yield
    assert no_child_is_left()
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("workers", [1, 2, 7])
@pytest.mark.parametrize("pieces", [0, 1, 2, 3000])
def test_each_piece_is_taken_once(workers: int, pieces: int) -> None:
    said = list(share_out(pieces, echo, workers))
    assert sorted(piece for _, piece in said) == list(range(pieces))
    processes = {pid for pid, _ in said}
    assert len(processes) <= min(workers, pieces)
    assert os.getpid() not in processes


def test_a_slow_process_does_not_hold_up_the_others() -> None:
    def work(pieces: Iterator[int]) -> Words:
        for piece in pieces:
            if piece == 0:
                time.sleep(0.3)
            yield os.getpid(), piece

    said = list(share_out(100, work, 2))
    slow = next(pid for pid, piece in said if piece == 0)
    assert sum(pid == slow for pid, _ in said) < 50


def test_by_default_there_is_a_process_for_each_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1, 5})

    def work(_pieces: Iterator[int]) -> Iterator[int]:
        yield os.getpid()

    assert len(set(share_out(100, work))) == 3
    with pytest.raises(ValueError, match="0 workers"):
        list(share_out(1, work, 0))


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "somewhere"),
        FormatError("said by a worker"),
        KeyError("any other"),
    ],
)
def test_what_is_raised_in_a_worker_is_raised_by_the_parent(error: Exception) -> None:
    def work(pieces: Iterator[int]) -> Words:
        for piece in pieces:
            if piece == 50:
                raise error
            yield 0, piece

    with pytest.raises(type(error)) as caught:
        list(share_out(100, work, 3))
    assert caught.value.args == error.args
    if isinstance(error, OSError):
        assert isinstance(caught.value, OSError)
        assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, "somewhere")
    assert "in a worker process" in caught.value.__notes__[0]
    assert "raise error" in caught.value.__notes__[0]


def test_what_cannot_be_pickled_is_said_in_words() -> None:
    class LocalError(Exception):
        pass

    def work(_pieces: Iterator[int]) -> Words:
        raise LocalError("reason")

    with pytest.raises(CisfsError, match=r"^LocalError: reason$"):
        list(share_out(1, work))
    with pytest.raises((AttributeError, pickle.PicklingError)):
        pickle.dumps(LocalError())


def test_too_little_memory_is_an_error_of_the_system() -> None:
    def work(_pieces: Iterator[int]) -> Words:
        raise MemoryError

    with pytest.raises(OSError, match="Cannot allocate memory") as caught:
        list(share_out(1, work))
    assert caught.value.errno == errno.ENOMEM


def test_a_killed_worker_is_noticed() -> None:
    def work(pieces: Iterator[int]) -> Words:
        for piece in pieces:
            if piece == 5:
                os.kill(os.getpid(), signal.SIGKILL)
            yield 0, piece

    with pytest.raises(
        CisfsError, match=r"^a worker process was killed by signal 9 \(Killed\); was"
    ):
        list(share_out(10, work, 2))


def test_a_worker_that_leaves_is_noticed() -> None:
    def work(_pieces: Iterator[int]) -> Words:
        os._exit(3)

    with pytest.raises(CisfsError, match=r"^a worker process ended with status 3$"):
        list(share_out(10, work, 2))


def forever(pieces: Iterator[int]) -> Words:
    for piece in pieces:
        yield os.getpid(), piece
        time.sleep(0.01)


@pytest.mark.parametrize("error", [KeyboardInterrupt, GeneratorExit, RuntimeError])
def test_when_the_parent_stops_the_workers_are_stopped(error: type[BaseException]) -> None:
    def use() -> None:
        with closing(share_out(1 << 40, forever, 3)) as words:
            for _, piece in words:
                if piece > 20:
                    raise error

    with pytest.raises(error):
        use()


def test_a_worker_that_is_busy_is_not_waited_for() -> None:
    def work(pieces: Iterator[int]) -> Words:
        for piece in pieces:
            if piece:
                time.sleep(60)
            yield 0, piece

    with closing(share_out(2, work, 2)) as words:
        begun = time.monotonic()
        assert next(words) == (0, 0)
    assert time.monotonic() - begun < 30


def test_an_interrupt_is_the_parents_to_handle() -> None:
    """A ^C is sent to the workers too: they leave the end to the parent."""

    def work(pieces: Iterator[int]) -> Words:
        os.kill(os.getpid(), signal.SIGINT)
        yield from echo(pieces)

    assert len(list(share_out(20, work, 2))) == 20


def test_a_parent_that_is_interrupted_from_outside_leaves_nobody() -> None:
    def interrupt(pieces: Iterator[int]) -> Words:
        for piece in pieces:
            if piece == 3:
                os.kill(os.getppid(), signal.SIGINT)
            yield 0, piece
            time.sleep(0.01)

    with pytest.raises(KeyboardInterrupt):
        list(share_out(1 << 40, interrupt, 2))


def test_workers_of_a_killed_parent_end() -> None:
    reading, writing = os.pipe()
    parent = os.fork()
    if parent == 0:
        try:
            os.close(reading)
            for pid, piece in share_out(1 << 40, forever, 2):
                if piece < 10:
                    os.write(writing, b"%d " % pid)
        finally:
            os._exit(1)
    os.close(writing)
    first = os.read(reading, 1000).split()
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    assert first
    with os.fdopen(reading, "rb") as rest:  # the workers hold its other end as long as they live
        rest.read()
