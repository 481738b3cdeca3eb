"""Tables, moments and sizes as commands print them."""

from __future__ import annotations

import time

import pytest

from cisfs.cli import table


def test_columns_are_as_wide_as_what_is_in_them() -> None:
    rows = [("LAYER", "STATE"), ("a-long-name", "x"), ("b", "locked")]
    assert table.lines(rows) == ["LAYER         STATE", "a-long-name   x", "b             locked"]


@pytest.mark.parametrize(
    ("count", "shown"),
    [
        (0, "0"),
        (1023, "1023"),
        (1024, "1.0K"),
        (10 << 30, "10.0G"),
        (1023 << 20, "1023M"),
        (1 << 40, "1.0T"),
        (5000 << 40, "5000T"),
    ],
)
def test_sizes_are_short(count: int, shown: str) -> None:
    assert table.size(count) == shown


def test_a_day_is_named_if_it_is_another() -> None:
    now = time.mktime((2026, 3, 4, 12, 0, 0, 0, 0, -1))
    with pytest.MonkeyPatch.context() as patch:
        today = time.localtime(now)
        real = time.localtime
        patch.setattr(time, "localtime", lambda *then: real(*then) if then else today)
        assert table.moment(now + 61) == "12:01:01"
        assert table.moment(now + 86_400) == "2026-03-05 12:00:00"
