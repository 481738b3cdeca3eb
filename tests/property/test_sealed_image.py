"""A sealed image against the bytes that were sealed, under any sequence of reads."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit import layers, vaults
from tests.unit.vaults import same

BLOCK = 4096
# Around whole units of each size, and where the tree gets a second and a third block.
BLOCKS = st.one_of(
    st.sampled_from([1, 2, 3, 4, 5, 15, 16, 17, 127, 128, 129, 256, 257]), st.integers(1, 300)
)
UNIT_SIZES = st.sampled_from([1 << log2 for log2 in (12, 13, 16, 20)])


@settings(max_examples=20)
@given(data=st.data(), blocks=BLOCKS, unit_size=UNIT_SIZES, kept=st.integers(0, 3))
def test_every_read_gives_what_was_sealed(
    data: st.DataObject, blocks: int, unit_size: int, kept: int
) -> None:
    size = blocks * BLOCK
    image = layers.image(size, seed=blocks)
    edges = {at * unit_size + by for at in range(3) for by in (-1, 0, 1, BLOCK)} | {size - 1, size}
    offsets = st.one_of(st.sampled_from(sorted(edges)), st.integers(0, size))
    offsets = offsets.filter(lambda offset: offset >= 0)
    lengths = st.one_of(
        st.sampled_from([0, 1, BLOCK, unit_size - 1, unit_size, unit_size + 1, size, size + 1]),
        st.integers(0, size),
    )
    with tempfile.TemporaryDirectory(prefix="cisfs-test-", dir=vaults.memory()) as directory:
        path = Path(directory) / "layer.cis"
        layers.seal(path, image, unit_size=unit_size)
        with layers.opened(path) as layer:
            reader = layer.reader(kept_units=kept)
            for offset, length in data.draw(st.lists(st.tuples(offsets, lengths), max_size=15)):
                assert same(reader.read(offset, length), image[offset : offset + length])
            assert same(reader.read(0, size + 1), image)
