"""Which chunks of a sparse file are stored, and the map of them."""

from __future__ import annotations

import struct
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cisfs.format.erofs_chunks import WORTHWHILE, Chunks, chunks

CHUNK = 65536
MIB = 1 << 20


@pytest.mark.parametrize(
    ("extents", "runs"),
    [
        ([], ()),
        ([(0, 1)], ((0, 1),)),
        ([(CHUNK - 1, 2)], ((0, 2),)),
        ([(CHUNK - 1, 1), (CHUNK, 1)], ((0, 2),)),
        ([(1, 1), (3, 1), (CHUNK * 3, CHUNK)], ((0, 1), (3, 4))),
        ([(5, 0), (MIB - 1, 1)], ((15, 16),)),
    ],
)
def test_chunks_with_data_are_stored(
    extents: list[tuple[int, int]], runs: tuple[tuple[int, int], ...]
) -> None:
    assert chunks(MIB, extents) == Chunks(MIB, 16, runs)


@pytest.mark.parametrize(
    ("size", "extents"),
    [
        (0, []),
        (WORTHWHILE - 1, []),
        (MIB, [(0, MIB)]),
        (MIB, [(0, MIB - WORTHWHILE + 1)]),
        (MIB, [(at, 1) for at in range(0, MIB, CHUNK)]),
    ],
)
def test_what_gains_nothing_is_stored_as_any_other_file(
    size: int, extents: list[tuple[int, int]]
) -> None:
    assert chunks(size, extents) is None


@pytest.mark.parametrize(
    ("size", "bits"), [(1 << 32, 16), ((1 << 32) + 1, 17), (1 << 40, 24), (1 << 44, 28)]
)
def test_a_map_has_a_limit(size: int, bits: int) -> None:
    found = chunks(size, [(size - 1, 1)])
    assert found is not None
    assert (found.bits, found.place) == (bits, bits - 12)
    assert found.map_size <= 1 << 18
    assert list(found.pieces()) == [(size - 1 & -(1 << bits), (size - 1) % (1 << bits) + 1)]


def test_a_map_has_the_first_block_of_each_chunk() -> None:
    made = Chunks(5 * CHUNK + 1, 16, ((0, 1), (3, 6)))
    packed = made.pack_map([4096 * 7, 4096 * 100])
    hole = 0xFFFFFFFF
    assert struct.unpack("<6I", packed) == (7, hole, hole, 100, 116, 132)
    assert len(packed) == made.map_size


@given(
    st.integers(1, 4 * MIB),
    st.lists(st.tuples(st.integers(0, 200_000), st.integers(0, 200_000)), max_size=20),
)
def test_all_data_is_in_what_is_stored(size: int, steps: list[tuple[int, int]]) -> None:
    extents, at = [], 0
    for gap, length in steps:
        start = at + gap
        at = min(start + length, size)
        if start < at:
            extents.append((start, at - start))
    found = chunks(size, extents)
    if found is None:
        return
    pieces = list(found.pieces())
    assert size - sum(length for _, length in pieces) >= WORTHWHILE
    for start, length in extents:
        assert any(at <= start and start + length <= at + long for at, long in pieces)
    assert all(a + b < c for (a, b), (c, _) in pairwise(pieces))
