"""Several threads and processes at once, on the same files and on different ones."""

from __future__ import annotations

import hashlib
import os
import random
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.mount.harness.linux import drop_caches
from tests.mount.harness.processes import at_once
from tests.mount.harness.trees import assert_same, snapshot

pytestmark = [pytest.mark.fuse, pytest.mark.root]

UNIT = 32 * 1024


def worker(root: Path, number: int, steps: int = 120) -> None:
    """A deterministic mix of operations on files of the worker's own, below `root`."""
    chance = random.Random(number)
    mine = root / f"worker{number}"
    mine.mkdir()
    for step in range(steps):
        path = mine / f"file{chance.randrange(8)}"
        kind = chance.randrange(6)
        data = chance.randbytes(chance.choice([1, 100, 4096, UNIT, 3 * UNIT + 1]))
        if kind == 0 or not path.exists():
            path.write_bytes(data)
        elif kind == 1:
            with path.open("ab") as file:
                file.write(data)
        elif kind == 2:
            with path.open("r+b") as file:
                file.seek(chance.randrange(2 * UNIT))
                file.write(data)
        elif kind == 3:
            os.truncate(path, chance.randrange(4 * UNIT))
        elif kind == 4:
            path.rename(mine / f"file{chance.randrange(8)}")
        else:
            with path.open("rb") as file:
                hashlib.file_digest(file, "sha256")
        if step % 25 == 0:
            (mine / f"link{step}").symlink_to(path.name)


def all_workers(root: Path) -> list[Callable[[], object]]:
    return [partial(worker, root, number) for number in range(4)]


def test_processes_on_files_of_their_own(here: Path, tmp_path: Path) -> None:
    shadow = tmp_path / "shadow"
    shadow.mkdir()
    at_once(*all_workers(here))
    at_once(*all_workers(shadow))
    drop_caches(3)
    assert_same(snapshot(here), snapshot(shadow))


def test_threads_on_files_of_their_own(here: Path, tmp_path: Path) -> None:
    shadow = tmp_path / "shadow"
    shadow.mkdir()
    for root in (here, shadow):
        threads = [threading.Thread(target=worker, args=(root, number)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
    drop_caches(3)
    assert_same(snapshot(here), snapshot(shadow))


def test_processes_writing_different_parts_of_one_file(here: Path) -> None:
    """Parts of odd sizes, so that neighbours share units."""
    path, part, writers = here / "file", 10_007, 4
    path.touch()

    def write(writer: int) -> None:
        with path.open("r+b", buffering=0) as file:
            for index in range(writer, 100, writers):
                os.pwrite(file.fileno(), bytes([index]) * part, index * part)

    at_once(*(lambda writer=writer: write(writer) for writer in range(writers)))
    drop_caches(3)
    assert path.read_bytes() == b"".join(bytes([index]) * part for index in range(100))


def test_readers_never_see_anything_but_old_or_new_bytes(here: Path) -> None:
    path, size = here / "file", 4 * UNIT
    path.write_bytes(b"a" * size)

    def write() -> None:
        for round_number in range(60):
            with path.open("r+b", buffering=0) as file:
                file.write((b"b" if round_number % 2 else b"a") * size)

    def read() -> None:
        for _ in range(60):
            content = path.read_bytes()
            assert len(content) == size
            assert set(content) <= set(b"ab")

    at_once(write, read, read)


def test_creating_and_removing_in_one_directory(here: Path) -> None:
    def churn(number: int) -> None:
        for step in range(150):
            path = here / f"{number}-{step % 7}"
            path.write_bytes(bytes([number]) * step)
            if step % 3 == 0:
                path.rename(here / f"{number}-moved")
            elif step % 3 == 1:
                path.unlink()
            os.listdir(here)

    at_once(*(lambda number=number: churn(number) for number in range(4)))
    for path in here.iterdir():
        assert set(path.read_bytes()) <= {int(path.name[0])}


def test_renaming_over_a_file_that_others_read(here: Path) -> None:
    """The classic atomic update: a reader finds one version, whole."""
    path = here / "config"
    path.write_bytes(b"0" * 50_000)

    def update() -> None:
        for version in range(1, 80):
            new = here / "config.new"
            new.write_bytes(b"%d" % (version % 10) * 50_000)
            new.rename(path)

    def read() -> None:
        for _ in range(150):
            content = path.read_bytes()
            assert len(content) == 50_000
            assert len(set(content)) == 1

    at_once(update, read, read)
