"""kill -9 at random instants of a rotation, again and again: the path always opens, with each key.

What was killed is gone on with, and now and then it comes to its end, so every step is hit.  While
the child works, the path is opened all the time, too.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cisfs.keys.credentials import RawKey
from cisfs.layer import opening, sealed_rotation
from cisfs.layer import vault as vaults_of_cisfs
from cisfs.layer.rotation import rotate
from cisfs.layer.sealed import SealedLayer
from cisfs.layer.sealing import StoredImage, seal_image
from tests.unit import layers, vaults
from tests.unit.test_vault_rotation import facts, fill
from tests.unit.vaults import KEY, same

KILLS = 35  # of each kind
OTHER = RawKey(b"another key file of 32 bytes ..!")
KEYS = [KEY, OTHER]
MIB = 1 << 20


@pytest.fixture(autouse=True)
def no_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


class Killer:
    """Rotates what is at `path` in children, which it kills; `look` is done all the time."""

    def __init__(self, path: Path, look: Callable[[], None]) -> None:
        self.path = path
        self.look = look
        seed = random.randrange(1 << 32)
        print(f"seed {seed}")  # shown when a test fails
        self.random = random.Random(seed)

    def run(self, seconds: float) -> bool:
        """Let a child rotate for so long at most; tells whether it was killed before its end."""
        child = os.fork()
        if child == 0:
            code = 1
            try:
                rotate(self.path, KEY, KEYS)
                code = 0
            finally:
                os._exit(code)
        until, ended, status = time.monotonic() + seconds, 0, 0
        while not ended and time.monotonic() < until:
            self.look()
            ended, status = os.waitpid(child, os.WNOHANG)
        if not ended:
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
        return os.WIFSIGNALED(status)

    def kill(self, times: int, check: Callable[[], None]) -> int:
        """Kill so many children; returns how many rotations came to their end meanwhile."""
        began = time.monotonic()
        assert not self.run(600)
        longest = time.monotonic() - began
        killed, ids = 0, set()
        while killed < times:
            was_killed = self.run(self.random.uniform(0, longest))
            killed += was_killed
            longest *= 1.05 if was_killed else 0.9  # the machine may be more busy by now, or less
            check()
            ids.add(opening.key_id(self.path))
        return len(ids) - 1


def test_a_sealed_layer_always_opens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealed_rotation, "CHECKPOINT", 2 * MIB)
    path, image = tmp_path / "layer.cis", layers.image(24 * MIB + 4096)
    with layers.in_memory(image) as fd:
        seal_image(StoredImage(fd, len(image)), path, KEYS)

    def look() -> None:
        for key in KEYS:
            SealedLayer.open(path, key).close()

    def check() -> None:
        for key in KEYS:
            with layers.opened(path, key) as layer:
                assert same(layer.reader().read(0, len(image) + 1), image)

    assert Killer(path, look).kill(KILLS, check) > 0
    before = opening.key_id(path)
    rotate(path, KEY, KEYS)
    assert opening.key_id(path) != before
    check()
    assert list(tmp_path.iterdir()) == [path]


def test_a_vault_always_opens(tmp_path: Path) -> None:
    path = vaults.make(tmp_path / "vault")
    with vaults.mounted(path) as tree:
        fill(tree)
        for number in range(100):
            vaults.put(tree, b"more %d" % number, os.urandom(number * 300))
    before = facts(path)
    rotate(path, KEY, KEYS)

    def look() -> None:
        for key in KEYS:
            vaults_of_cisfs.master_key(path, key)

    def check() -> None:
        for key in KEYS:
            vaults_of_cisfs.Vault.open(path, key).close()  # for writing, and free
        assert facts(path) == before

    assert Killer(path, look).kill(KILLS, check) > 0
    rotate(path, KEY, KEYS)
    check()
    assert list(tmp_path.iterdir()) == [path]
    assert vaults.findings(path) == []
