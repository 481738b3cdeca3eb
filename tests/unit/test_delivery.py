"""Public images for engines: the one that was checked, under a name that the engine can have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cisfs.cli.main import main
from cisfs.errors import EngineError, UsageError
from cisfs.registry.reference import Reference
from cisfs.runtime.images import config, delivery, store, tools

DIGEST = f"sha256:{'1' * 64}"
NAME = "registry.example/team/app"
CONFIG = b'{"architecture":"amd64"}'


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, ...]]:
    """What skopeo, or the store of the embedded engine, is asked for."""
    found: list[tuple[str, ...]] = []

    def provide(reference: object, _store: Path, pull: str) -> store.Image:
        found.append((str(reference), pull))
        (tmp_path / "config.json").write_bytes(CONFIG)
        return store.Image(DIGEST, tmp_path / "rootfs", config.parse(CONFIG, NAME))

    def deliver(source: str, target: str, **_options: Any) -> None:
        found.append((source, target))

    monkeypatch.setattr(tools, "deliver", deliver)
    monkeypatch.setattr(store, "provide", provide)
    return found


def give(name: str, engine: str, content: bytes = CONFIG) -> None:
    reference = Reference.parse(name)
    delivery.deliver(reference, DIGEST, content, engine, Path("store"), plain=False)


@pytest.mark.parametrize("digest", ["", f"@{DIGEST}"])
@pytest.mark.parametrize(
    ("engine", "transport"), [("docker", "docker-daemon"), ("podman", "containers-storage")]
)
def test_what_was_checked_is_given(
    asked: list[tuple[str, ...]], engine: str, transport: str, digest: str
) -> None:
    """Whatever the tag stands for by then."""
    give(f"{NAME}:1{digest}", engine)
    assert asked == [(f"docker://{NAME}@{DIGEST}", f"{transport}:{NAME}:1")]


@pytest.mark.parametrize(
    ("name", "source"),
    [
        (f"{NAME}:1", f"{NAME}:1"),
        (f"{NAME}@{DIGEST}", f"{NAME}@{DIGEST}"),
        (f"{NAME}:1@{DIGEST}", f"{NAME}@{DIGEST}"),
    ],
)
def test_the_embedded_engine_knows_it_by_what_it_is_run_by(
    asked: list[tuple[str, ...]], name: str, source: str
) -> None:
    give(name, "embedded")
    assert asked == [(f"docker://{source}", "always")]


@pytest.mark.usefixtures("asked")
def test_a_tag_that_moves_meanwhile() -> None:
    with pytest.raises(EngineError, match="stands for another image than a moment ago"):
        give(f"{NAME}:1", "embedded", b"{}")


@pytest.mark.parametrize("engine", ["docker", "podman"])
def test_no_engine_names_an_image_by_its_digest(
    asked: list[tuple[str, ...]], engine: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is refused before anything is fetched."""
    with pytest.raises(UsageError, match="write NAME:TAG@DIGEST"):
        give(f"{NAME}@{DIGEST}", engine)
    assert main(["pull", f"localhost:1/team/app@{DIGEST}", "--engine", engine]) == 2
    assert "has no tag" in capsys.readouterr().err
    assert asked == []
