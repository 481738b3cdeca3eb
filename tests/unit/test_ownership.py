"""Directories of our own: made for us alone, and refused when others can write to them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from cisfs.errors import UsageError
from cisfs.runtime.ownership import owned


@pytest.fixture(autouse=True)
def no_umask() -> Iterator[None]:
    """As in a server: what is made has the mode that was asked for, parents included."""
    before = os.umask(0)
    yield
    assert os.umask(before) == 0


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_what_is_made_is_for_us_alone_and_so_are_its_parents(tmp_path: Path) -> None:
    owned(tmp_path / "a/b/c", 0o700)
    assert (mode(tmp_path / "a/b/c"), mode(tmp_path / "a/b"), mode(tmp_path / "a")) == (
        0o700,
        0o755,
        0o755,
    )
    owned(tmp_path / "a/b/c", 0o700)


@pytest.mark.parametrize("loose", [0o777, 0o770, 0o702, 0o1777])
def test_what_others_can_write_to_is_refused(tmp_path: Path, loose: int) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store").chmod(loose)
    with pytest.raises(UsageError, match="chmod go-w"):
        owned(tmp_path / "store", 0o700)


def test_a_file_is_no_directory(tmp_path: Path) -> None:
    (tmp_path / "store").touch()
    with pytest.raises(FileExistsError):
        owned(tmp_path / "store", 0o700)
