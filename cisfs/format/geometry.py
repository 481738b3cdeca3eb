"""Where everything lies in an encrypted file: all offset arithmetic of docs/FORMAT.md, section 3.

    header (32) | slot 0 | slot 1 | ... | last slot | trailer (17 to 32; 32 in an empty file)

A slot is a unit's ciphertext, padded to whole 16-byte blocks, and its 16-byte tag; all slots but
the last hold a full unit.  The trailer's length makes up for the padding, so that

    stored size = plain size + 64 + 16 * units

and stat(2) of a file is arithmetic on what the backing file system says.

Knows no I/O and no keys.  Pure functions of immutable values; safe anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NewType

from cisfs.errors import FormatError

UnitNo = NewType("UnitNo", int)
PlainOffset = NewType("PlainOffset", int)
CipherOffset = NewType("CipherOffset", int)

HEADER_SIZE = 32
TAG_SIZE = 16
BLOCK_SIZE = 16
END_SIZE = 32  # the trailer of an empty or block-aligned file
EMPTY_SIZE = HEADER_SIZE + END_SIZE
MIN_UNIT_SIZE = 4096
MAX_UNIT_SIZE = 1 << 20
MAX_PLAIN_SIZE = 1 << 62  # leaves room for tags below the kernel's largest offset, 2**63 - 1


def padded(length: int) -> int:
    """Round a length in bytes up to whole cipher blocks."""
    return (length + BLOCK_SIZE - 1) & -BLOCK_SIZE


@dataclass(frozen=True, slots=True)
class Geometry:
    """The arithmetic for one unit size, a power of two from 4 KiB to 1 MiB."""

    unit_size: int

    def __post_init__(self) -> None:
        size = self.unit_size
        if not MIN_UNIT_SIZE <= size <= MAX_UNIT_SIZE or size & (size - 1):
            raise ValueError(f"unit size {size} is not a power of two from 4 KiB to 1 MiB")

    @property
    def slot_size(self) -> int:
        """Bytes that a full unit and its tag take."""
        return self.unit_size + TAG_SIZE

    def unit_count(self, plain_size: int) -> int:
        """How many units a file of `plain_size` bytes has."""
        return -(-plain_size // self.unit_size)

    def full_units(self, plain_size: int) -> int:
        """How many of them are full, which is also the number of the unit at `plain_size`."""
        return plain_size // self.unit_size

    def unit_at(self, offset: int) -> UnitNo:
        """The unit that holds the plaintext byte at `offset`."""
        return UnitNo(offset // self.unit_size)

    def unit_after(self, offset: int) -> UnitNo:
        """The first unit that begins at `offset` or later."""
        return UnitNo(-(-offset // self.unit_size))

    def within_unit(self, offset: int) -> int:
        """How far into its unit the plaintext byte at `offset` lies."""
        return offset % self.unit_size

    def unit_start(self, unit: int) -> PlainOffset:
        """The plaintext offset of a unit's first byte."""
        return PlainOffset(unit * self.unit_size)

    def unit_length(self, unit: int, plain_size: int) -> int:
        """Plaintext bytes in a unit of a file of `plain_size` bytes; 0 past its end."""
        return max(0, min(self.unit_size, plain_size - unit * self.unit_size))

    def slot_offset(self, unit: int) -> CipherOffset:
        """Where a unit's slot begins in the stored file."""
        return CipherOffset(HEADER_SIZE + unit * (self.unit_size + TAG_SIZE))

    def unit_at_stored(self, offset: int) -> UnitNo:
        """The unit whose slot holds the stored byte at `offset`."""
        return UnitNo(max(0, offset - HEADER_SIZE) // self.slot_size)

    def tag_offset(self, unit: int) -> CipherOffset:
        """Where the tag of a full unit lies in the stored file."""
        return CipherOffset(self.slot_offset(unit) + self.unit_size)

    def trailer_offset(self, plain_size: int) -> CipherOffset:
        """Where the trailer of a file of `plain_size` bytes begins."""
        last = self.unit_count(plain_size) - 1
        if last < 0:
            return CipherOffset(HEADER_SIZE)
        length = plain_size - last * self.unit_size
        return CipherOffset(self.slot_offset(last) + padded(length) + TAG_SIZE)

    def trailer_length(self, plain_size: int) -> int:
        """Length of the trailer: 16 bytes of tag and as many zeros as the padding left over."""
        return END_SIZE - (-plain_size % BLOCK_SIZE)

    def cipher_size(self, plain_size: int) -> int:
        """Stored bytes of a file of `plain_size` bytes."""
        return plain_size + EMPTY_SIZE + TAG_SIZE * self.unit_count(plain_size)

    def plain_size(self, cipher_size: int) -> int:
        """Plaintext bytes of a file of `cipher_size` stored bytes.

        Raises FormatError for a size that no file has.
        """
        content = cipher_size - EMPTY_SIZE
        units = -(-content // self.slot_size)
        plain = content - TAG_SIZE * units
        if content < 0 or self.unit_count(plain) != units:
            raise FormatError(f"{cipher_size} bytes cannot be a whole encrypted file: truncated?")
        return plain

    def plain_size_below(self, cipher_size: int) -> int:
        """The largest plaintext size whose file has at most `cipher_size` bytes; 0 at least."""
        content = max(0, cipher_size - EMPTY_SIZE)
        whole, rest = divmod(content, self.slot_size)
        return whole * self.unit_size + max(0, rest - TAG_SIZE)


def hole_blocks(first: int, end: int) -> Iterator[tuple[UnitNo, int]]:
    """Split the units [first, end) into the fewest aligned blocks of 2**level units.

    Yields (first unit of the block, level) in ascending order: at most 2 * 62 of them.
    """
    while first < end:
        level = (end - first).bit_length() - 1
        if first:
            level = min(level, (first & -first).bit_length() - 1)
        yield UnitNo(first), level
        first += 1 << level


def hole_candidates(unit: int) -> Iterator[UnitNo]:
    """The units at which a marker of a hole that covers `unit` can stand, nearest first."""
    while unit:
        yield UnitNo(unit)
        unit &= unit - 1
    yield UnitNo(0)
