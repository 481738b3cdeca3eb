"""The journal of a mount: what is announced, what is promised, and what the next mount trusts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cisfs.format import journal as form
from cisfs.format.geometry import Geometry
from cisfs.format.journal import Record
from cisfs.format.names import JOURNAL_FILE
from cisfs.layer.inflight import REGION_UNITS, InFlight
from cisfs.layer.journal import Journal, LeftOver, read_left_over
from cisfs.layer.vault import Vault
from tests.unit import vaults
from tests.unit.vaults import KEY, UNIT

SECRET = b"k" * 32
A, B = b"a" * 16, b"b" * 16
G = Geometry(UNIT)


class Checkpoints:
    """Counts the checkpoints a journal asks for."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_RDONLY)
    yield fd
    os.close(fd)


@pytest.fixture
def checkpoints() -> Checkpoints:
    return Checkpoints()


@pytest.fixture
def journal(directory: int, checkpoints: Checkpoints) -> Journal:
    return Journal(directory, SECRET, checkpoints)


def left(directory: int) -> LeftOver:
    return read_left_over(directory, SECRET)


def test_an_announced_operation_is_left_over_until_it_ends(
    directory: int, journal: Journal
) -> None:
    assert left(directory) == LeftOver()
    record = Record(A, 1, 2, 3, 4)
    journal.begin(record)
    assert left(directory) == LeftOver(record, [])
    assert left(directory).file_ids() == {A}
    journal.end()
    assert left(directory) == LeftOver()


def test_held_regions_stay_until_their_file_is_durable(directory: int, journal: Journal) -> None:
    one, other = Record(A, 1, 1, 0, 256), Record(B, 2, 2, 0, 256)
    journal.hold([one])
    journal.hold([other])
    assert (list(journal.held(A)), list(journal.held(B))) == ([one], [other])
    assert sorted(left(directory).regions, key=lambda each: each.file_id) == [one, other]
    assert left(directory).of(A) == LeftOver(None, [one])
    journal.settle(A)
    assert left(directory).regions == [other]
    journal.close()
    assert left(directory) == LeftOver()


def test_after_a_reboot_only_what_was_durable_counts(directory: int, journal: Journal) -> None:
    journal.begin(Record(A, 1, 2, 3, 4))
    journal.hold([Record(B, 1, 1, 0, 256)])
    fd = os.open(JOURNAL_FILE, os.O_WRONLY, dir_fd=directory)
    os.pwrite(fd, b"another boot id!", 32)
    os.close(fd)
    assert left(directory) == LeftOver(None, [Record(B, 1, 1, 0, 256)])


def test_a_journal_that_is_not_ours_says_nothing(directory: int, journal: Journal) -> None:
    journal.begin(Record(A, 1, 2, 3, 4))
    assert read_left_over(directory, b"x" * 32) == LeftOver()
    fd = os.open(JOURNAL_FILE, os.O_RDWR, dir_fd=directory)
    good = os.pread(fd, form.FILE_SIZE, 0)
    for bad in (b"", good[:30], b"X" + good[1:], good[:100], os.urandom(len(good))):
        os.ftruncate(fd, 0)
        os.pwrite(fd, bad, 0)
        assert left(directory) == LeftOver()
    os.close(fd)


def test_a_full_journal_is_emptied_by_a_checkpoint(
    directory: int, journal: Journal, checkpoints: Checkpoints
) -> None:
    for number in range(form.SLOTS - 1):
        journal.hold([Record(A, number, number, 0, 256)])
    assert checkpoints.count == 0
    journal.hold([Record(B, 1, 1, 0, 256)])
    assert checkpoints.count == 1
    assert not journal.held(A)
    assert left(directory).regions == [Record(B, 1, 1, 0, 256)]
    journal.close()
    assert checkpoints.count == 2


def test_a_new_file_promises_nothing(directory: int, journal: Journal) -> None:
    flight = InFlight(journal, A, G, None)
    assert flight.begin(0, 5000, 0, 2) == Record(A, 0, 5000, 0, 2)
    assert left(directory) == LeftOver(Record(A, 0, 5000, 0, 2), [])
    flight.end()


def test_what_was_there_is_promised_once_per_region(directory: int, journal: Journal) -> None:
    size = 2 * REGION_UNITS * UNIT
    flight = InFlight(journal, A, G, size)
    for unit in (0, 7, REGION_UNITS - 1):
        flight.begin(size, size, unit, unit + 1)
        flight.end()
    assert left(directory).regions == [Record(A, size, size, 0, REGION_UNITS)]
    flight.begin(size, size + 1, REGION_UNITS, REGION_UNITS + 1)
    ends = Record(A, size, size, 2 * REGION_UNITS, 2 * REGION_UNITS)
    assert len(left(directory).regions) == 3
    assert ends in left(directory).regions
    flight.settle(size + 1)
    assert left(directory).regions == []


def test_what_is_past_the_promised_end_is_not_recorded(directory: int, journal: Journal) -> None:
    flight = InFlight(journal, A, G, 10 * UNIT)
    flight.begin(10 * UNIT, 20 * UNIT, 10, 20)
    assert [record.first for record in left(directory).regions] == [10]
    assert [record.end for record in left(directory).regions] == [10]


def test_a_checkpoint_makes_regions_promised_again(directory: int, journal: Journal) -> None:
    flight = InFlight(journal, A, G, 5 * UNIT)
    flight.begin(5 * UNIT, 5 * UNIT, 0, 1)
    for number in range(form.SLOTS - 1):  # as many as there is room for
        journal.hold([Record(B, number, number, 0, 256)])
    assert left(directory).of(A).regions == []
    flight.begin(5 * UNIT, 5 * UNIT, 0, 1)
    assert left(directory).of(A).regions == [Record(A, 5 * UNIT, 5 * UNIT, 0, REGION_UNITS)]


@pytest.mark.parametrize("free", [0, 1, 2])
def test_a_checkpoint_in_the_midst_of_a_promise_drops_nothing_of_it(
    directory: int, journal: Journal, free: int
) -> None:
    """Both records of one change are there when it begins, however full the journal was."""
    for number in range(form.SLOTS - 1 - free):
        journal.hold([Record(B, number, number, 0, 256)])
    flight = InFlight(journal, A, G, 5 * UNIT)
    for _ in range(2):
        flight.begin(5 * UNIT, UNIT + 1, 1, 2)
        promised = {(record.first, record.end) for record in left(directory).of(A).regions}
        assert promised == {(0, REGION_UNITS), (5, 5)}
        flight.end()


def test_a_clean_end_leaves_an_empty_journal(tmp_path: Path) -> None:
    path = vaults.make(tmp_path / "vault")
    with vaults.mounted(path) as tree:
        vaults.put(tree, b"file", b"content")
        handle = tree.open(tree.lookup(1, b"file").node, os.O_RDWR)
        tree.write(handle, 0, b"changed")
    data = (path / os.fsdecode(JOURNAL_FILE)).read_bytes()
    assert len(data) == form.FILE_SIZE
    assert not any(data[form.HEADER_SIZE :])


def test_an_unclean_end_is_said_to_readers_and_mended_by_writers(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = vaults.make(tmp_path / "vault")
    vault = Vault.open(path, KEY)
    assert vault.context.journal is not None
    vault.context.journal.begin(Record(A, 0, 0, 0, 1))
    vault.abandon()
    with vaults.opened(path, read_only=True):
        assert "was not closed cleanly" in caplog.text
    caplog.clear()
    with vaults.opened(path) as vault:
        assert vault.mended == []
    with vaults.opened(path, read_only=True):
        assert caplog.text == ""


def test_outside_of_the_journals_ranges_nothing_is_mended(tmp_path: Path) -> None:
    """An altered unit stays altered, also when its file was in flight."""
    path = vaults.make(tmp_path / "vault")
    with vaults.mounted(path) as tree:
        vaults.put(tree, b"file", b"x" * (3 * UNIT))
    vault = Vault.open(path, KEY)
    backing = vaults.only(path)
    file_id = backing.read_bytes()[16:32]
    assert vault.context.journal is not None
    vault.context.journal.begin(Record(file_id, 3 * UNIT, 3 * UNIT, 1, 2))
    vault.abandon()
    vaults.flip(backing, 40)
    vaults.flip(backing, 32 + 4112 + 40)
    found = vaults.findings(path, salvage=True)
    assert [(each.unit, each.mended) for each in found] == [(None, True), (0, False)]
    assert [each.unit for each in vaults.findings(path)] == [0]
