"""Which containers use a layer, and `cisfs lock --stop` where there is none to stop for real."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from cisfs.cli.main import main
from cisfs.crypto.keys import SecretKey
from cisfs.errors import EngineError, NoKeyError, UsageError
from cisfs.keys import keyring
from cisfs.keys.credentials import MasterKey
from cisfs.layer import opening
from cisfs.runtime import commit, holdings, listing, usage, workspace
from cisfs.runtime.holdings import Holding
from cisfs.runtime.listing import Registration, State
from cisfs.runtime.oci import record
from cisfs.runtime.usage import User
from tests.unit import vaults
from tests.unit.keyrings import private_ring

KEY = "11" * 16


@pytest.fixture(autouse=True)
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A host of the test's own: its /run/cisfs, its keyring."""
    base = tmp_path / "run"
    monkeypatch.setattr(workspace, "BASE", base)
    monkeypatch.setattr(listing, "DIRECTORY", base / "embedded")
    monkeypatch.setattr(record, "BASE", base / "containers")
    with private_ring():
        yield base


def made_by_an_engine(container: str, *held: Holding) -> record.Place:
    place = record.claim(record.name_of(container, "/run/x"))
    fields = {"container": container, "holdings": [{"path": h.path, "key": h.key} for h in held]}
    place.write(fields)
    return place


def test_a_host_without_containers_has_no_users() -> None:
    assert usage.users() == []


def test_containers_of_both_kinds_are_users(host: Path) -> None:
    held = Holding("/layers/a.cis", KEY)
    place = made_by_an_engine("c" * 64, held)
    bare = made_by_an_engine("without-layers")
    entry = Registration(State("e" * 32, "web", "image", ("sh",), 1.0, holdings=(held,)))
    other = Registration(State("f" * 32, "bare", "image", ("sh",), 2.0))
    try:
        found = [(each.name, each.identifier, each.kind) for each in usage.users()]
        assert found == [("c" * 12, "c" * 64, "runtime"), ("web", "e" * 32, "embedded")]
        assert all(each.holdings == (held,) for each in usage.users())
        entry.ended(0)
        assert [each.kind for each in usage.users()] == ["runtime"]
    finally:
        for each in (entry, other):
            each.withdraw()
        for made in (place, bare):
            made.remove()
            os.close(made.lock)
    assert not host.exists()


def test_what_an_earlier_cisfs_started_is_no_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its record, or its state in memory, does not say what it holds."""
    place = record.claim("old")
    place.write({"container": "old", "layers": []})
    with monkeypatch.context() as patch:
        patch.setattr(listing, "asdict", lambda state: asdict(state, dict_factory=without_holdings))
        entry = Registration(State("e" * 32, "web", "", ("sh",), 1.0))
    try:
        assert [each.state.name for each in listing.containers()] == ["web"]
        assert usage.users() == []
    finally:
        entry.withdraw()
        place.remove()
        os.close(place.lock)


def without_holdings(fields: list[tuple[str, object]]) -> dict[str, object]:
    return {name: value for name, value in fields if name != "holdings"}


@pytest.mark.parametrize(
    ("path", "key", "is_used"),
    [
        ("/layers/a.cis", "22" * 16, True),
        ("/layers/b.cis", KEY, True),
        ("/layers/b.cis", "22" * 16, False),
        ("/scratch/new", "33" * 16, True),
        ("/layers/b.cis", "", False),
    ],
)
def test_a_layer_is_known_by_its_path_or_its_key(path: str, key: str, is_used: bool) -> None:
    held = (Holding("/layers/a.cis", KEY), Holding("/scratch/new", ""))
    user = User("web", "web", "embedded", held, lambda _: None)
    assert user.uses(Path(path), key) == is_used


def test_all_are_stopped_though_one_goes_on() -> None:
    ended: list[float] = []

    def refuse(_seconds: float) -> None:
        raise EngineError("container b does not end")

    held = (Holding("/a", KEY),)
    wanted = [
        User("a", "a", "runtime", held, ended.append),
        User("b", "b", "runtime", held, refuse),
    ]
    said = {user.name: str(error) for user, error in usage.stop_all(wanted, 7.0)}
    assert said == {"a": "None", "b": "container b does not end"}
    assert ended == [7.0]


def test_locking_all_without_containers(capsys: pytest.CaptureFixture[str]) -> None:
    keyring.store(KEY, SecretKey(bytes(32)), 60)
    assert main(["lock", "--all", "--stop"]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "locked 1 layer"


def test_a_key_that_goes_during_the_start_is_noticed(tmp_path: Path) -> None:
    path = vaults.make(tmp_path / "v")
    master = MasterKey(opening.master_key(path, vaults.KEY))
    key = opening.key_id(path)
    keyring.store(key, master.secret, 60)
    opened = holdings.open_layers([path], lambda _: master)
    given = holdings.open_layers([path], lambda _: vaults.KEY)
    assert opened.holdings == given.holdings == (Holding(str(path), key),)
    holdings.confirm(opened)
    keyring.forget(key)
    with pytest.raises(NoKeyError, match="was locked just now"):
        holdings.confirm(opened)
    holdings.confirm(given)
    for each in (opened, given):
        each.layers[0].close()


def test_of_several_layers_none_stays_open_when_one_does_not_open(tmp_path: Path) -> None:
    paths = [vaults.make(tmp_path / "a"), tmp_path / "absent"]
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(Exception, match="neither a vault nor"):
        holdings.open_layers(paths, lambda _: vaults.KEY)
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_layer_that_is_named_twice_is_refused(tmp_path: Path) -> None:
    path = vaults.make(tmp_path / "v")
    (tmp_path / "link").symlink_to(path)
    before = set(os.listdir("/proc/self/fd"))
    with pytest.raises(UsageError, match="link is named twice"):
        holdings.open_layers([path, tmp_path / "link"], lambda _: vaults.KEY)
    assert set(os.listdir("/proc/self/fd")) == before


def test_a_scratch_that_is_not_made_yet_is_held_by_its_path(tmp_path: Path) -> None:
    assert holdings.of_scratch(None) == ()
    assert holdings.of_scratch(tmp_path / "new") == (Holding(str(tmp_path / "new"), ""),)
    made = vaults.make(tmp_path / "made")
    assert holdings.of_scratch(made) == (Holding(str(made), opening.key_id(made)),)


def test_what_is_listed_can_be_printed() -> None:
    entry = Registration(State("e" * 32, "web", "", ("sh",), 1.0, holdings=(Holding("/a", KEY),)))
    try:
        (found,) = listing.containers()
        assert found.state.holdings == (Holding("/a", KEY),)
        assert main(["ps", "--json"]) == 0
    finally:
        entry.withdraw()


def test_containers_of_root_are_not_said_to_be_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    entry = Registration(State("e" * 32, "web", "", ("sh",), 1.0))
    with monkeypatch.context() as ordinary:
        ordinary.setattr(os, "access", lambda *_: False)
        for words in (["ps"], ["logs", "web"], ["stop", "web"], ["rm", "web"]):
            assert main(words) == EngineError.exit_code
            assert "root's: use sudo" in capsys.readouterr().err
        assert main(["status"]) == 0
        ordinary.setattr(os, "geteuid", lambda: 1000)
        assert main(["exec", "web", "sh"]) == EngineError.exit_code
        with pytest.raises(EngineError, match="use sudo"):
            commit.find("web")
    entry.withdraw()
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert main(["ps"]) == 0  # there are none
