"""What a container's writable layer is to be: the kinds of scratch, and how they are spelled.

Does not know how one is made or mounted.  Pure; safe anywhere.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

from cisfs.errors import UsageError

DEFAULT_SIZE = 10 << 30  # bytes, at most; the image is sparse
_LEAST = 16 << 20  # ext4 has no use for less
_MOST = 1 << 40  # what an image may ask for: making its file system takes memory, 70 MiB at this
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_SIZE = re.compile(r"([1-9][0-9]{0,14})([KMGT]?)", re.IGNORECASE)
_FACTORS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


class Kind(Enum):
    """Where writes go."""

    EPHEMERAL = "ephemeral"  # to disk, under a key that only memory has
    PERSISTENT = "persistent"  # to disk, to be found again under a name
    MEMORY = "memory"
    NONE = "none"  # nowhere: the root is read-only


@dataclass(frozen=True, slots=True)
class Scratch:
    """One scratch: `name` for a persistent one, `size` the limit in bytes, None where not said."""

    kind: Kind = Kind.EPHEMERAL
    name: str = ""
    size: int | None = None

    def __str__(self) -> str:
        """Return the spelling."""
        name = f":{self.name}" if self.name else ""
        return f"{self.kind.value}{name}" + (f",size={self.size}" if self.size else "")


def is_name(text: str) -> bool:
    """Tell whether a persistent scratch can have this name."""
    return _NAME.fullmatch(text) is not None


def parse(text: str) -> Scratch:
    """Read KIND[:NAME][,size=SIZE].  Raises UsageError, with what can be written."""
    first, _, option = text.partition(",")
    word, colon, name = first.partition(":")
    try:
        kind = Kind(word)
    except ValueError:
        raise _refused(text, f"{word!r} is no kind of scratch") from None
    if (kind is Kind.PERSISTENT) != bool(colon):
        raise _refused(text, "a persistent scratch has a name, and no other has")
    if colon and not is_name(name):
        raise _refused(text, f"{name!r} is no name: letters, digits, dots, dashes, underscores")
    size = _size(text, option) if option else None
    if size is not None and kind is Kind.NONE:
        raise _refused(text, "what is not there has no size")
    return Scratch(kind, name, size)


def _size(text: str, option: str) -> int:
    key, _, value = option.partition("=")
    match = _SIZE.fullmatch(value)
    if key != "size" or match is None:
        raise _refused(text, f"{option!r} is not size=SIZE, as in size=10G")
    size = int(match[1]) * _FACTORS[match[2].upper()]
    if not _LEAST <= size <= _MOST:
        raise _refused(text, "a size is from 16M to 1T")
    return size & -4096


def _refused(text: str, why: str) -> UsageError:
    return UsageError(
        f"scratch {text!r}: {why}; write ephemeral, persistent:NAME, memory or none, "
        "the first three with ,size=SIZE if you like"
    )
