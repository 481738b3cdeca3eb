"""Death at every write, and what the next mount makes of it.

Every change is cut at every system call that writes, before it, half-way and after it; then the
vault is opened anew.  Torn content must be old or new, block by block, and everything readable.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import pytest

from cisfs.errors import IntegrityError
from cisfs.format.names import JOURNAL_FILE
from cisfs.layer.file import EncryptedFile
from cisfs.layer.vault import Vault
from cisfs.layer.verify import verify
from tests.unit import faulty_os, vaults
from tests.unit.faulty_os import Died
from tests.unit.scenarios import SCENARIOS, Scenario, apply, model

pytestmark = pytest.mark.slow

NAME = b"cisfs-test-file-without-a-dot"  # no encrypted name is needed: recovery knows none either
PARTS = (0.0, 0.5, 0.999)
CHANGES = pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda each: each.name)


def open_file(vault: Vault) -> EncryptedFile:
    return EncryptedFile.open(os.open(NAME, os.O_RDWR, dir_fd=vault.fd), vault.context)


def prepare(path: Path, scenario: Scenario) -> None:
    vaults.make(path)
    with vaults.opened(path) as vault:
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
        file = EncryptedFile.create(os.open(NAME, flags, 0o600, dir_fd=vault.fd), vault.context)
        apply(file, scenario.before)
        file.sync(datasync=False)
        file.close()


def restored(path: Path, stored: bytes) -> None:
    """Put the stored bytes back, with their holes."""
    with (path / os.fsdecode(NAME)).open("wb") as file:
        for at in range(0, len(stored), 512):
            piece = stored[at : at + 512]
            if any(piece):
                file.seek(at)
                file.write(piece)
        file.truncate(len(stored))


def change_until_death(path: Path, scenario: Scenario) -> bool:
    """Make the change; tells whether the process died in it."""
    vault = Vault.open(path, vaults.KEY)
    file = open_file(vault)
    try:
        apply(file, [scenario.change])
    except Died:
        return True
    finally:
        vaults.abandon(vault, file)
    return False


def other_boot(path: Path) -> None:
    """Make the journal one that an earlier boot of the machine left: the power failed."""
    with (path / os.fsdecode(JOURNAL_FILE)).open("r+b") as file:
        file.seek(32)
        file.write(bytes(16))


def blocks(content: bytes) -> list[bytes]:
    return [content[at : at + 16] for at in range(0, len(content), 16)]


def ways_of(old: bytes, new: bytes, at: int, length: int) -> list[bytes]:
    """What a block of `length` bytes at `at` may be: old, new, or old only as far as new goes."""
    ways = [side[at : at + length].ljust(length, b"\0") for side in (old, new)]
    return [*ways, new[at : at + length] + ways[0][max(0, len(new) - at) :]]


def assert_old_or_new(held: bytes, old: bytes, new: bytes) -> None:
    for number, block in enumerate(blocks(held)):
        ways = ways_of(old, new, number * 16, len(block))
        assert block in ways, f"block {number} of {len(held)} bytes is {block!r}, not of {ways}"


def reopened(path: Path, scenario: Scenario) -> None:
    """Open the vault that a crash left, and work with what its file holds."""
    old, new = model(scenario.before), model([*scenario.before, scenario.change])
    sizes = {len(old), len(new)}
    if scenario.change[0] == "write":  # past the end, the file grows before it is written
        sizes.add(max(scenario.change[1], len(old)))
    with vaults.opened(path) as vault:
        file = open_file(vault)
        held = bytes(file.read(0, file.size + 1))
        assert file.damaged_units() == []
        assert len(held) == file.size
        assert file.size in sizes
        assert_old_or_new(held, old, new)
        # It can be worked with: written, cut and grown, holes and all.
        file.write(5000, b"after the crash")
        file.truncate(5015)
        file.truncate(30_000)
        expected = bytearray(held[:5000].ljust(5000, b"\0") + b"after the crash" + bytes(24_985))
        assert vaults.same(file.read(0, 30_001), expected)
        file.close()


def assert_clean(path: Path) -> None:
    with vaults.opened(path, read_only=True) as vault:
        found = [each for each in verify(vault, salvage=False) if each.unit is not None]
        assert found == []
        file = open_file(vault)
        assert file.damaged_units() == []
        file.close()


@CHANGES
def test_a_process_that_dies_at_any_write_leaves_old_or_new(
    scenario: Scenario, memory_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = memory_path / "vault"
    prepare(path, scenario)
    pristine = (path / os.fsdecode(NAME)).read_bytes()
    deaths = 0
    for part in PARTS:
        for call in range(1, 100):
            restored(path, pristine)
            with monkeypatch.context() as patch:
                faulty_os.die_at(faulty_os.install(patch), call, part)
                died = change_until_death(path, scenario)
            reopened(path, scenario)
            assert_clean(path)
            if not died:
                break
            deaths += 1
    assert deaths >= len(PARTS)


def change_recorded(
    path: Path, scenario: Scenario, monkeypatch: pytest.MonkeyPatch
) -> list[faulty_os.Change]:
    """Make the change, leave the vault as it is in that moment; returns what was written."""
    vault = Vault.open(path, vaults.KEY)
    file = open_file(vault)
    with monkeypatch.context() as patch:
        faulty = faulty_os.install(patch)
        apply(file, [scenario.change])
    vaults.abandon(vault, file)
    return faulty.log


def what_reached_the_disk(log: list[faulty_os.Change]) -> Iterator[list[faulty_os.Change]]:
    """Every choice among the writes, in their order, the last of them whole or one half of it."""
    for count in range(len(log) + 1):
        for chosen in combinations(log, count):
            yield list(chosen)
            if chosen and len(chosen[-1].data) > 16:
                last, half = chosen[-1], len(chosen[-1].data) // 2 & -16
                yield [*chosen[:-1], replace(last, data=last.data[:half])]
                later = replace(last, number=last.number + half, data=last.data[half:])
                yield [*chosen[:-1], later]


@CHANGES
def test_a_power_cut_with_any_of_the_writes_on_disk_leaves_old_or_new(
    scenario: Scenario, memory_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk may have seen any of the writes; only what was durable is known of the change."""
    path = memory_path / "vault"
    prepare(path, scenario)
    pristine = (path / os.fsdecode(NAME)).read_bytes()
    old, new = model(scenario.before), model([*scenario.before, scenario.change])
    log = change_recorded(path, scenario, monkeypatch)
    other_boot(path)
    journal = (path / os.fsdecode(JOURNAL_FILE)).read_bytes()
    for reached in what_reached_the_disk(log):
        restored(path, pristine)
        with (path / os.fsdecode(NAME)).open("r+b", buffering=0) as file:
            for change in reached:
                change.make(file.fileno())
        (path / os.fsdecode(JOURNAL_FILE)).write_bytes(journal)
        words = [str(change) for change in reached]
        with vaults.opened(path) as vault:
            mended = open_file(vault)
            assert_kept(mended, old, new, words)
            mended.close()


def read_promised(file: EncryptedFile, promised: int) -> bytes:
    """Read a file unit by unit.

    Units without a promised byte may be unreadable: the disk has nothing of them.
    """
    held = b""
    for start in range(0, file.size, vaults.UNIT):
        try:
            held += file.read(start, vaults.UNIT)
        except IntegrityError:
            assert start >= promised
            assert start // vaults.UNIT in file.damaged_units()
            break
    return held


def assert_kept(file: EncryptedFile, old: bytes, new: bytes, reached: list[str]) -> None:
    """What was promised is old or new; what was being appended may have got anywhere."""
    held = read_promised(file, min(len(old), len(new)))
    if len(new) < len(old):
        assert file.size in {len(new), len(old)}, reached
    else:
        assert len(old) <= file.size <= len(new), reached
    for number, block in enumerate(blocks(held)):
        at = number * 16
        ways = ways_of(old, new, at, len(block))
        if at + len(block) > len(old):  # appended: zeros where the disk saw no data
            ways.append(old[at : at + 16].ljust(len(block), b"\0"))
        assert block in ways, f"block {number} is {block!r}, not of {ways}, after {reached}"
