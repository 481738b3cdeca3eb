"""A full disk at every write: the caller sees ENOSPC, and the old content is there at once."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path

import pytest

from cisfs.layer.file import EncryptedFile
from cisfs.layer.vault import Vault
from tests.unit import faulty_os, vaults
from tests.unit.faulty_os import FaultyOs
from tests.unit.scenarios import SCENARIOS, Scenario, apply, model
from tests.unit.test_crash import assert_old_or_new, open_file, prepare, restored

CHANGES = pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda each: each.name)


def fill_up(faulty: FaultyOs, call: int) -> None:
    """Let the disk have no free block from the `call`th change on, for good."""
    faulty.full_from = call


WAYS = [faulty_os.fail_at, faulty_os.cut_short_at, fill_up]


@pytest.mark.parametrize("way", WAYS, ids=lambda each: each.__name__)
@CHANGES
def test_a_write_that_fails_leaves_what_was_there_readable(
    scenario: Scenario,
    way: Callable[[FaultyOs, int], None],
    memory_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = memory_path / "vault"
    prepare(path, scenario)
    stored = path / "cisfs-test-file-without-a-dot"
    pristine = stored.read_bytes()
    old, new = model(scenario.before), model([*scenario.before, scenario.change])
    with vaults.opened(path) as vault:
        for call in range(1, 100):
            restored(path, pristine)
            file = open_file(vault)
            with monkeypatch.context() as patch:
                faulty = faulty_os.install(patch)
                way(faulty, call)
                failed = fails_with_enospc(file, scenario)
                assert_readable(file, old, new)
                reached_the_end = faulty.changes < call
            file.sync(datasync=True)
            file.close()
            assert_stays_readable(vault, old, new)
            if not failed and reached_the_end:
                break


def fails_with_enospc(file: EncryptedFile, scenario: Scenario) -> bool:
    try:
        apply(file, [scenario.change])
    except OSError as error:
        if error.errno == errno.ENOSPC:
            return True
        raise
    return False


def assert_readable(file: EncryptedFile, old: bytes, new: bytes) -> None:
    held = bytes(file.read(0, file.size + 1))
    assert len(held) == file.size
    assert min(len(old), len(new)) <= file.size <= max(len(old), len(new))
    assert_old_or_new(held, old, new)
    assert file.damaged_units() == []


def assert_stays_readable(vault: Vault, old: bytes, new: bytes) -> None:
    """Opened anew it is whole; with room again, it can be written."""
    file = open_file(vault)
    assert_readable(file, old, new)
    file.write(0, b"room again")
    assert bytes(file.read(0, 10)) == b"room again"
    assert file.damaged_units() == []
    file.close()


def test_a_file_that_cannot_be_made_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = vaults.make(tmp_path / "vault")
    with vaults.mounted(path) as tree:
        with monkeypatch.context() as patch:
            faulty_os.fail_at(faulty_os.install(patch), 1)
            with pytest.raises(OSError, match="No space left"):
                vaults.put(tree, b"n" * 255, b"")
        assert vaults.listing(tree) == []
        assert sorted(each.name for each in path.iterdir()) == [
            "cisfs.dir",
            "cisfs.journal",
            "vault.json",
        ]
        assert tree.statfs().f_bsize > 0
        node = vaults.put(tree, b"n" * 255, b"now")
        assert vaults.content(tree, node) == b"now"
