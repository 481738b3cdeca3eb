"""The kernel's settings of devices, as far as they are there."""

from __future__ import annotations

from pathlib import Path

import pytest

from cisfs.mount import bdi


@pytest.fixture(autouse=True)
def devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(bdi, "_DIRECTORY", tmp_path / "bdi")
    return tmp_path / "bdi"


def test_what_is_set_is_set_back(devices: Path) -> None:
    device = devices / "7:3"
    device.mkdir(parents=True)
    bdi.write_soon("7:3")
    bdi.read_ahead("7:3")
    assert (device / "read_ahead_kb").read_text() == "1024"
    assert (device / "strict_limit").read_text() == "1"
    bdi.restore("7:3")
    assert (device / "read_ahead_kb").read_text() == "128"
    assert (device / "strict_limit").read_text() == "0"


def test_what_cannot_be_set_is_no_error() -> None:
    bdi.read_ahead("no:such")
    bdi.restore("no:such")


def test_names_are_found_by_how_they_begin(devices: Path) -> None:
    assert bdi.names("erofs") == set()
    for name in ("erofs-1", "erofs-2", "7:3"):
        (devices / name).mkdir(parents=True)
    assert bdi.names("erofs") == {"erofs-1", "erofs-2"}


def test_a_device_has_the_kernels_name() -> None:
    assert bdi.name_of(7 << 8 | 3) == "7:3"
