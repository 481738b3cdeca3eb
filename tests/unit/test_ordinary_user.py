"""A vault in the hands of an ordinary user: modes that keep the owner out, too.

Run by root, each test drops root's rights in a process of its own.
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cisfs.format.journal import Record
from cisfs.layer.tree import ROOT, Change, VaultTree
from cisfs.layer.vault import Vault
from tests.unit import vaults
from tests.unit.vaults import KEY, ME, findings, listing, put

NOBODY = 65534


@pytest.fixture
def path() -> Iterator[Path]:
    """A place for a vault where everyone may write."""
    directory = Path(tempfile.mkdtemp(prefix="cisfs-test-", dir=vaults.memory()))
    directory.chmod(0o777)
    yield directory / "vault"
    shutil.rmtree(directory)


def as_ordinary_user(scenario: Callable[[], None]) -> None:
    """Run a scenario in a forked process without root's rights; fail with its traceback."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(NOBODY)
                os.setuid(NOBODY)
            scenario()
        except BaseException:  # noqa: BLE001 - whatever it was is said by the parent
            os.write(writing, traceback.format_exc().encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as said:
        failure = said.read()
    os.waitpid(child, 0)
    if failure:
        pytest.fail(failure)


@pytest.mark.parametrize("mode", [0o000, 0o400, 0o500, 0o300, 0o555])
def test_a_directory_of_any_mode_is_made_and_removed(path: Path, mode: int) -> None:
    def scenario() -> None:
        with vaults.mounted(vaults.make(path)) as tree:
            attr = tree.mkdir(ROOT, b"directory", stat.S_IFDIR | mode, ME)
            assert stat.S_IMODE(attr.mode) == mode
            assert listing(tree) == [b"directory"]
            tree.rmdir(ROOT, b"directory")
            assert listing(tree) == []

    as_ordinary_user(scenario)


def test_a_file_that_may_not_be_written_is_mended_all_the_same(path: Path) -> None:
    """It was written through the descriptor that made it; `git` makes its objects so."""

    def scenario() -> None:
        vault = Vault.open(vaults.make(path), KEY)
        tree = VaultTree(vault)
        handle, _ = tree.create(ROOT, b"file", stat.S_IFREG | 0o444, os.O_RDWR, ME)
        tree.write(handle, 0, b"x" * 5000)
        backing = vaults.only(path)
        assert vault.context.journal is not None
        file_id = backing.read_bytes()[16:32]
        vault.context.journal.begin(Record(file_id, 5000, 5000, 0, 2))
        vault.abandon()
        backing.chmod(0o644)
        vaults.flip(backing, 40)
        backing.chmod(0o444)
        with vaults.opened(path) as vault:
            assert len(vault.mended) == 1
        assert stat.S_IMODE(backing.stat().st_mode) == 0o444
        assert findings(path) == []

    as_ordinary_user(scenario)


def test_verify_names_what_it_may_not_read_and_goes_on(path: Path) -> None:
    def scenario() -> None:
        with vaults.mounted(vaults.make(path)) as tree:
            directory = tree.mkdir(ROOT, b"directory", stat.S_IFDIR | 0o755, ME).node
            put(tree, b"file", b"", directory)
            unreadable = put(tree, b"unreadable", b"content")
            damaged = put(tree, b"x", b"content")
            tree.setattr(directory, Change(mode=0))
            tree.setattr(unreadable, Change(mode=0))
            number = tree.getattr(damaged).node
        (backing,) = [each for each in path.iterdir() if each.stat().st_ino == number]
        vaults.flip(backing, 40)
        named = {finding.path for finding in findings(path)}
        assert named == {"/directory", "/unreadable", "/x"}
        next(each for each in vaults.stored(path) if each.is_dir()).chmod(0o755)

    as_ordinary_user(scenario)
