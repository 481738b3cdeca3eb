"""What `cisfs-runtime exec` changes for a container of ours, and for no other."""

from __future__ import annotations

import json
import resource
from pathlib import Path
from typing import Any

import pytest

from cisfs.runtime.oci import execution, line, record

CORE = {"type": "RLIMIT_CORE", "soft": 1 << 30, "hard": 1 << 30}
FILES = {"type": "RLIMIT_NOFILE", "soft": 64, "hard": 64}


@pytest.fixture(autouse=True)
def limits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The limits that are set; the container `ours` is of ours."""
    found: list[Any] = []
    monkeypatch.setattr(record, "BASE", tmp_path / "containers")
    (record.BASE / record.name_of("ours", "/run/runc")).mkdir(parents=True)
    monkeypatch.setattr(resource, "setrlimit", lambda *words: found.append(words))
    return found


def prepared(path: Path, container: str, process: object) -> line.Line:
    path.write_text(json.dumps(process))
    parsed = line.parse(["exec", "--process", str(path), container])
    execution.prepare(parsed)
    return parsed


def test_what_the_engine_allows_is_taken_back(tmp_path: Path, limits: list[Any]) -> None:
    parsed = prepared(tmp_path / "p", "ours", {"args": ["sh"], "rlimits": [CORE, FILES]})
    assert limits == [(resource.RLIMIT_CORE, (1, 1))]
    assert parsed.words[:3] == ["exec", "--process", str(tmp_path / "p")]
    assert parsed.words[-1] == "ours"
    assert parsed.words[-3] == "--process"
    assert json.loads(Path(parsed.words[-2]).read_text()) == {
        "args": ["sh"],
        "rlimits": [FILES, {"type": "RLIMIT_CORE", "soft": 1, "hard": 1}],
    }


@pytest.mark.parametrize("process", [{"args": ["sh"]}, [], {"rlimits": 7}])
def test_without_limits_of_the_engine_those_of_the_process_are_enough(
    tmp_path: Path, limits: list[Any], process: object
) -> None:
    parsed = prepared(tmp_path / "p", "ours", process)
    assert limits == [(resource.RLIMIT_CORE, (1, 1))]
    assert parsed.words == ["exec", "--process", str(tmp_path / "p"), "ours"]


def test_other_containers_are_left_alone(tmp_path: Path, limits: list[Any]) -> None:
    parsed = prepared(tmp_path / "p", "other", {"rlimits": [CORE]})
    assert limits == []
    assert parsed.words == ["exec", "--process", str(tmp_path / "p"), "other"]
