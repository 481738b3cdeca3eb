"""Sparse members of GNU tars: what says where the holes are, and content that has them.

The old format, in header blocks, and the pax formats 0.0, 0.1 and 1.0 (GNU tar manual, "Storing
Sparse Files").  Does not know names or archives.  Content is safe in forked processes.
"""

from __future__ import annotations

from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from itertools import accumulate

from cisfs.build.index import Content
from cisfs.build.pax import Records, parse_number
from cisfs.errors import FormatError

Segments = list[tuple[int, int]]  # (offset in the file, length) of what is stored, in this order

BLOCK = 512
_LIMIT = 1 << 62  # beyond any file; leaves room for sums in 64 bits
_PAIR = 24
_OLD_MAP, _OLD_MAP_END, _OLD_SIZE_END = 386, 482, 495
_MORE_MAP_END = 504


class SparseContent:
    """Stored segments with zeros between them."""

    __slots__ = ("_lengths", "_places", "_starts", "_stored")

    def __init__(self, segments: Segments, stored: Content) -> None:
        self._starts = array("Q", (start for start, _ in segments))
        self._lengths = array("Q", (length for _, length in segments))
        self._places = array("Q", accumulate(self._lengths, initial=0))
        self._stored = stored

    def read(self, offset: int, size: int) -> bytearray:
        """See `Content`."""
        content = bytearray(size)
        for index in range(max(0, bisect_right(self._starts, offset) - 1), len(self._starts)):
            start = self._starts[index]
            if start >= offset + size:
                break
            first, end = max(offset, start), min(offset + size, start + self._lengths[index])
            if first < end:
                place = self._places[index] + first - start
                content[first - offset : end - offset] = self._stored.read(place, end - first)
        return content


def check(segments: Segments, size: int, stored: int) -> None:
    """Raise FormatError unless the segments fit a file of `size` bytes, and what is stored."""
    end = 0
    for start, length in segments:
        if start < end or start + length > size:
            raise FormatError("the map of a sparse file is not in order")
        end = start + length
    if sum(length for _, length in segments) != stored:
        raise FormatError("the map of a sparse file does not fit what is stored of it")


def old_map(header: bytes, read_block: Callable[[], bytes]) -> tuple[Segments, int]:
    """Return the segments and the size of a member of type S.  Raises FormatError."""
    segments = list(_old_pairs(header[_OLD_MAP:_OLD_MAP_END]))
    size = _old_number(header[_OLD_MAP_END + 1 : _OLD_SIZE_END])
    more = header[_OLD_MAP_END]
    while more:
        block = read_block()
        segments += _old_pairs(block[:_MORE_MAP_END])
        more = block[_MORE_MAP_END]
    return segments, size


def pax_map(records: Records) -> tuple[Segments, int] | None:
    """Return the segments and the size that pax records of format 0.0 or 0.1 tell, or None."""
    last = dict(records)
    if b"GNU.sparse.size" not in last:
        return None
    size = _number(last[b"GNU.sparse.size"])
    if b"GNU.sparse.map" in last:
        text = last[b"GNU.sparse.map"]
        return _paired(map(_number, text.split(b",") if text else ())), size
    offsets = [value for keyword, value in records if keyword == b"GNU.sparse.offset"]
    lengths = [value for keyword, value in records if keyword == b"GNU.sparse.numbytes"]
    if len(offsets) != len(lengths):
        raise FormatError("the map of a sparse file is incomplete")
    return list(zip(map(_number, offsets), map(_number, lengths), strict=True)), size


def leading_map(read_block: Callable[[], bytes]) -> Segments:
    """Return the segments told by the blocks before the content (pax format 1.0)."""

    def lines() -> Iterator[bytes]:
        rest = b""
        while len(rest) < BLOCK:
            *whole, rest = (rest + read_block()).split(b"\n")
            yield from whole
        yield rest  # no number is that long

    numbers = map(_number, lines())
    count = next(numbers)
    return [(next(numbers), next(numbers)) for _ in range(count)]


def _paired(numbers: Iterable[int]) -> Segments:
    each = list(numbers)
    if len(each) % 2:
        raise FormatError("the map of a sparse file is incomplete")
    return list(zip(each[::2], each[1::2], strict=True))


def _number(text: bytes) -> int:
    return _limited(parse_number(text, "a number in the map of a sparse file"))


def _old_pairs(data: bytes) -> Iterator[tuple[int, int]]:
    for at in range(0, len(data), _PAIR):
        pair = data[at : at + _PAIR]
        if not pair[12]:
            return
        yield _old_number(pair[:12]), _old_number(pair[12:])


def _old_number(field: bytes) -> int:
    """A number of a header: octal digits, or big-endian after a byte 0x80."""
    if field[0] == 0x80:
        return _limited(int.from_bytes(field[1:], "big"))
    try:
        return _limited(int(field.strip(b" \0") or b"0", 8))
    except ValueError:
        raise FormatError("a number in the map of a sparse file is malformed") from None


def _limited(number: int) -> int:
    if not 0 <= number <= _LIMIT:
        raise FormatError("a number in the map of a sparse file is out of range")
    return number
