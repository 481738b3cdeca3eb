"""What the unit tests share: the umask that a serving process has."""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit import vaults
from tests.unit.age_files import scrypt_file


@pytest.fixture(autouse=True, scope="module")
def no_garbage() -> None:
    """What earlier tests left to the collector is not to be closed while others are counted."""
    gc.collect()


@pytest.fixture(autouse=True)
def no_umask() -> Iterator[None]:
    """Modes reach the tree masked by the kernel already, so the process's own umask is 0."""
    before = os.umask(0)
    yield
    os.umask(before)


@pytest.fixture
def cheap_age(monkeypatch: pytest.MonkeyPatch) -> None:
    """What age makes of passphrases, without the second that it calibrates each of them to."""
    pyrage = pytest.importorskip("pyrage")

    def encrypt(data: bytes, words: str) -> bytes:
        return scrypt_file(bytes(data), words.encode(), 4)

    monkeypatch.setattr(pyrage.passphrase, "encrypt", encrypt)


@pytest.fixture
def memory_path(tmp_path: Path) -> Iterator[Path]:
    """A directory where fsync costs nothing, for tests that open a vault a thousand times."""
    path = Path(tempfile.mkdtemp(prefix="cisfs-test-", dir=vaults.memory() or tmp_path))
    yield path
    shutil.rmtree(path)
