"""`cisfs scratch list` and `destroy`: what is said of scratches, and what is left of them."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cisfs.cli.main import main
from cisfs.crypto.keys import SecretKey
from cisfs.keys import keyring
from cisfs.keys.credentials import RawKey
from cisfs.layer import opening
from cisfs.layer.scratch_persistent import PersistentImage
from cisfs.runtime import listing, scratches, usage, workspace
from cisfs.runtime.holdings import Holding
from cisfs.runtime.listing import Registration, State
from cisfs.runtime.oci import record
from cisfs.runtime.usage import User
from tests.unit.keyrings import private_ring

KEY = RawKey(bytes(range(32)))
SIZE = 16 << 20


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The directory of scratches of a host of the test's own, with one in it."""
    run = tmp_path / "run"
    monkeypatch.setattr(workspace, "BASE", run)
    monkeypatch.setattr(listing, "DIRECTORY", run / "embedded")
    monkeypatch.setattr(record, "BASE", run / "containers")
    directory = tmp_path / "scratch"
    directory.mkdir(0o700)
    make(directory / "db")
    with private_ring():
        yield directory


def make(path: Path) -> None:
    image = PersistentImage.create(path, KEY, SIZE)
    image.write(0, memoryview(b"x" * (1 << 20)))
    image.sync()
    image.close()


def call(directory: Path, *words: str) -> int:
    return main(["scratch", words[0], "--store", str(directory.parent), *words[1:]])


def listed(directory: Path, capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    assert call(directory, "list", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert isinstance(found, list)
    return found


def test_containers_are_looked_at_once_however_many_scratches_there_are(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        (scratch / name).mkdir()
    looks: list[None] = []
    users = usage.users

    def looked() -> list[User]:
        looks.append(None)
        return users()

    monkeypatch.setattr(usage, "users", looked)
    with used_by("web", scratch / "db"):
        found = scratches.kept(scratch.parent)
    assert [(each.name, each.users) for each in found] == [("a", ()), ("b", ()), ("db", ("web",))]
    assert len(looks) == 1


@contextlib.contextmanager
def used_by(name: str, path: Path) -> Iterator[None]:
    """A container that has a scratch open."""
    image = PersistentImage.open(path, KEY)
    entry = Registration(State("e" * 32, name, "", (), 1.0, holdings=(Holding(str(path), ""),)))
    try:
        yield
    finally:
        entry.withdraw()
        image.close()


def test_a_host_without_scratches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["scratch", "list", "--store", str(tmp_path)]) == 0
    assert capsys.readouterr().out == "NAME   SIZE   USED   MADE   WRITTEN   CONTAINERS\n"


def test_what_is_said_of_a_scratch(scratch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (found,) = listed(scratch, capsys)
    stored = list((scratch / "db").iterdir())
    assert found["used"] == sum(path.stat().st_blocks * 512 for path in stored)
    assert found["used"] >= 1 << 20
    assert (found["name"], found["size"]) == ("db", SIZE)
    assert (found["in_use"], found["containers"]) == (False, [])
    assert found["made"] <= found["written"]
    with used_by("web", scratch / "db"):
        (found,) = listed(scratch, capsys)
        assert (found["in_use"], found["containers"]) == (True, ["web"])
        assert call(scratch, "list") == 0
    row = capsys.readouterr().out.splitlines()[1].split()
    assert (row[0], row[1], row[-1]) == ("db", "16.0M", "web")


def test_a_lock_alone_is_use(scratch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fd = os.open(scratch / "db", os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX)
    assert listed(scratch, capsys)[0]["in_use"]
    assert call(scratch, "list") == 0
    assert capsys.readouterr().out.endswith("in use\n")
    assert call(scratch, "destroy", "db") == 15
    assert "scratch db is in use; unmount it first" in capsys.readouterr().err
    os.close(fd)


def test_what_is_destroyed_is_gone_and_so_is_its_key(
    scratch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(scratch / "other")
    key = opening.key_id(scratch / "db")
    keyring.store(key, SecretKey(bytes(32)), 60)
    assert call(scratch, "destroy", "db", "db") == 0
    assert capsys.readouterr().out == "db\n"
    assert [path.name for path in scratch.iterdir()] == ["other"]
    assert keyring.find(key) is None
    assert call(scratch, "destroy", "db") == 2
    assert "there is no scratch 'db'" in capsys.readouterr().err


def test_the_keys_go_first_and_are_overwritten(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed right after, the rest is of no use to anybody; and can be destroyed all the same."""
    os.link(scratch / "db/vault.json", scratch.parent / "copy")  # of the same blocks
    before = (scratch.parent / "copy").read_bytes()

    def killed(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", killed)
        assert call(scratch, "destroy", "db") == 130
    after = (scratch.parent / "copy").read_bytes()
    assert len(after) == len(before)
    assert b"slots" not in after
    assert not (scratch / "db/vault.json").exists()
    (found,) = scratches.kept(scratch.parent)
    assert found.size is None
    assert call(scratch, "destroy", "db") == 0
    assert list(scratch.iterdir()) == []


def test_none_is_destroyed_if_one_is_in_use(
    scratch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make(scratch / "free")
    with used_by("web", scratch / "db"):
        assert call(scratch, "destroy", "free", "db") == 15
        assert "in use by container web: stop that first" in capsys.readouterr().err
    assert len(list(scratch.iterdir())) == 2


def test_no_link_is_followed(scratch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    precious = scratch.parent / "precious"
    precious.mkdir()
    (precious / "file").write_text("kept")
    (scratch / "link").symlink_to(precious)
    assert [each["name"] for each in listed(scratch, capsys)] == ["db"]
    assert call(scratch, "destroy", "link") == 2
    (scratch / "db/inside").symlink_to(precious)
    (scratch / "db/vault.json").unlink()
    (scratch / "db/vault.json").symlink_to(precious / "file")
    assert call(scratch, "destroy", "db") == 0
    assert (precious / "file").read_text() == "kept"


@pytest.mark.parametrize("name", ["..", ".", "", "/etc", "a/b"])
def test_what_is_no_name(scratch: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(scratch, "destroy", "--", name) == 2
    assert "there is no scratch" in capsys.readouterr().err
    assert (scratch / "db").exists()


@pytest.mark.parametrize(("answer", "left"), [("y\n", 0), ("Yes\n", 0), ("n\n", 1), ("", 1)])
def test_at_a_terminal_it_asks(
    scratch: Path, answer: str, left: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = os.openpty()
    os.write(ours, answer.encode() or b"\x04")
    with open(theirs) as terminal, monkeypatch.context() as patch:
        patch.setattr(sys, "stdin", terminal)
        assert call(scratch, "destroy", "db") == (2 if left else 0)
    os.close(ours)
    assert len(list(scratch.iterdir())) == left
