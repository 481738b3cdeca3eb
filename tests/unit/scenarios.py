"""Changes of one encrypted file, as a list to run through every kind of interruption.

Each scenario prepares a file, says what of it is promised (fsynced or there at opening), and makes
one change.  `Model` is what the file should hold.  Knows nothing of faults.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cisfs.layer.file import EncryptedFile
from tests.unit.vaults import UNIT

# ("write", offset, data), ("discard", offset, as many zeros) or ("truncate", size, b"")
Step = tuple[str, int, bytes]


@dataclass(frozen=True)
class Scenario:
    """A file made by `before`, then reopened, then changed by `change`."""

    name: str
    before: tuple[Step, ...]
    change: Step


def pattern(length: int, seed: int) -> bytes:
    """Bytes without zeros, in which every 16-byte block is another."""
    blocks = (b"%c%012d.xy" % (seed, number) for number in range(length // 16 + 1))
    return b"".join(blocks)[:length]


def write(offset: int, length: int, seed: int) -> Step:
    """A step that writes a pattern."""
    return ("write", offset, pattern(length, seed))


def truncate(size: int) -> Step:
    """A step that sets the size."""
    return ("truncate", size, b"")


def discard(offset: int, length: int) -> Step:
    """A step that makes zeros."""
    return ("discard", offset, bytes(length))


def apply(file: EncryptedFile, steps: Iterable[Step]) -> None:
    """Make the changes to an encrypted file."""
    for what, number, data in steps:
        if what == "write":
            file.write(number, data)
        elif what == "discard":
            file.discard(number, len(data))
        else:
            file.truncate(number)


def model(steps: Iterable[Step]) -> bytes:
    """What a file holds after these steps."""
    held = bytearray()
    for what, number, data in steps:
        if what in ("write", "discard"):
            held.extend(bytes(max(0, number - len(held))))
            held[number : number + len(data)] = data
        else:
            del held[number:]
            held.extend(bytes(number - len(held)))
    return bytes(held)


FULL3 = (write(0, 3 * UNIT, 65),)
PART = (write(0, 2 * UNIT + 1000, 65),)
SPARSE = (truncate(8 * UNIT + 100),)
ISLAND = (truncate(8 * UNIT), write(3 * UNIT, UNIT, 65), write(8 * UNIT, 50, 66))

SCENARIOS = [
    Scenario("overwrite one unit", FULL3, write(UNIT, UNIT, 97)),
    Scenario("overwrite part of a unit", FULL3, write(UNIT + 100, 500, 97)),
    Scenario("overwrite over three units", FULL3, write(500, 2 * UNIT + 100, 97)),
    Scenario("overwrite the last part unit", PART, write(2 * UNIT + 10, 100, 97)),
    Scenario("overwrite and append", PART, write(UNIT + 10, 3 * UNIT, 97)),
    Scenario("append within the unit", PART, write(2 * UNIT + 1000, 16, 97)),
    Scenario("append one byte", PART, write(2 * UNIT + 1000, 1, 97)),
    Scenario("append up to the unit's end", PART, write(2 * UNIT + 1000, UNIT - 1000, 97)),
    Scenario("append to a whole unit", FULL3, write(3 * UNIT, 100, 97)),
    Scenario("append units to a whole unit", FULL3, write(3 * UNIT, 2 * UNIT, 97)),
    Scenario("append units to a part", PART, write(2 * UNIT + 1000, 3 * UNIT, 97)),
    Scenario("write past the end", PART, write(6 * UNIT + 7, 100, 97)),
    Scenario("first write", (), write(0, 100, 97)),
    Scenario("first write of units", (), write(0, 2 * UNIT, 97)),
    Scenario("cut within a unit", FULL3, truncate(UNIT + 100)),
    Scenario("cut within the last part", PART, truncate(2 * UNIT + 3)),
    Scenario("cut at a unit", FULL3, truncate(UNIT)),
    Scenario("cut near a unit's end", FULL3, truncate(2 * UNIT - 5)),
    Scenario("cut to nothing", FULL3, truncate(0)),
    Scenario("cut a hole", SPARSE, truncate(5 * UNIT)),
    Scenario("cut within a hole's unit", SPARSE, truncate(5 * UNIT + 9)),
    Scenario("grow within the unit", PART, truncate(2 * UNIT + 2000)),
    Scenario("grow to a part", PART, truncate(6 * UNIT + 100)),
    Scenario("grow a whole file", FULL3, truncate(7 * UNIT)),
    Scenario("grow an empty file", (), truncate(7 * UNIT + 1)),
    Scenario("grow a hole", SPARSE, truncate(12 * UNIT + 100)),
    Scenario("fill the hole's start", SPARSE, write(0, UNIT, 97)),
    Scenario("fill the hole's middle", SPARSE, write(3 * UNIT + 5, 2 * UNIT, 97)),
    Scenario("fill the hole's end", SPARSE, write(7 * UNIT, UNIT + 10, 97)),
    Scenario("write one byte into a hole", SPARSE, write(5 * UNIT + 77, 1, 97)),
    Scenario("discard a unit", FULL3, discard(UNIT, UNIT)),
    Scenario("discard all", FULL3, discard(0, 3 * UNIT)),
    Scenario("discard a unit and parts of its neighbours", FULL3, discard(100, 2 * UNIT)),
    Scenario("discard part of a unit", FULL3, discard(UNIT + 100, 500)),
    Scenario("discard the last part", PART, discard(UNIT, UNIT + 1000)),
    Scenario("discard an island and the holes beside it", ISLAND, discard(2 * UNIT, 3 * UNIT)),
    Scenario("overwrite an island and the holes beside it", ISLAND, write(2 * UNIT, 3 * UNIT, 97)),
]
