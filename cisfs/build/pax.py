"""Pax extended headers (POSIX.1-2017, pax, "pax Extended Header"): bytes in, values out.

Does not know archives or entries; pure functions, safe anywhere.  `tarfile` has its own reader of
these, which does not do for archives from anywhere: it makes floats of times and zeros of sizes
that it cannot read, and in Python 3.11 takes quadratic time on purpose-made ones (CVE-2024-6232).
"""

from __future__ import annotations

import re

from cisfs.errors import FormatError

_NUMBER = re.compile(rb"[0-9]{1,20}")
_TIME = re.compile(rb"(-?)([0-9]{1,20})(?:\.([0-9]*))?")
_LENGTH_DIGITS = 20
_SECOND = 1_000_000_000

Records = list[tuple[bytes, bytes]]


def parse_records(data: bytes) -> Records:
    """Return (keyword, value) of each record, in order.  Raises FormatError."""
    records = []
    at = 0
    while at < len(data):
        space = data.find(b" ", at, at + _LENGTH_DIGITS)
        length = parse_number(data[at:space] if space > 0 else b"", "the length of a pax record")
        record = data[space + 1 : at + length]
        keyword, equals, value = record[:-1].partition(b"=")
        if at + length > len(data) or not keyword or not equals or record[-1:] != b"\n":
            raise FormatError("a pax record is malformed")
        records.append((keyword, value))
        at += length
    return records


def parse_number(text: bytes, what: str) -> int:
    """Return a number written in decimal digits.  Raises FormatError, naming `what`."""
    if not _NUMBER.fullmatch(text):
        raise FormatError(f"{what} is not a number")
    return int(text)


def parse_time(text: bytes) -> int:
    """Return a time in ns since the epoch; digits beyond ns are cut off.  Raises FormatError."""
    match = _TIME.fullmatch(text)
    if match is None:
        raise FormatError("a time in a pax record is malformed")
    sign, seconds, fraction = match.groups()
    ns = int(seconds) * _SECOND + int((fraction or b"")[:9].ljust(9, b"0"))
    return -ns if sign else ns
