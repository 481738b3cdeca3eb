"""When the time of unlocked layers is up for those who use them."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator

import pytest

from cisfs.crypto.keys import SecretKey
from cisfs.keys import keyring
from cisfs.runtime.deadline import GRACE, Deadline, TimeUp
from tests.unit.keyrings import private_ring

ONE, OTHER = "11" * 16, "22" * 16
KEY = SecretKey(bytes(range(32)))


class Clock:
    """Time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(time, "time", made)
    monkeypatch.setattr(time, "monotonic", made)
    return made


@pytest.fixture(autouse=True)
def ring() -> Iterator[None]:
    with private_ring():
        yield


def test_without_keys_there_is_nothing_to_wait_for(clock: Clock) -> None:
    assert Deadline([]).wait() is None
    assert Deadline([""]).wait() is None
    clock.now += 1e9
    assert not Deadline([]).is_over()


def test_only_what_was_unlocked_to_that_end_has_one(clock: Clock) -> None:
    keyring.store(ONE, KEY, 100)
    deadline = Deadline([ONE, OTHER])
    clock.now += 101
    assert not deadline.is_over()


def test_the_first_of_several_ends_counts(clock: Clock) -> None:
    keyring.store(ONE, KEY, 100, stops=True)
    keyring.store(OTHER, KEY, 5, stops=True)
    deadline = Deadline([ONE, OTHER])
    waited = deadline.wait()
    assert waited is not None
    assert 3 < waited <= 5
    assert not deadline.is_over()
    clock.now += 5
    assert deadline.is_over()
    assert deadline.wait() == 0


def test_terms_may_change_meanwhile(clock: Clock) -> None:
    keyring.store(ONE, KEY, 100)
    deadline = Deadline([ONE])
    keyring.store(ONE, KEY, 20, stops=True)
    waited = deadline.wait()
    assert waited is not None
    assert waited <= 10
    assert not deadline.is_over()
    keyring.store(ONE, KEY, 1000, stops=True)
    clock.now += 21
    assert not deadline.is_over()
    keyring.store(ONE, KEY, 100)
    assert not deadline.is_over()
    clock.now += 1001
    assert not deadline.is_over()
    keyring.store(ONE, KEY, 5, stops=True)
    assert not deadline.is_over()
    clock.now += 5
    assert deadline.is_over()


def test_a_key_that_is_locked_has_the_end_that_it_had(clock: Clock) -> None:
    keyring.store(ONE, KEY, 20, stops=True)
    deadline = Deadline([ONE])
    keyring.forget(ONE)
    assert not deadline.is_over()
    clock.now += 20
    assert deadline.is_over()


def test_who_does_not_end_when_asked_is_killed(clock: Clock) -> None:
    keyring.store(ONE, KEY, 20, stops=True)
    time_up = TimeUp([ONE], signal.SIGQUIT)
    assert time_up.due() is None
    clock.now += 20
    assert time_up.due() == signal.SIGQUIT
    assert time_up.due() is None
    assert time_up.wait() == GRACE
    clock.now += GRACE
    assert time_up.wait() == 0
    assert time_up.due() == signal.SIGKILL
    assert time_up.due() is None
    assert time_up.wait() == GRACE
