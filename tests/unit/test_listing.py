"""The list of containers, while the directory that it is in comes and goes."""

from __future__ import annotations

from pathlib import Path

import pytest

from cisfs.errors import EngineError
from cisfs.runtime import listing, workspace
from cisfs.runtime.listing import Container, Registration, State


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    base = tmp_path / "run"
    monkeypatch.setattr(workspace, "BASE", base)
    monkeypatch.setattr(listing, "DIRECTORY", base / "embedded")
    return base / "embedded"


def named(name: str, identifier: str) -> State:
    return State(identifier, name, "image", ("sh",), 1.0)


def test_a_name_is_taken_by_one() -> None:
    entry = Registration(named("web", "a" * 32))
    with pytest.raises(EngineError, match="container of that name"):
        Registration(named("web", "b" * 32))
    entry.withdraw()
    Registration(named("web", "c" * 32)).withdraw()


def test_a_list_that_is_replaced_meanwhile_is_looked_at_anew(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever ends removes an empty one, and whoever comes next makes another, and is in that."""
    read = listing._read_all
    directories, others = [directory], list[Registration]()

    def replaced() -> list[Container]:
        found = read()
        if directories:
            directories.pop().rmdir()
            others.append(Registration(named("web", "b" * 32)))
        return found

    monkeypatch.setattr(listing, "_read_all", replaced)
    with pytest.raises(EngineError, match="container of that name"):
        Registration(named("web", "a" * 32))
    others[0].withdraw()
