"""The line that says how far a seal is."""

from __future__ import annotations

import os
import pty
import select
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TextIO

import pytest

from cisfs.build.progress import Progress, line

MIB = 1 << 20


@dataclass
class Terminal:
    """A terminal of 80 columns: `stream` writes to it, `shown` reads what came."""

    stream: TextIO
    master: int

    def shown(self) -> str:
        shown = b""
        while select.select([self.master], [], [], 0)[0]:
            shown += os.read(self.master, 4096)
        return shown.decode()


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Terminal]:
    master, slave = pty.openpty()
    monkeypatch.setattr(
        "os.get_terminal_size", lambda fd: os.terminal_size((80, 24)) if fd == slave else None
    )
    with os.fdopen(slave, "w") as stream:
        yield Terminal(stream, master)
    os.close(master)


@pytest.mark.parametrize(
    ("done", "total", "words"),
    [
        (0, 0, "reading ..."),
        (3 * MIB, 0, "reading 3 MiB"),
        (0, 2048 * MIB, "reading     [........................]   0%  0 of 2,048 MiB"),
        (1024 * MIB, 2048 * MIB, "reading     [############............]  50%  1,024 of 2,048 MiB"),
        (2048 * MIB, 2048 * MIB, "reading     [########################] 100%  2,048 of 2,048 MiB"),
        (4096 * MIB, 2048 * MIB, "reading     [########################] 100%  4,096 of 2,048 MiB"),
    ],
)
def test_the_words(done: int, total: int, words: str) -> None:
    assert line("reading", done, total) == words


def test_a_line_is_drawn_over_and_over_and_taken_away(terminal: Terminal) -> None:
    shown = Progress(terminal.stream)
    shown.begin("compressing", 2 * MIB)
    assert terminal.shown().endswith("0 of 2 MiB\x1b[K\r")
    shown.end()
    assert terminal.shown() == "\x1b[K\r"


def test_not_more_often_than_anybody_can_read(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    shown = Progress(terminal.stream)
    shown.begin("encrypting", 100 * MIB)
    for done in range(19):
        shown.update(done * MIB)
        now += 0.025
    shown.update(100 * MIB)
    drawn = [each.split()[-4] for each in terminal.shown().split("\x1b[K\r") if each]
    assert drawn == ["0", "4", "8", "12", "16", "100"]


def test_a_line_is_not_wider_than_the_terminal(
    terminal: Terminal, monkeypatch: pytest.MonkeyPatch
) -> None:
    for columns, width in ((20, 19), (0, 79)):
        size = os.terminal_size((columns, 24))
        monkeypatch.setattr("os.get_terminal_size", lambda _fd, size=size: size)
        Progress(terminal.stream).begin("encrypting" * 10, MIB)
        assert terminal.shown() == ("encrypting" * 10)[:width] + "\x1b[K\r"


def test_without_a_terminal_nothing_is_said(capfd: pytest.CaptureFixture[str]) -> None:
    shown = Progress(None)
    shown.begin("reading")
    shown.update(1)
    shown.end()
    assert capfd.readouterr() == ("", "")


def test_a_terminal_that_goes_away_is_nobodys_problem() -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream:
        os.close(reading)
        shown = Progress(stream)
        shown.begin("reading")
        shown.end()
