"""Journal header and records: round trips, refusals, and nothing that a stranger can write."""

from __future__ import annotations

import pytest

from cisfs.errors import FormatError, UnsupportedVersionError
from cisfs.format import journal as form
from cisfs.format.journal import Record

KEY = b"k" * 32
JOURNAL, BOOT = b"j" * 16, b"b" * 16
RECORD = Record(b"f" * 16, 2**62, 5, 0, 2**40)
HEADER = form.pack_header(JOURNAL, BOOT)
PACKED = form.pack_record(KEY, JOURNAL, RECORD)


def test_the_header_round_trips() -> None:
    assert len(HEADER) == form.HEADER_SIZE
    assert form.parse_header(HEADER) == (JOURNAL, BOOT)
    assert form.FILE_SIZE == 32 * 1024


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        (HEADER[:-1], FormatError, "journal truncated to 63 bytes"),
        (b"X" + HEADER[1:], FormatError, "journal damaged: bad header"),
        (HEADER[:10] + b"\1" + HEADER[11:], FormatError, "journal damaged: bad header"),
        (HEADER[:-1] + b"\1", FormatError, "journal damaged: bad header"),
        (HEADER[:8] + b"\2" + HEADER[9:], UnsupportedVersionError, "journal has version 2"),
    ],
)
def test_bad_headers_are_refused(data: bytes, error: type[FormatError], words: str) -> None:
    with pytest.raises(FormatError, match=f"^{words}") as caught:
        form.parse_header(data)
    assert type(caught.value) is error


def test_records_round_trip() -> None:
    assert len(PACKED) == form.RECORD_SIZE
    assert form.parse_record(KEY, JOURNAL, PACKED) == RECORD


def test_a_record_altered_in_any_bit_says_nothing() -> None:
    for bit in range(form.RECORD_SIZE * 8):
        altered = bytearray(PACKED)
        altered[bit // 8] ^= 1 << bit % 8
        assert form.parse_record(KEY, JOURNAL, bytes(altered)) is None


def test_a_record_of_another_journal_or_key_says_nothing() -> None:
    assert form.parse_record(KEY, BOOT, PACKED) is None
    assert form.parse_record(b"x" * 32, JOURNAL, PACKED) is None
    assert form.parse_record(KEY, JOURNAL, form.FREE) is None
    assert form.parse_record(KEY, JOURNAL, PACKED[:-1]) is None
