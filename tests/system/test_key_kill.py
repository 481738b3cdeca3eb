"""`kill -9` at random instants of adding and removing keys: whoever could open it still can."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cisfs.errors import WrongKeyError
from cisfs.keys.credentials import RawKey
from cisfs.keys.slots import slot_id
from cisfs.layer import keyslots, opening
from tests.unit import layers, vaults
from tests.unit.vaults import KEY

KILLS = 70  # for each of the two; the rotation's are in test_rotation_kill.py
FRIEND, GUEST = RawKey(b"f" * 32), RawKey(b"g" * 32)


@pytest.fixture(params=["layer", "vault"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """On a disk, where a change waits for it several times; KEY and FRIEND open it."""
    place = tmp_path / "x"
    if request.param == "vault":
        vaults.make(place)
    else:
        layers.seal(place, layers.image(1 << 20))
    keyslots.add(place, KEY, FRIEND)
    return place


def test_nothing_is_lost_by_a_kill(path: Path) -> None:
    chance = random.Random(5)
    identity = path.read_bytes()[:4096] if path.is_file() else b""
    longest = max(seconds(lambda: toggle(path)) for _ in range(4))
    killed = finished = 0
    while killed < KILLS:
        had = {key for key in (KEY, FRIEND, GUEST) if opens(path, key)}
        assert {KEY, FRIEND} <= had
        pid = os.fork()
        if pid == 0:
            toggle(path)
            os._exit(0)
        time.sleep(chance.uniform(0, longest))
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        if os.WIFSIGNALED(status):
            killed += 1
        else:
            finished += 1
            assert status == 0
            assert opens(path, GUEST) != (GUEST in had)
        assert finished < 20 * KILLS
    toggle(path)  # whatever was left behind is no obstacle, and is cleaned up
    if path.is_file():
        data = path.read_bytes()
        assert data[:4096] == identity
        assert not any(data[65536:131072])
        with layers.opened(path) as layer:
            assert layer.reader().read(0, layer.image_size) == layers.image(1 << 20)


def toggle(path: Path) -> None:
    """Let GUEST in if he is not, and out if he is."""
    own = keyslots.slots(path)[2:]
    if own:
        keyslots.remove(path, KEY, [slot_id(slot) for slot in own])
    else:
        keyslots.add(path, KEY, GUEST)


def opens(path: Path, key: RawKey) -> bool:
    try:
        opening.master_key(path, key)
    except WrongKeyError:
        return False
    return True


def seconds(work: Callable[[], object]) -> float:
    begin = time.monotonic()
    work()
    return time.monotonic() - begin
