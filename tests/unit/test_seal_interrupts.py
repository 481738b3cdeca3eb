"""Signals during a seal: raised once, and put off where something is being made."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator

import pytest

from cisfs.build import interrupts
from cisfs.build.interrupts import Interrupted, held, raised


@pytest.fixture(autouse=True)
def handlers_are_put_back() -> Iterator[None]:
    before = [signal.getsignal(number) for number in interrupts.ENDING]
    yield
    assert [signal.getsignal(number) for number in interrupts.ENDING] == before


def send(number: int) -> None:
    os.kill(os.getpid(), number)


def interruption(work: Callable[[], None]) -> int:
    """Do some work; return the signal that interrupted it, 0 if none did."""
    try:
        with raised():
            work()
    except Interrupted as caught:
        return caught.number
    return 0


@pytest.mark.parametrize("number", interrupts.ENDING)
def test_a_signal_is_raised_where_it_arrives(number: int) -> None:
    done = []

    def work() -> None:
        send(number)
        done.append("after it")

    assert interruption(work) == number
    assert not done


def test_nothing_handles_it_as_an_error() -> None:
    assert not issubclass(Interrupted, Exception)


def test_the_second_does_not_disturb_the_undoing() -> None:
    undone = []

    def work() -> None:
        try:
            send(signal.SIGTERM)
        finally:
            send(signal.SIGINT)
            with held():
                send(signal.SIGTERM)
            undone.append("all")

    assert interruption(work) == signal.SIGTERM
    assert undone == ["all"]


def test_one_that_is_put_off_is_raised_at_the_end() -> None:
    made = []

    def work() -> None:
        with held():
            with held():
                send(signal.SIGHUP)
                made.append("inner")
            made.append("outer")
        made.append("too much")

    assert interruption(work) == signal.SIGHUP
    assert made == ["inner", "outer"]


def test_what_fails_while_one_is_put_off_is_not_hidden() -> None:
    def work() -> None:
        with held():
            send(signal.SIGTERM)
            raise ValueError("why")

    with pytest.raises(ValueError, match="why"):
        interruption(work)


def test_what_is_done_is_not_interrupted() -> None:
    def work() -> None:
        interrupts.settle()
        send(signal.SIGTERM)

    assert interruption(work) == 0


def test_each_block_begins_anew() -> None:
    for _ in range(2):
        assert interruption(lambda: send(signal.SIGTERM)) == signal.SIGTERM
    with held():
        pass


def test_what_is_ignored_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert interruption(lambda: send(signal.SIGHUP)) == 0
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_fork_that_has_no_handlers_of_its_own_yet_just_ends() -> None:
    with raised():
        pid = os.fork()
        if pid == 0:
            try:
                send(signal.SIGTERM)
            finally:
                os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 128 + signal.SIGTERM
