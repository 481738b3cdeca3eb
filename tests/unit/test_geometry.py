"""Geometry against a model that lays a file out byte by byte."""

from __future__ import annotations

import pytest

from cisfs.errors import FormatError
from cisfs.format.geometry import (
    EMPTY_SIZE,
    HEADER_SIZE,
    MAX_PLAIN_SIZE,
    MAX_UNIT_SIZE,
    MIN_UNIT_SIZE,
    Geometry,
    hole_blocks,
    hole_candidates,
    padded,
)

G = Geometry(4096)
EDGES = sorted(
    {
        max(0, units * 4096 + delta)
        for units in (0, 1, 2, 3, 7)
        for delta in (-4095, -33, -32, -31, -17, -16, -15, -1, 0, 1, 15, 16, 17, 31, 32, 33, 100)
    }
)


def laid_out(plain_size: int) -> tuple[list[tuple[int, int, int]], int, int]:
    """The model: [(slot offset, plain length, tag offset)], trailer offset, stored size."""
    slots, at, left = [], 32, plain_size
    while left:
        length = min(left, 4096)
        body = length
        while body % 16:
            body += 1
        slots.append((at, length, at + body))
        at += body + 16
        left -= length
    padding = sum(tag - start - length for start, length, tag in slots)
    return slots, at, at + 32 - padding


@pytest.mark.parametrize("size", EDGES)
def test_offsets_and_sizes_agree_with_the_model(size: int) -> None:
    slots, trailer, stored = laid_out(size)
    assert G.unit_count(size) == len(slots)
    assert G.trailer_offset(size) == trailer
    assert G.trailer_offset(size) + G.trailer_length(size) == stored == G.cipher_size(size)
    assert 17 <= G.trailer_length(size) <= 32
    for unit, (offset, length, tag) in enumerate(slots):
        assert G.slot_offset(unit) == offset
        assert G.unit_length(unit, size) == length
        assert offset + padded(length) == tag
        if length == 4096:
            assert G.tag_offset(unit) == tag
    assert G.unit_length(len(slots), size) == 0
    assert G.full_units(size) == sum(length == 4096 for _, length, _ in slots)


def test_every_plain_size_has_its_own_stored_size_and_all_others_are_refused() -> None:
    whole = {laid_out(plain)[2]: plain for plain in range(3 * 4096 + 50)}
    below = 0
    for stored in range(max(whole) + 1):
        if stored in whole:
            below = whole[stored]
            assert G.plain_size(stored) == below
        else:
            with pytest.raises(FormatError, match=f"^{stored} bytes cannot be a whole encrypted"):
                G.plain_size(stored)
        assert G.plain_size_below(stored) == below


@pytest.mark.parametrize("size", [2**32 - 1, 2**32, 2**32 + 4097, MAX_PLAIN_SIZE])
def test_large_sizes_round_trip_below_the_kernels_largest_offset(size: int) -> None:
    stored = G.cipher_size(size)
    assert stored < 2**63
    assert G.plain_size(stored) == G.plain_size_below(stored) == size


def test_plain_offsets_and_stored_offsets_name_the_same_unit() -> None:
    for unit in range(3):
        for within in (0, 1, 2048, 4095):
            offset = unit * 4096 + within
            assert (G.unit_at(offset), G.within_unit(offset)) == (unit, within)
        assert G.unit_start(unit) == unit * 4096
        start = G.slot_offset(unit)
        assert G.unit_at_stored(start) == G.unit_at_stored(start + G.slot_size - 1) == unit
    assert G.unit_at_stored(0) == G.unit_at_stored(HEADER_SIZE - 1) == 0


@pytest.mark.parametrize("size", [0, -4096, 1, 2048, 4095, 4097, 6144, 2 * MAX_UNIT_SIZE])
def test_other_unit_sizes_are_the_callers_mistake(size: int) -> None:
    with pytest.raises(ValueError, match="not a power of two from 4 KiB to 1 MiB"):
        Geometry(size)


def test_all_nine_unit_sizes_keep_the_size_rule() -> None:
    unit_size = MIN_UNIT_SIZE
    while unit_size <= MAX_UNIT_SIZE:
        geometry = Geometry(unit_size)
        for size in (0, 1, 15, 16, 17, unit_size - 1, unit_size, unit_size + 1):
            units = geometry.unit_count(size)
            assert geometry.cipher_size(size) == size + EMPTY_SIZE + 16 * units
            assert geometry.plain_size(geometry.cipher_size(size)) == size
        unit_size *= 2
    assert MAX_UNIT_SIZE == 4096 << 8


def test_hole_blocks_tile_the_range_aligned_and_as_few_as_can_be() -> None:
    for first in range(40):
        for end in range(first, 80):
            blocks = list(hole_blocks(first, end))
            at = first
            for start, level in blocks:
                assert start == at
                assert start % (1 << level) == 0
                at += 1 << level
            assert at == end or first == end
            assert len(blocks) <= 2 * max(1, (end - first).bit_length())


def test_a_marker_of_any_block_is_among_the_candidates_of_every_unit_in_it() -> None:
    for first in range(64):
        for level in range(7):
            if first % (1 << level) == 0:
                for unit in range(first, first + (1 << level)):
                    assert first in set(hole_candidates(unit))


def test_hole_candidates_are_few_and_nearest_first() -> None:
    assert list(hole_candidates(0)) == [0]
    assert list(hole_candidates(0b10110)) == [0b10110, 0b10100, 0b10000, 0]
    assert len(list(hole_candidates(2**62 - 1))) == 63
    assert len(list(hole_blocks(1, 2**62 - 1))) <= 124
