"""The vault in tests/golden/v1 stands for those that users have: it must open, for ever."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cisfs.keys.credentials import Passphrase
from cisfs.layer.tree import ROOT, VaultTree
from cisfs.layer.vault import Vault, describe
from cisfs.layer.verify import verify
from tests.golden import unpacking
from tests.golden.description import described

HERE = Path(__file__).parent / "v1"
PASSPHRASE = Passphrase(b"golden passphrase, not a secret")


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Path]:
    before = os.umask(0)
    unpacking.unpack(HERE / "vault.tar", tmp_path)
    yield tmp_path / "vault"
    os.umask(before)


def test_it_holds_what_it_held(vault: Path) -> None:
    expected = json.loads((HERE / "expected.json").read_text("ascii"))
    tree = VaultTree(Vault.open(vault, PASSPHRASE, read_only=True))
    found = described(tree)
    tree.close()
    assert set(found) == set(expected)
    for path, what in expected.items():
        # Times of a tar are not to the nanosecond.
        mtime, held = what.pop("mtime_ns", None), found[path].pop("mtime_ns", None)
        assert found[path] == what, path
        assert mtime is None or abs(mtime - int(str(held))) < 1000


def test_it_is_whole(vault: Path) -> None:
    opened = Vault.open(vault, PASSPHRASE, read_only=True)
    assert list(verify(opened, salvage=False)) == []
    opened.close()


def test_it_can_be_written(vault: Path) -> None:
    tree = VaultTree(Vault.open(vault, PASSPHRASE))
    node = tree.lookup(ROOT, b"size-4097").node
    handle = tree.open(node, os.O_RDWR)
    tree.write(handle, 4090, b"changed")
    tree.rename(ROOT, b"size-4097", ROOT, b"l" * 255, 0)
    assert bytes(tree.read(handle, 4089, 100))[1:] == b"changed"
    tree.release(handle)
    tree.close()
    opened = Vault.open(vault, PASSPHRASE, read_only=True)
    assert list(verify(opened, salvage=False)) == []
    opened.close()


def test_it_says_what_it_is(vault: Path) -> None:
    said = describe(vault)
    assert (said["version"], said["unit_size"]) == (1, 4096)
    assert said["slots"] == [
        {
            "id": "23f86072a67c",
            "type": "passphrase",
            "kdf": "argon2id",
            "iterations": 1,
            "lanes": 1,
            "memory_kib": 64,
        }
    ]
