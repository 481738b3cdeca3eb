"""Directories that others remove while they are made."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cisfs.mount import rundir


@pytest.fixture(autouse=True)
def _nothing_stays_open() -> Iterator[None]:
    before = os.listdir("/proc/self/fd")
    yield
    assert os.listdir("/proc/self/fd") == before


def test_they_are_made_and_removed_when_they_are_empty(tmp_path: Path) -> None:
    outer, inner = tmp_path / "outer", tmp_path / "outer/inner"
    rundir.make(outer, inner)
    rundir.make(outer, inner)
    assert stat.S_IMODE(inner.stat().st_mode) == 0o700
    (outer / "another's").touch()
    rundir.remove(inner, outer)
    assert os.listdir(tmp_path) == ["outer"]
    assert os.listdir(outer) == ["another's"]


def test_one_that_is_removed_just_then_is_to_be_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = os.mkdir

    def removed(path: Path, mode: int) -> None:
        try:
            make(path, mode)
        finally:
            os.rmdir(path)

    (tmp_path / "there").mkdir()
    monkeypatch.setattr(os, "mkdir", removed)
    with pytest.raises(FileNotFoundError):
        rundir.make(tmp_path / "there")


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        rundir.make(tmp_path / "file")


def test_one_is_claimed_by_one(tmp_path: Path) -> None:
    path = tmp_path / "outer/inner"
    held = rundir.claim(path.parent, path)
    assert rundir.try_claim(path.parent, path) is None
    assert rundir.abandoned(path) is None
    os.close(held)
    left = rundir.abandoned(path)
    assert left is not None
    assert rundir.try_claim(path.parent, path) is None
    os.close(left)
    again = rundir.try_claim(path.parent, path)
    assert again is not None
    os.close(again)
    assert rundir.abandoned(tmp_path / "none") is None


def once_after_locking(monkeypatch: pytest.MonkeyPatch, happens: Callable[[], object]) -> None:
    """Have something happen between a directory's being opened and its being locked."""
    flock, todo = fcntl.flock, [happens]

    def lock(fd: int, how: int) -> None:
        if todo:
            todo.pop()()
        flock(fd, how)

    monkeypatch.setattr(fcntl, "flock", lock)


def test_one_that_is_removed_before_it_is_locked_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "there"
    once_after_locking(monkeypatch, path.rmdir)
    fd = rundir.claim(path)
    assert os.path.samestat(os.fstat(fd), path.stat())
    os.close(fd)
    once_after_locking(monkeypatch, path.rmdir)
    assert rundir.try_claim(path) is None


def test_what_took_the_name_of_an_abandoned_one_is_not_abandoned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "there"
    path.mkdir()

    def replaced() -> None:
        path.rename(tmp_path / "old")
        path.mkdir()

    once_after_locking(monkeypatch, replaced)
    assert rundir.abandoned(path) is None
