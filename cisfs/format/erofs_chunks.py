"""Sparse files in an EROFS image: which of their chunks are stored, and the map that says where.

A file of this layout is cut into chunks of one size.  Behind its inode and xattrs is the address of
each chunk's first block, or a word for a hole.  Only files that gain by it are stored so.

Source: the kernel's fs/erofs/erofs_fs.h (struct erofs_inode_chunk_info, Linux 5.15).  Does not know
where holes come from.  Pure functions and values; safe anywhere.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from cisfs.format.erofs import BLOCK_SIZE, block_at

Extents = Sequence[tuple[int, int]]  # (offset, length) of data in a file: in order, and apart

CHUNK_BASED = 4  # the layout, beside FLAT_PLAIN and FLAT_INLINE
WORTHWHILE = 256 * 1024  # bytes of holes; with less a file is stored as if it had none

_BLOCK_BITS = BLOCK_SIZE.bit_length() - 1
_LEAST_BITS = 16  # the kernel looks every chunk up, and reads none together with the next
_MOST_BITS = 16  # of the number of chunks: the map is in memory while an image is made
_ADDRESS_SIZE = 4


class Chunks(NamedTuple):
    """The chunks of a file of `size` bytes, of 2**`bits` bytes each.

    `runs` are those that are stored: (the first, that after the last), in order, and apart.
    """

    size: int
    bits: int
    runs: tuple[tuple[int, int], ...]

    @property
    def number(self) -> int:
        """How many chunks there are, holes among them; the last one may be cut off."""
        return (self.size - 1 >> self.bits) + 1

    @property
    def map_size(self) -> int:
        """How many bytes `pack_map` returns."""
        return self.number * _ADDRESS_SIZE

    @property
    def place(self) -> int:
        """What stands in the inode where others have the address of their first block."""
        return self.bits - _BLOCK_BITS

    def pieces(self) -> Iterator[tuple[int, int]]:
        """Yield offset and length, in the file, of each run."""
        for first, end in self.runs:
            start = first << self.bits
            yield start, min(end << self.bits, self.size) - start

    def pack_map(self, starts: Sequence[int]) -> bytes:
        """Return the map; `starts` are the offsets in the image at which the runs lie."""
        addresses = array("I", b"\xff" * self.map_size)  # all ones: a hole
        for (first, end), start in zip(self.runs, starts, strict=True):
            for chunk in range(first, end):
                addresses[chunk] = block_at(start + (chunk - first << self.bits))
        return b"".join(address.to_bytes(_ADDRESS_SIZE, "little") for address in addresses)


def chunks(size: int, extents: Extents) -> Chunks | None:
    """Return how to store a file with data at `extents` and holes elsewhere.

    None: as any other, because its holes are too small.
    """
    if size - sum(length for _, length in extents) < WORTHWHILE:
        return None
    bits = max(_LEAST_BITS, (size - 1).bit_length() - _MOST_BITS)
    runs: list[tuple[int, int]] = []
    for start, length in extents:
        if length:
            first, end = start >> bits, (start + length - 1 >> bits) + 1
            if runs and first <= runs[-1][1]:
                first = runs.pop()[0]
            runs.append((first, end))
    found = Chunks(size, bits, tuple(runs))
    return found if size - sum(length for _, length in found.pieces()) >= WORTHWHILE else None
