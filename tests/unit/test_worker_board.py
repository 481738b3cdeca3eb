"""What workers say of themselves, in memory that outlives them."""

from __future__ import annotations

import os
import signal
import time

import pytest

from cisfs.mount.board import ASIDE, Board


def test_at_first_nobody_is_busy() -> None:
    board = Board(3)
    assert [board.in_hand(index) for index in range(3)] == [0, 0, 0]
    assert [board.busy_for(index) for index in range(3)] == [0.0, 0.0, 0.0]


def test_a_request_is_in_hand_until_rest() -> None:
    board = Board(3)
    seat = board.seat(1)
    seat.take(1 << 63 | 12)
    assert board.in_hand(1) == 1 << 63 | 12
    assert board.busy_for(1) > 0
    assert [board.in_hand(index) for index in (0, 2)] == [0, 0]
    seat.rest()
    assert board.in_hand(1) == 0
    assert board.busy_for(1) == 0.0


def test_the_time_runs_for_each_request_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    board = Board(1)
    seat = board.seat(0)
    now = time.monotonic_ns()
    monkeypatch.setattr(time, "monotonic_ns", lambda: now)
    seat.take(7)
    monkeypatch.setattr(time, "monotonic_ns", lambda: now + 2_500_000_000)
    assert board.busy_for(0) == 2.5
    seat.take(8)
    assert board.busy_for(0) == 0.0


def test_the_last_word_of_a_killed_worker_stands() -> None:
    board = Board(2)
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            board.seat(1).take(99)
            os.write(writing, b"x")
            signal.pause()
        finally:
            os._exit(1)
    os.read(reading, 1)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    for end in (reading, writing):
        os.close(end)
    assert board.in_hand(1) == 99
    assert board.busy_for(1) > 0


def test_who_takes_a_seat_finds_it_empty() -> None:
    board = Board(2)
    board.seat(1).take(99)
    board.seat(0)
    assert board.in_hand(1) == 99
    board.seat(1)
    assert board.in_hand(1) == 0
    assert board.busy_for(1) == 0.0


def test_what_is_put_aside_is_told_until_it_is_taken_up() -> None:
    board = Board(3)
    seat = board.seat(1)
    seat.put_aside(0, 77)
    seat.put_aside(ASIDE - 1, 1 << 63 | 78)
    seat.take(5)
    seat.rest()
    assert board.aside(1) == [77, 1 << 63 | 78]
    assert (board.aside(0), board.aside(2)) == ([], [])
    seat.take_up(0)
    assert board.aside(1) == [1 << 63 | 78]
    board.seat(1)
    assert board.aside(1) == []
