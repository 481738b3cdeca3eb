"""What a container prints, on its way to the user and to the log."""

from __future__ import annotations

import fcntl
import os
import pty
import time
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from cisfs.runtime import console, terminal
from cisfs.runtime.console import Console
from cisfs.runtime.output import Log, Recorder


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    yield ends
    for end in ends:
        os.close(end)


def is_open(descriptor: int) -> bool:
    try:
        fcntl.fcntl(descriptor, fcntl.F_GETFD)
    except OSError:
        return False
    return True


def test_nothing_now_is_not_the_end(pipe: tuple[int, int]) -> None:
    os.set_blocking(pipe[0], False)
    assert terminal.read(pipe[0], 10) is None
    os.write(pipe[1], b"text")
    assert terminal.read(pipe[0], 10) == b"text"


def test_a_terminal_that_was_hung_up_is_at_its_end() -> None:
    master, slave = pty.openpty()
    os.close(slave)
    assert terminal.read(master, 10) == b""
    os.close(master)


def test_what_is_read_slowly_is_written_all_the_same(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    os.set_blocking(pipe[1], False)
    data = os.urandom(1 << 18)  # four times what a pipe takes
    got = bytearray()

    def waited(*_wanted: object) -> None:
        got.extend(os.read(pipe[0], 1 << 16))

    monkeypatch.setattr(terminal, "select", SimpleNamespace(select=waited))
    terminal.write(pipe[1], data)
    waited()
    assert got == data


def test_nobody_reads_what_is_written() -> None:
    receive, send = os.pipe()
    os.close(receive)
    terminal.write(send, b"dropped")
    os.close(send)


def test_a_recorder_takes_what_is_under_way_and_keeps_no_terminal(pipe: tuple[int, int]) -> None:
    os.set_blocking(pipe[0], False)
    log = Log()
    ended, alive = pty.openpty(), pty.openpty()
    with Recorder(log, pipe[0]) as recorder:
        recorder.attach(ended[0])
        recorder.attach(alive[0])
        os.write(pipe[1], b"one ")
        recorder.transfer([pipe[0]])
        os.close(ended[1])
        recorder.transfer([ended[0]])
        assert recorder.sources() == [pipe[0], alive[0]]
        os.write(alive[1], b"two")
    assert log.text() == b"one two"
    assert [is_open(each) for each in (pipe[0], ended[0], alive[0])] == [True, False, False]
    for descriptor in (alive[1], *log.parts):
        os.close(descriptor)


def test_a_console_ends_in_time_though_somebody_keeps_the_terminal_open(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also when the time is up between two looks at the clock."""
    master, slave = pty.openpty()
    clock = SimpleNamespace(monotonic=iter([0.0, 0.9999, 1.0001, 1.0002]).__next__)
    monkeypatch.setattr(console, "time", clock)
    with Console() as shown:
        monkeypatch.setattr(shown, "_master", master)
    assert not is_open(master)
    os.close(slave)


def test_a_console_shows_what_is_left(
    monkeypatch: pytest.MonkeyPatch, pipe: tuple[int, int]
) -> None:
    master, slave = pty.openpty()
    monkeypatch.setattr(console, "_STDOUT", pipe[1])
    began = time.monotonic()
    with Console() as shown:
        monkeypatch.setattr(shown, "_master", master)
        os.write(slave, b"last words")
        os.close(slave)
    assert os.read(pipe[0], 100) == b"last words"
    assert time.monotonic() - began < console._DRAIN_TIME
