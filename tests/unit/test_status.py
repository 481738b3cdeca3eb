"""`cisfs status`: what is known of layers, from a keyring and lists of the test's own."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cisfs.cli.main import main
from cisfs.crypto.keys import SecretKey
from cisfs.keys import keyring
from cisfs.layer import opening, store
from cisfs.mount.mounted import Mounted
from cisfs.runtime import listing, status, workspace
from cisfs.runtime.holdings import Holding
from cisfs.runtime.listing import Registration, State
from cisfs.runtime.oci import record
from tests.unit import layers, vaults
from tests.unit.keyrings import private_ring
from tests.unit.test_ordinary_user import as_ordinary_user

SECRET = SecretKey(bytes(range(32)))


@pytest.fixture
def mounts() -> list[Mounted]:
    return []


@pytest.fixture(autouse=True)
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mounts: list[Mounted]) -> Iterator[Path]:
    """A host of the test's own; its directory of layers."""
    run, var = tmp_path / "run", tmp_path / "var"
    monkeypatch.setattr(workspace, "BASE", run)
    monkeypatch.setattr(listing, "DIRECTORY", run / "embedded")
    monkeypatch.setattr(record, "BASE", run / "containers")
    monkeypatch.setattr(store, "DIRECTORY", var / "layers")
    monkeypatch.setattr(status, "STORE", var)
    monkeypatch.setattr(status, "mounted", lambda: mounts)
    (var / "layers").mkdir(parents=True)
    (var / "scratch").mkdir()
    with private_ring():
        yield var / "layers"


def told(capsys: pytest.CaptureFixture[str], *words: str | Path) -> list[dict[str, Any]]:
    assert main(["status", "--json", *map(str, words)]) == 0
    found = json.loads(capsys.readouterr().out)
    assert isinstance(found, list)
    return found


def test_a_host_that_knows_of_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys) == []
    assert main(["status"]) == 0
    assert capsys.readouterr().out.split() == ["LAYER", "STATE", "MOUNTED", "AT", "CONTAINERS"]


def test_all_that_is_known_of_a_layer(
    host: Path, mounts: list[Mounted], capsys: pytest.CaptureFixture[str]
) -> None:
    vault = vaults.make(host / "db.vault")
    key = opening.key_id(vault)
    locked: dict[str, Any] = {
        "layer": str(vault),
        "key": key,
        "state": "locked",
        "until": None,
        "stops": False,
        "mounted": [],
        "containers": [],
    }
    assert told(capsys) == told(capsys, vault) == told(capsys, "db.vault") == [locked]
    keyring.store(key, SECRET, 600, stops=True)
    mounts += [Mounted(vault, Path("/mnt")), Mounted(Path("/elsewhere"), Path("/other"))]
    entry = Registration(State("e" * 32, "web", "", (), 1.0, holdings=(Holding("/moved", key),)))
    try:
        (found,) = told(capsys, vault)
    finally:
        entry.withdraw()
    assert 590 < found.pop("until") - time.time() <= 600
    web = {"name": "web", "id": "e" * 32, "kind": "embedded"}
    seen = {"state": "unlocked", "stops": True, "mounted": ["/mnt"], "containers": [web]}
    assert found == {name: value for name, value in {**locked, **seen}.items() if name != "until"}


def test_the_table(host: Path, mounts: list[Mounted], capsys: pytest.CaptureFixture[str]) -> None:
    layers.seal(host / "a.cis", layers.image(layers.UNIT))
    vault = vaults.make(host / "b\x1b.vault")
    keyring.store(opening.key_id(host / "a.cis"), SECRET, None)
    keyring.store(opening.key_id(vault), SECRET, 3600, stops=True)
    mounts.append(Mounted(vault, Path("/mnt")))
    entry = Registration(
        State("e" * 32, "web", "", (), 1.0, holdings=(Holding(str(host / "a.cis"), "x"),))
    )
    try:
        assert main(["status"]) == 0
    finally:
        entry.withdraw()
    _, first, second = capsys.readouterr().out.splitlines()
    assert first.split() == [str(host / "a.cis"), "unlocked", "-", "web"]
    assert second.startswith(f"{host}/b?.vault   unlocked until ")
    assert second.endswith(", then stopped   /mnt         -")


def test_what_is_known_in_other_ways(
    host: Path, tmp_path: Path, mounts: list[Mounted], capsys: pytest.CaptureFixture[str]
) -> None:
    """Mounted or used somewhere; an unlocked scratch; a key whose layer is elsewhere."""
    mounted, used = vaults.make(tmp_path / "mounted"), vaults.make(tmp_path / "used")
    mounts += [Mounted(mounted, Path("/mnt")), Mounted(tmp_path / "gone", Path("/dead"))]
    scratches = host.parent / "scratch"
    unlocked = vaults.make(scratches / "db")
    vaults.make(scratches / "locked")
    for path in (unlocked, vaults.make(tmp_path / "elsewhere")):
        keyring.store(opening.key_id(path), SECRET, 600)
    entry = Registration(
        State("e" * 32, "web", "", (), 1.0, holdings=(Holding(str(used), opening.key_id(used)),))
    )
    try:
        found = told(capsys)
    finally:
        entry.withdraw()
    assert [(each["layer"], each["state"]) for each in found] == [
        (str(tmp_path / "gone"), "unreadable"),
        (str(mounted), "locked"),
        (str(used), "locked"),
        (str(unlocked), "unlocked"),
        (None, "unlocked"),
    ]
    assert "No such file" in found[0]["error"]
    assert found[-1]["key"] == opening.key_id(tmp_path / "elsewhere")


def test_what_is_no_layer(host: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (host / "notes.txt").write_text("no layer")
    layers.seal(host / "damaged.cis", layers.image(layers.UNIT))
    os.truncate(host / "damaged.cis", 20_000)
    (found,) = told(capsys)
    assert found["layer"] == str(host / "damaged.cis")
    assert found["state"] == "unreadable"
    assert main(["status", str(host / "notes.txt")]) == 10
    assert main(["status", str(host / "damaged.cis")]) == 11


def test_containers_are_for_root_to_see(monkeypatch: pytest.MonkeyPatch) -> None:
    place = Path(tempfile.mkdtemp(prefix="cisfs-test-"))
    place.chmod(0o777)
    (place / "run").mkdir(0)
    monkeypatch.setattr(workspace, "BASE", place / "run")
    monkeypatch.setattr(store, "DIRECTORY", place / "layers")

    def scenario() -> None:
        (place / "layers").mkdir()
        vaults.make(place / "layers/db")
        (found,) = status.of_all()
        assert (found.path, found.terms, found.users) == (place / "layers/db", None, None)
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            main(["status"])
        assert said.getvalue().splitlines()[1].endswith("locked   -            ?")

    try:
        as_ordinary_user(scenario)
    finally:
        shutil.rmtree(place)
