"""`cisfs key`, and the options -r and -i, as they are typed."""

from __future__ import annotations

import json
import os
import secrets
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cisfs.cli.main import main
from cisfs.keys import credentials
from cisfs.keys.credentials import Passphrase, RawKey
from cisfs.layer import vault_rotation
from cisfs.layer.renaming import renameat2
from tests.unit import layers
from tests.unit.vaults import KEY

pytestmark = pytest.mark.slow


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with some keys, where no key is unlocked and no passphrase is at hand."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CISFS_PASSPHRASE_FILE", raising=False)
    monkeypatch.setattr("cisfs.layer.unlocked.find", lambda _path: None)
    for name in ("ann", "ben"):
        assert main(["keygen", "-o", f"{name}.key"]) == 0
    private("file.key", secrets.token_bytes(32))
    private("words", b"correct horse\n")
    return tmp_path


def private(name: str, content: bytes) -> None:
    path = Path(name)
    path.touch(0o600)
    path.write_bytes(content)


def listed(layer: str, capsys: pytest.CaptureFixture[str]) -> list[dict[str, str]]:
    capsys.readouterr()
    assert main(["key", "list", "--json", layer]) == 0
    slots: list[dict[str, str]] = json.loads(capsys.readouterr().out)["slots"]
    return slots


def opens(layer: str, *words: str) -> bool:
    code = main(["verify", layer, *words])
    assert code in (0, 12)
    return code == 0


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("kind", ["vault", "layer"])
def test_a_team_comes_and_goes(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    if kind == "vault":
        assert main(["init", "x", "-r", "ann.key.pub", "-r", "key-file:file.key"]) == 0
    else:
        Path("source").mkdir()
        words = ["-r", "jwe:ann.key.pub", "--key-file", "file.key"]
        assert main(["seal", "source", "-o", "x", *words]) == 0
    assert [slot["type"] for slot in listed("x", capsys)] == ["jwe", "key-file"]
    for identity in ("ann.key", "file.key"):
        assert opens("x", "-i", identity)
    assert not opens("x", "-i", "ben.key")
    added = ["-r", "ben.key.pub", "-r", "passphrase:words"]
    assert main(["key", "add", "x", *added, "-i", "ben.key", "-i", "ann.key"]) == 0
    assert opens("x", "-i", "ben.key")
    assert opens("x", "--passphrase-file", "words")
    ann = listed("x", capsys)[0]["id"]
    assert main(["key", "remove", "x", ann[:6], "-i", "ben.key"]) == 0
    assert capsys.readouterr().out == f"removed {ann} jwe\n"
    assert not opens("x", "-i", "ann.key")
    assert all(opens("x", "-i", each) for each in ("ben.key", "file.key"))


@pytest.mark.usefixtures("here")
def test_a_list_says_whose_the_slots_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "x", "-r", "ann.key.pub", "-r", "passphrase:words"]) == 0
    capsys.readouterr()
    assert main(["key", "list", "x"]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.split()[1:4] == ["jwe", "P-256", "key"]
    assert len(first.split()[4]) == 43
    assert second.split()[1:] == ["passphrase"]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["list", "nothing"], 10, "there is no layer 'nothing'"),
        (["add", "x", "-r", "ann.key", "-i", "ann.key"], 2, "it is a private key"),
        (["add", "x", "-r", "missing", "-i", "ann.key"], 2, "missing: No such file"),
        (["add", "x", "-r", "provider:", "-i", "ann.key"], 2, "names no key provider"),
        (["add", "x", "-r", "key-file:words", "-i", "ann.key"], 2, "has 14 bytes instead of 32"),
        (["add", "x", "-r", "ben.key.pub", "-i", "ben.key"], 12, "tried: ben.key (no slot for it)"),
        (["add", "x", "-r", "ben.key.pub", "-i", "loose"], 2, "others can read private key loose"),
        (["add", "x", "-r", "ben.key.pub", "-i", "ann.key:pass=x"], 2, "can be read by everybody"),
        (["add", "x", "-r", "ben.key.pub", "-i", "ann.key:fd=x"], 2, "no number of a file"),
        (["add", "x", "-r", "ssh.pub", "-i", "ann.key"], 2, "write age:ssh.pub"),
        (["add", "x", "-r", "ssh-rsa AAAA", "-i", "ann.key"], 2, "is no age recipient"),
        (["remove", "x", "12345678", "-i", "ann.key"], 2, "no such key slot"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(
    words: list[str], code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["init", "x", "-r", "ann.key.pub"]) == 0
    Path("loose").touch(0o644)
    Path("ssh.pub").write_text("ssh-rsa AAAA\n")
    before = Path("x/vault.json").read_bytes()
    capsys.readouterr()
    assert main(["key", *words]) == code
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert Path("x/vault.json").read_bytes() == before


@pytest.mark.usefixtures("here")
def test_an_encrypted_identity_takes_its_password_from_a_file() -> None:
    assert main(["keygen", "-o", "eve.key", "--passphrase-file", "words"]) == 0
    assert main(["init", "x", "-r", "eve.key.pub"]) == 0
    assert opens("x", "-i", "eve.key:file=words")
    private("wrong", b"battery staple\n")
    assert main(["verify", "x", "-i", "eve.key:file=wrong"]) == 12


def test_a_key_file_opens_what_it_made(here: Path) -> None:
    layers.seal(here / "old.cis", layers.image(8192))
    private("old.key", KEY.secret)
    assert opens("old.cis", "-i", "old.key")
    assert opens("old.cis", "--key-file", "old.key", "-i", "ann.key")


@pytest.mark.usefixtures("here", "cheap_age")
def test_a_passphrase_opens_slots_of_age_too() -> None:
    assert main(["init", "x", "-r", "age-passphrase:words"]) == 0
    assert opens("x", "--passphrase-file", "words")
    private("wrong", b"battery staple\n")
    assert not opens("x", "--passphrase-file", "wrong")


# -- rotate ----------------------------------------------------------------------------------------


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("kind", ["vault", "layer"])
def test_a_rotation_keeps_public_recipients_and_what_is_given(
    kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    made_for = ["-r", "ann.key.pub", "-r", "ben.key.pub", "-r", "passphrase:words"]
    if kind == "vault":
        assert main(["init", "x", *made_for, "--key-file", "file.key"]) == 0
    else:
        Path("source").mkdir()
        Path("source/file").write_bytes(b"content" * 5000)
        assert main(["seal", "source", "-o", "x", *made_for, "--key-file", "file.key"]) == 0
    before = listed("x", capsys)
    ids = {slot["type"]: slot["id"] for slot in before}
    assert main(["key", "rotate", "x", "-i", "ann.key"]) == 2
    said = capsys.readouterr().err
    assert f"{ids['passphrase']} (passphrase), {ids['key-file']} (key-file); give it" in said
    assert listed("x", capsys) == before
    words = ["--drop", before[1]["id"], "--drop", ids["key-file"], "-r", "passphrase:words"]
    assert main(["key", "rotate", "x", "-i", "ann.key", *words]) == 0
    assert [slot["type"] for slot in listed("x", capsys)] == ["jwe", "passphrase"]
    assert opens("x", "-i", "ann.key")
    assert opens("x", "--passphrase-file", "words")
    assert not opens("x", "-i", "ben.key")
    assert not opens("x", "--key-file", "file.key")
    assert sorted(path.name for path in Path().iterdir() if "rotating" in path.name) == []


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("kind", ["vault", "layer"])
def test_a_rotation_that_is_as_good_as_done_is_not_interrupted(
    kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It would be told then that the layer is as it was."""
    if kind == "vault":
        assert main(["init", "x", "-r", "ann.key.pub"]) == 0
    else:
        Path("source").mkdir()
        assert main(["seal", "source", "-o", "x", "-r", "ann.key.pub"]) == 0
    before = listed("x", capsys)
    real: Callable[..., None] = renameat2 if kind == "vault" else os.rename
    done: list[bytes] = []

    def interrupted(*words: Any, **named: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        real(*words, **named)
        os.kill(os.getpid(), signal.SIGTERM)
        done.append(words[1])

    if kind == "vault":
        monkeypatch.setattr(vault_rotation, "renameat2", interrupted)
        monkeypatch.setattr(vault_rotation, "_check_exchange", lambda *_: None)
    else:
        monkeypatch.setattr(os, "rename", interrupted)
    assert main(["key", "rotate", "x", "-i", "ann.key"]) == 0
    assert done == [b"x"]
    assert listed("x", capsys) != before
    assert not list(Path().glob("*rotating*"))


@pytest.mark.usefixtures("here")
def test_a_rotation_that_is_interrupted_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["init", "x", "-r", "ann.key.pub"]) == 0
    before = listed("x", capsys)
    monkeypatch.setattr(
        "cisfs.runtime.store.hand_over_scratches",
        lambda *_: os.kill(os.getpid(), signal.SIGTERM),
    )
    assert main(["key", "rotate", "x", "-i", "ann.key"]) == 128 + signal.SIGTERM
    assert "interrupted by SIGTERM; it is as it was" in capsys.readouterr().err
    assert listed("x", capsys) == before


@pytest.mark.usefixtures("here")
def test_a_passphrase_that_was_typed_counts_as_given(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Also where other keys stood ready, and it was asked for because none of them opened it."""
    asked: list[str] = []

    def typed(purpose: str) -> Passphrase:
        asked.append(purpose)
        return Passphrase(b"correct horse")

    monkeypatch.setattr(credentials, "typed", typed)
    monkeypatch.setattr("cisfs.layer.unlocked.ready", lambda: (RawKey(bytes(32)),))
    assert main(["init", "x", "-r", "passphrase:words"]) == 0
    assert main(["key", "rotate", "x"]) == 0
    assert len(asked) == 1
    assert [slot["type"] for slot in listed("x", capsys)] == ["passphrase"]
    assert opens("x", "--passphrase-file", "words")


@pytest.mark.usefixtures("here")
def test_a_passphrase_in_ages_way_counts_as_given_too(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pyrage")
    assert main(["init", "x", "-r", "age-passphrase:words", "-r", "ann.key.pub"]) == 0
    words = ["-i", "ann.key", "-r", "age-passphrase:words"]
    assert main(["key", "rotate", "x", *words]) == 0
    assert [slot["type"] for slot in listed("x", capsys)] == ["age", "jwe"]
    assert opens("x", "--passphrase-file", "words")


@pytest.mark.usefixtures("here")
def test_a_rotation_leaves_somebody_who_can_open_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", "x", "-r", "ann.key.pub"]) == 0
    (only,) = listed("x", capsys)
    assert main(["key", "rotate", "x", "-i", "ann.key", "--drop", only["id"]]) == 2
    assert "nobody could open it afterwards" in capsys.readouterr().err
    assert main(["key", "rotate", "x", "-i", "ann.key", "--drop", "0" * 12]) == 2
    assert "no such key slot" in capsys.readouterr().err
    assert main(["key", "rotate", "x", "-i", "ann.key", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["identity"], said["continued"]) == (None, False)
    assert opens("x", "-i", "ann.key")
