"""Messages between workers and fetchers."""

from __future__ import annotations

import pytest

from cisfs.errors import FormatError
from cisfs.format.wants import MAX_SIZE, MAX_UNITS, Want, pack_here, parse_here


@pytest.mark.parametrize("want", [Want(1, range(1)), Want(1 << 64 - 1, range(5, 90), True)])
def test_wants_round_trip(want: Want) -> None:
    data = want.pack()
    assert len(data) == MAX_SIZE
    assert Want.parse(data, 90) == want


@pytest.mark.parametrize("units", [range(5, 91), range(90, 91), range(0), range(MAX_UNITS + 1)])
def test_units_that_are_none(units: range) -> None:
    count = 90 if len(units) <= 90 else 1 << 20
    with pytest.raises(FormatError, match="units"):
        Want.parse(Want(1, units).pack(), count)


@pytest.mark.parametrize("data", [b"", b"x", bytes(MAX_SIZE - 1), bytes(MAX_SIZE + 1)])
def test_messages_that_are_none(data: bytes) -> None:
    with pytest.raises(FormatError, match="message"):
        Want.parse(data, 90)
    with pytest.raises(FormatError, match="message"):
        parse_here(data)


def test_answers_round_trip() -> None:
    assert parse_here(pack_here(1 << 63)) == 1 << 63
