"""The geometry of sealed layers against a model that lays one out piece by piece."""

from __future__ import annotations

import pytest

from cisfs.format.geometry import MAX_UNIT_SIZE, MIN_UNIT_SIZE
from cisfs.format.sealed_geometry import (
    FANOUT,
    HEADER_SIZE,
    MAX_IMAGE_SIZE,
    RESERVED_OFFSET,
    RESERVED_SIZE,
    SECOND_SLOTS_OFFSET,
    SLOTS_OFFSET,
    SLOTS_SIZE,
    TREE_BLOCK_SIZE,
    UNITS_OFFSET,
    LayerGeometry,
    whole_blocks,
)

COUNTS = sorted(
    {
        max(1, units + delta)
        for units in (1, 2, FANOUT, 2 * FANOUT, FANOUT**2, FANOUT**2 + FANOUT)
        for delta in (-1, 0, 1)
    }
)


def laid_out(units: int) -> list[list[range]]:
    """The model: for each level the units below each of its blocks."""
    level = [range(each, each + 1) for each in range(units)]
    levels: list[list[range]] = []
    while not levels or len(level) > 1:
        level = [
            range(group[0].start, group[-1].stop)
            for group in (level[at : at + 128] for at in range(0, len(level), 128))
        ]
        levels.append(level)
    return levels


def test_the_regions_are_where_the_format_says() -> None:
    assert (HEADER_SIZE, SLOTS_OFFSET, SLOTS_SIZE) == (4096, 4096, 61440)
    assert SECOND_SLOTS_OFFSET == 65536
    assert (RESERVED_OFFSET, RESERVED_SIZE, UNITS_OFFSET) == (126976, 4096, 131072)
    assert FANOUT == 128


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("short", [0, 4096])
def test_tree_and_sizes_agree_with_the_model(count: int, short: int) -> None:
    geometry = LayerGeometry(8192, count * 8192 - short)
    levels = laid_out(count)
    assert geometry.unit_count == count
    assert geometry.level_blocks == tuple(len(level) for level in levels)
    assert geometry.tree_offset == 131072 + geometry.image_size
    assert geometry.block_count == sum(map(len, levels))
    assert geometry.stored_size == geometry.tree_offset + 4096 * sum(map(len, levels))
    block = 0
    for level in levels:
        for index, below in enumerate(level):
            assert geometry.units_below(block) == below
            assert geometry.block_offset(block) == geometry.tree_offset + 4096 * block
            above = block - index + len(level) + index // 128
            place = None if len(level) == 1 else (above, index % 128 * 32)
            assert geometry.hash_of_block(block) == place
            block += 1


def test_the_hash_of_each_unit_has_a_place_of_its_own() -> None:
    geometry = LayerGeometry(4096, 300 * 4096)
    for unit in range(300):
        block, at = geometry.hash_of_unit(unit)
        assert unit in geometry.units_below(block)
        assert geometry.hash_offset(unit) == block * 4096 + at == unit * 32


def test_units_and_image_offsets() -> None:
    size = 5 * 8192 - 4096
    geometry = LayerGeometry(8192, size)
    of_byte = [at // 8192 for at in range(size)]
    edges = sorted({min(size - 1, max(0, 8192 * at + by)) for at in range(6) for by in (-1, 0, 1)})
    for first in edges:
        unit = of_byte[first]
        assert geometry.within_unit(first) == first - of_byte.index(unit)
        assert geometry.stored_offset(first) == 131072 + first
        for last in edges:
            if first <= last:
                units = geometry.units_of(first, last - first + 1)
                assert list(units) == sorted(set(of_byte[first : last + 1]))
    for unit in range(5):
        assert geometry.unit_start(unit) == of_byte.index(unit)
        assert geometry.unit_length(unit) == of_byte.count(unit)
        assert geometry.unit_end(unit) == of_byte.index(unit) + of_byte.count(unit)
        assert geometry.unit_offset(unit) == 131072 + geometry.unit_start(unit)


@pytest.mark.parametrize("unit_size", [MIN_UNIT_SIZE, 65536, MAX_UNIT_SIZE])
def test_the_largest_image_lies_below_the_kernels_largest_offset(unit_size: int) -> None:
    geometry = LayerGeometry(unit_size, MAX_IMAGE_SIZE)
    assert geometry.stored_size < 2**63
    assert geometry.units_below(geometry.block_count - 1) == range(MAX_IMAGE_SIZE // unit_size)


@pytest.mark.parametrize("size", [-4096, 0, 1, 4095, 4097, MAX_IMAGE_SIZE + 4096])
def test_other_image_sizes_are_the_callers_mistake(size: int) -> None:
    with pytest.raises(ValueError, match=f"^image size {size} is not a multiple of 4096 from"):
        LayerGeometry(4096, size)


@pytest.mark.parametrize("size", [0, 2048, 5000, 2 << 20])
def test_other_unit_sizes_are_the_callers_mistake(size: int) -> None:
    with pytest.raises(ValueError, match=f"^unit size {size} is not a power of two"):
        LayerGeometry(size, 4096)


def test_lengths_are_rounded_up_to_blocks() -> None:
    sizes = [whole_blocks(length) for length in (0, 1, TREE_BLOCK_SIZE, TREE_BLOCK_SIZE + 1)]
    assert sizes == [0, 4096, 4096, 8192]
