"""kill -9 of the server while several processes write: what was acknowledged is whole.

Each writer keeps, outside of the vault, what every file of its held at its last fsync, and what it
was about to do.  The kill comes at a random moment of a seeded sequence.
"""

from __future__ import annotations

import errno
import os
import random
import signal
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.mount.harness.lab import Lab
from tests.mount.harness.processes import Child, alive, wait_until

pytestmark = [pytest.mark.fuse, pytest.mark.root]

UNIT = 32 * 1024
SIZES = [0, 1, 500, UNIT - 1, UNIT, UNIT + 1, 5 * UNIT + 100, 20 * UNIT]
BLOCK = 16  # XTS: a torn overwrite mixes old and new blocks of this size


@dataclass
class Writer:
    """One process's files: `durable` content by name, and the change `under_way`, if any."""

    number: int
    seed: int
    durable: dict[str, bytes] = field(default_factory=dict)
    under_way: tuple[str, str, bytes] | None = None  # name, kind, what it would become
    rounds: int = 0

    def run(self, root: Path) -> Writer:
        """Work until the server is gone; returns what is known then."""
        chance = random.Random(self.seed * 100 + self.number)
        try:
            while True:
                self._step(root, chance)
                self.rounds += 1
        except OSError as error:
            if error.errno not in (errno.ENOTCONN, errno.ECONNABORTED):
                raise
        return self

    def _step(self, root: Path, chance: random.Random) -> None:
        name = f"w{self.number}-{chance.randrange(6)}"
        old = self.durable.get(name)
        kind = chance.choice(["overwrite", "overwrite", "append", "truncate", "replace", "rename"])
        data = chance.randbytes(chance.choice(SIZES))
        if old is None:
            self._change(root, name, "create", data)
        elif kind == "overwrite":
            at = chance.randrange(len(old) + 1)
            new = old[:at] + data[: len(old) - at] + old[at + len(data) :]
            self._change(root, name, kind, new)
        elif kind == "append":
            self._change(root, name, kind, old + data)
        elif kind == "truncate":
            size = chance.randrange(2 * len(old) + UNIT)
            self._change(root, name, kind, old[:size].ljust(size, b"\0"))
        elif kind == "replace":
            self._replace(root, name, data)
        else:
            self._rename(root, name, f"w{self.number}-{chance.randrange(6)}")

    def _change(self, root: Path, name: str, kind: str, new: bytes) -> None:
        old = self.durable.get(name, b"")
        self.under_way = (name, kind, new)
        fd = os.open(root / name, os.O_RDWR | os.O_CREAT)
        try:
            if kind == "truncate":
                os.ftruncate(fd, len(new))
            else:
                start = next(
                    (
                        at
                        for at, pair in enumerate(zip(old, new, strict=False))
                        if pair[0] != pair[1]
                    ),
                    min(len(old), len(new)),
                )
                os.pwrite(fd, new[start:], start)
            os.fsync(fd)
        finally:
            os.close(fd)
        self.durable[name], self.under_way = new, None

    def _replace(self, root: Path, name: str, new: bytes) -> None:
        temporary = f"{name}.new"
        self._change(root, temporary, "create", new)
        self._rename(root, temporary, name)

    def _rename(self, root: Path, old: str, new: str) -> None:
        if old == new:
            return
        self.under_way = (new, f"rename from {old}", self.durable[old])
        os.rename(root / old, root / new)
        self.durable[new], self.under_way = self.durable.pop(old), None


def assert_mixture(found: bytes, old: bytes, new: bytes, where: str) -> None:
    """A torn change in place: each block is the old one or the new one, and nothing is lost."""
    length = max(len(old), len(new))
    old_whole, new_whole = old.ljust(length, b"\0"), new.ljust(length, b"\0")
    assert min(len(old), len(new)) <= len(found) <= length, where
    for at in range(0, len(found), BLOCK):
        block = found[at : at + BLOCK]
        end = at + len(block)
        if block not in (old_whole[at:end], new_whole[at:end]):
            # A new unit may be partly there: a hole, or a page that had not been written back.
            assert old_whole[at:end] == bytes(len(block)) or at >= len(old) - BLOCK, (where, at)


def check(writer: Writer, root: Path) -> set[str]:
    """Compare what is there with what must be; returns the names that were in flight."""
    names = {name for name in os.listdir(root) if name.startswith(f"w{writer.number}-")}
    in_flight: set[str] = set()
    durable = dict(writer.durable)
    if writer.under_way is not None:
        name, kind, new = writer.under_way
        in_flight.add(name)
        if kind.startswith("rename"):
            source = kind.removeprefix("rename from ")
            old_content, content = durable.pop(name, None), durable.pop(source)
            in_flight.add(source)
            moved = source not in names
            assert (root / (name if moved else source)).read_bytes() == content
            assert moved or old_content is None or (root / name).read_bytes() == old_content
        elif name in durable:
            old = durable.pop(name)
            assert_mixture((root / name).read_bytes(), old, new, f"{kind} {name}")
    assert names - in_flight == durable.keys()
    for name, content in durable.items():
        assert (root / name).read_bytes() == content, name
    return in_flight


@pytest.mark.parametrize("seed", range(10))
def test_a_killed_server_costs_only_what_was_in_flight(lab: Lab, seed: int) -> None:
    lab.damaged = True  # judged here, with what was in flight in mind
    lab.mount()
    writers = [Child(partial(Writer(number, seed).run, lab.mountpoint)) for number in range(3)]
    time.sleep(
        random.Random(seed).uniform(0.05, 0.8)
    )  # the moment of the crash is the test's input
    server = lab.server
    os.kill(server, signal.SIGKILL)
    wait_until(lambda: not alive(server), "the server is dead")
    known: list[Any] = [writer.result() for writer in writers]
    lab.umount()
    lab.mount()
    in_flight = set().union(*(check(writer, lab.mountpoint) for writer in known))
    lab.umount()
    allowed = {f"/{name}" for name in in_flight}
    findings = [finding for finding in lab.findings() if finding["path"] not in allowed]
    assert findings == []
    assert sum(writer.rounds for writer in known) > 0
