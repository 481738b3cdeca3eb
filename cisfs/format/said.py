"""What strangers have written, as it may be shown: it changes nothing on a terminal or in a log.

Names in layers, key slots, configurations and answers of registries are of anybody's choice, and
may have control characters, or what no output can encode.  Knows none of them.  Pure functions;
safe anywhere.
"""

from __future__ import annotations

MAX_SAID = 200  # characters of a stranger's words that a message repeats


def printable(said: str) -> str:
    """Return the text, as long as it was, with a question mark for what is no visible letter."""
    return "".join(letter if letter.isprintable() else "?" for letter in said)


def repeatable(said: str) -> str:
    """Return a stranger's words as a message may repeat them: short, and nothing but letters."""
    plain = "".join(c if c.isprintable() else " " for c in said[: 4 * MAX_SAID])
    plain = " ".join(plain.split())
    return plain if len(plain) <= MAX_SAID else f"{plain[: MAX_SAID - 3]}..."
