"""What `cisfs-runtime` says when it cannot go on: in the engine's log, in one line."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from cisfs.runtime.oci import create, main


def complaint(log: Path, *words: str) -> str:
    """Run it, and return the one message in the log."""
    sys.argv = ["cisfs-runtime", "--log", str(log), "--log-format", "json", *words]
    assert main.main() == 1
    (line,) = log.read_text().splitlines()
    return str(json.loads(line)["msg"])


@pytest.fixture(autouse=True)
def arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [])


def test_a_fault_of_ours_reaches_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise KeyError("what nobody thought of")

    monkeypatch.setattr(create, "prepare", fail)
    said = complaint(tmp_path / "log", "--runtime-binary", "/bin/true", "create", "id")
    assert said == "a fault of cisfs-runtime: KeyError: 'what nobody thought of'"


@pytest.mark.parametrize("name", ["", "no-such-runtime"])
def test_a_runtime_that_is_not_there_is_named(tmp_path: Path, name: str) -> None:
    said = complaint(tmp_path / "log", "--runtime-binary", name, "list")
    assert said == f"the runtime {name!r} is not installed"
