"""What the workers of a mount and the fetcher of a layer say to each other, as bytes.

A message is a datagram: a worker names units that it needs, the fetcher says when they are here.
Knows no sockets.  Pure functions of immutable values; safe anywhere.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from cisfs.errors import FormatError

_WANT = struct.Struct("=QQII")  # number, first unit, units, doubtful
_HERE = struct.Struct("=Q")  # number
MAX_UNITS = 1 << 16
MAX_SIZE = _WANT.size


class Want(NamedTuple):
    """Units that are needed; `number` comes back in the answer.

    `doubtful`: they seem to be here, and are not what they should be.
    """

    number: int
    units: range
    doubtful: bool = False

    def pack(self) -> bytes:
        """Return the message."""
        return _WANT.pack(self.number, self.units.start, len(self.units), self.doubtful)

    @classmethod
    def parse(cls, data: bytes, unit_count: int) -> Want:
        """Read a message about a layer of `unit_count` units; FormatError for what is none."""
        if len(data) != _WANT.size:
            raise FormatError(f"a message of {len(data)} bytes")
        number, first, count, doubtful = _WANT.unpack(data)
        if not 0 < count <= MAX_UNITS or first + count > unit_count or doubtful > 1:
            raise FormatError(f"units {first} and {count} more, of {unit_count}")
        return cls(number, range(first, first + count), bool(doubtful))


def pack_here(number: int) -> bytes:
    """Return the message that says that the units of want `number` are here."""
    return _HERE.pack(number)


def parse_here(data: bytes) -> int:
    """Return the number of the want that was met; FormatError for what is no such message."""
    if len(data) != _HERE.size:
        raise FormatError(f"a message of {len(data)} bytes")
    (number,) = _HERE.unpack(data)
    return int(number)
