"""Directories that others remove while they are made."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from cisfs.mount import rundir


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
