"""Logs: what fails again and again is not said as often, and no file grows for ever."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import pytest

from cisfs.mount import logs


def record(text: str, *words: object) -> logging.LogRecord:
    return logging.LogRecord("cisfs", logging.ERROR, "", 0, text, words, None)


def test_a_text_passes_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    repeats = logs.Repeats()
    assert repeats.filter(record("unit %d was altered", 1))
    assert not repeats.filter(record("unit %d was altered", 1))
    assert repeats.filter(record("unit %d was altered", 2))
    now = 59.0
    assert not repeats.filter(record("unit %d was altered", 2))
    now = 61.0
    assert repeats.filter(record("unit %d was altered", 1))


def test_what_was_said_is_not_remembered_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_MOST_REMEMBERED", 3)
    repeats = logs.Repeats()
    assert all(repeats.filter(record("%d", number)) for number in range(10))
    assert len(repeats._said) <= 3


def test_a_file_is_added_to_up_to_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "FILE_LIMIT", 1000)
    path = tmp_path / "log"
    path.write_text("earlier " * 1000)
    handlers = [logs.LimitedFile(path) for _ in range(2)]
    for number in range(1000):
        for handler in handlers:
            handler.emit(record("line %d", number))
    for handler in handlers:
        handler.stream.close()
    added = path.read_text().removeprefix("earlier " * 1000)
    assert added.startswith("line 0\nline 0\nline 1\n")
    assert len(added) < 1200
    assert added.count("the log is full") == 2


def test_a_new_file_is_for_its_owner_only(tmp_path: Path) -> None:
    logs.LimitedFile(tmp_path / "log").stream.close()
    assert (tmp_path / "log").stat().st_mode & 0o777 == 0o600


def test_a_name_makes_no_line_of_its_own() -> None:
    formatter = logs.OneLine("cisfs: %(message)s")
    said = formatter.format(record("%s: altered", "a\nroot: all is well\x1b[2J"))
    assert said == "cisfs: a?root: all is well?[2J: altered"
    try:
        raise ValueError("wrong")
    except ValueError as error:
        failed = record("failed")
        failed.exc_info = (ValueError, error, error.__traceback__)
    assert len(formatter.format(failed).splitlines()) > 2
