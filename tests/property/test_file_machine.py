"""An encrypted file against a bytearray, under any sequence of reads, writes and cuts."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from cisfs.layer.file import EncryptedFile
from cisfs.layer.vault import Vault
from tests.unit import vaults
from tests.unit.vaults import KEY, UNIT

EDGES = sorted(
    {
        units * UNIT + delta
        for units in (0, 1, 2, 3, 5, 8)
        for delta in (-17, -16, -15, -1, 0, 1, 15, 16, 17, 100)
        if units * UNIT + delta >= 0
    }
)
OFFSETS = st.one_of(st.sampled_from(EDGES), st.integers(0, 9 * UNIT))
LENGTHS = st.one_of(
    st.sampled_from([0, 1, 15, 16, 17, UNIT - 1, UNIT, UNIT + 1, 2 * UNIT, 3 * UNIT + 5]),
    st.integers(0, 4 * UNIT),
)


class FileMachine(RuleBasedStateMachine):
    """The file is `file`, what it should hold `model`."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="cisfs-test-", dir=vaults.memory()))
        self.vault = Vault.open(vaults.make(self.directory / "vault"), KEY)
        fd = os.open("file", os.O_RDWR | os.O_CREAT, 0o600, dir_fd=self.vault.fd)
        self.file = EncryptedFile.create(fd, self.vault.context)
        self.model = bytearray()
        self.written = 0

    def teardown(self) -> None:
        self.file.close()
        self.vault.close()
        shutil.rmtree(self.directory)

    @initialize(size=OFFSETS)
    def begin_with_a_hole(self, size: int) -> None:
        self.truncate(size)

    @rule(offset=OFFSETS, length=LENGTHS)
    def write(self, offset: int, length: int) -> None:
        self.written += 1
        data = (b"%d." % self.written * length)[:length]
        assert self.file.write(offset, data) == length
        if length:
            self.model.extend(bytes(max(0, offset - len(self.model))))
            self.model[offset : offset + length] = data

    @rule(length=LENGTHS)
    def append(self, length: int) -> None:
        self.write(len(self.model), length)

    @rule(offset=OFFSETS, length=LENGTHS)
    def read(self, offset: int, length: int) -> None:
        assert vaults.same(self.file.read(offset, length), self.model[offset : offset + length])

    @rule(size=OFFSETS)
    def truncate(self, size: int) -> None:
        self.file.truncate(size)
        del self.model[size:]
        self.model.extend(bytes(size - len(self.model)))

    @rule(offset=OFFSETS, length=LENGTHS)
    def discard(self, offset: int, length: int) -> None:
        end = min(offset + length, len(self.model))
        self.file.discard(offset, length)
        if offset < end:
            self.model[offset:end] = bytes(end - offset)

    @rule(datasync=st.booleans())
    def sync(self, datasync: bool) -> None:
        self.file.sync(datasync)

    @rule()
    def reopen(self) -> None:
        self.file.close()
        fd = os.open("file", os.O_RDWR, dir_fd=self.vault.fd)
        self.file = EncryptedFile.open(fd, self.vault.context)

    @rule()
    def read_whole(self) -> None:
        assert vaults.same(self.file.read(0, len(self.model) + 1), self.model)

    @rule()
    def check_units(self) -> None:
        assert self.file.damaged_units() == []

    @invariant()
    def sizes_agree(self) -> None:
        assert self.file.size == len(self.model)


TestFileMachine = FileMachine.TestCase
TestFileMachine.settings = settings(max_examples=60, stateful_step_count=25)
