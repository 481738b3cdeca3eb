"""How commands show what they list: columns, moments, sizes.

Pure functions over text and numbers.  Knows no command.  Safe anywhere.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

NOTHING = "-"  # in a cell that would be empty
_UNITS = "KMGT"


def lines(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table; the first row is its head."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    padded = (
        "   ".join(text.ljust(width) for text, width in zip(row, widths, strict=True))
        for row in rows
    )
    return [line.rstrip() for line in padded]


def moment(seconds: float) -> str:
    """Return a moment, given in seconds since 1970, in local time; the day only if not today."""
    then = time.localtime(seconds)
    today = then[:3] == time.localtime()[:3]
    return time.strftime("%H:%M:%S" if today else "%Y-%m-%d %H:%M:%S", then)


def size(count: int) -> str:
    """Return a number of bytes in at most five characters: 512, 10.0K, 9.8G."""
    if count < 1 << 10:
        return str(count)
    shift = min((count.bit_length() - 1) // 10, len(_UNITS))
    value = count / (1 << 10 * shift)
    return f"{value:.1f}{_UNITS[shift - 1]}" if value < 100 else f"{value:.0f}{_UNITS[shift - 1]}"
