"""An ephemeral scratch image against a bytearray, under any sequence of changes."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cisfs.format.scratch_geometry import BLOCK_SIZE, MAX_UNIT_SIZE
from cisfs.layer.scratch import EphemeralImage
from tests.unit import vaults

SIZE = 5 * MAX_UNIT_SIZE
BLOCKS = SIZE // BLOCK_SIZE
ALIGNED = st.integers(0, BLOCKS).map(lambda block: block * BLOCK_SIZE)
EDGES = sorted(
    {
        at * BLOCK_SIZE + delta
        for at in (0, 1, 2, 4, 8, 15, 16, 17, 24, 32, 48, 79, 80)
        for delta in (-17, -1, 0, 1, 16, 100)
        if 0 <= at * BLOCK_SIZE + delta <= SIZE
    }
)
OFFSETS = st.one_of(ALIGNED, ALIGNED, st.sampled_from(EDGES), st.integers(0, SIZE))


class ScratchMachine(RuleBasedStateMachine):
    """The image is `image`, what it should hold `model`."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory(prefix="cisfs-test-", dir=vaults.memory())
        self.image = EphemeralImage(Path(self.directory.name), SIZE)
        self.model = bytearray(SIZE)
        self.written = 0

    def teardown(self) -> None:
        self.image.close()
        self.directory.cleanup()

    @rule(one=OFFSETS, other=OFFSETS)
    def write(self, one: int, other: int) -> None:
        self.written += 1
        start, end = sorted((one, other))
        data = (b"%d." % self.written * (end - start))[: end - start]
        self.image.write(start, memoryview(data))
        self.model[start:end] = data

    @rule(one=OFFSETS, other=OFFSETS)
    def discard(self, one: int, other: int) -> None:
        start, end = sorted((one, other))
        self.image.discard(start, end - start)
        self.model[start:end] = bytes(end - start)

    @rule(block=st.integers(0, BLOCKS - 1), count=st.integers(1, 6))
    def discard_blocks(self, block: int, count: int) -> None:
        self.discard(block * BLOCK_SIZE, min(SIZE, (block + count) * BLOCK_SIZE))

    @rule()
    def tidy(self) -> None:
        while self.image.tidy():
            pass

    @rule(one=OFFSETS, other=OFFSETS)
    def read(self, one: int, other: int) -> None:
        start, end = sorted((one, other))
        assert vaults.same(self.image.read(start, end - start), self.model[start:end])

    @invariant()
    def all_is_as_written(self) -> None:
        assert vaults.same(self.image.read(0, SIZE), self.model)

    @invariant()
    def units_do_not_overlap(self) -> None:
        at = 0
        for unit, version, _, _ in self.image._records.written(0, BLOCKS):
            assert unit.block >= at
            assert 0 < version <= self.image._version
            at = unit.end
        assert at <= BLOCKS


TestScratchMachine = ScratchMachine.TestCase
TestScratchMachine.settings = settings(max_examples=60, stateful_step_count=25)
