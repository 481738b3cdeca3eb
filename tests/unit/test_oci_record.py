"""The directories of containers: claimed once, swept when nobody holds them."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from cisfs.errors import BusyError
from cisfs.runtime.oci import record


@pytest.fixture(autouse=True)
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    below = tmp_path / "run" / "containers"
    monkeypatch.setattr(record, "BASE", below)
    return below


def test_a_record_is_found_until_it_is_removed(base: Path) -> None:
    place = record.claim("a")
    place.write({"container": "a"})
    assert [(path.name, each["container"]) for path, each in record.records()] == [("a", "a")]
    place.remove()
    os.close(place.lock)
    assert list(record.records()) == []
    assert not base.exists()


def test_a_name_is_claimed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "_PATIENCE", 0.05)
    place = record.claim("a")
    with pytest.raises(BusyError, match="a still run"):
        record.claim("a")
    os.close(place.lock)


def test_a_name_is_waited_for() -> None:
    place = record.claim("a")
    place.write({"container": "old"})

    def end() -> None:
        place.remove()
        os.close(place.lock)

    timer = threading.Timer(0.1, end)
    timer.start()
    again = record.claim("a")
    timer.join()
    assert again.mounts.is_dir()
    assert list(record.records()) == []
    os.close(again.lock)


def test_a_sweep_removes_what_nobody_holds_and_leaves_the_rest(base: Path) -> None:
    held, left = record.claim("held"), record.claim("left")
    os.close(left.lock)
    record.sweep()
    assert [path.name for path in base.iterdir()] == ["held"]
    os.close(held.lock)
    record.sweep()
    assert not base.exists()


def test_equal_ids_of_two_runtimes_have_two_names() -> None:
    assert record.name_of("id", "/run/a") != record.name_of("id", "/run/b")
    assert record.name_of("x" * 1024, "/r").startswith("x" * 64 + "-")
    assert record.name_of("x" * 65, "/r") != record.name_of("x" * 66, "/r")


def test_a_root_may_be_spelled_in_several_ways(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("real")
    names = {
        record.name_of("id", str(tmp_path / spelling)) for spelling in ("real", "real/", "link")
    }
    assert len(names) == 1
