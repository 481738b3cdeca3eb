"""unlock and lock, and the commands that open what was unlocked."""

from __future__ import annotations

import argparse
import logging
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cisfs.cli.arguments import duration
from cisfs.cli.main import main
from cisfs.crypto.keys import SecretKey
from cisfs.errors import NoKeyError, NotAVaultError, UsageError, WrongKeyError
from cisfs.keys import keydir, keyring, provider_config
from cisfs.keys.credentials import FILE_VARIABLE, MasterKey, Passphrase
from cisfs.keys.options import add_key_options
from cisfs.layer import opening, store, unlocked
from tests.unit import layers, vaults
from tests.unit.keyrings import private_ring

CONTENT = layers.image(4 * layers.UNIT)


@pytest.fixture(autouse=True)
def ring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(keydir, "directory", lambda: tmp_path / "keys")
    monkeypatch.setenv(provider_config.VARIABLE, str(tmp_path / "providers.json"))
    monkeypatch.delenv(FILE_VARIABLE, raising=False)
    with private_ring():
        yield


@pytest.fixture
def key(tmp_path: Path) -> list[str]:
    file = tmp_path / "key"
    file.write_bytes(vaults.KEY.secret)
    file.chmod(0o600)
    return ["--key-file", str(file)]


@pytest.fixture(params=["vault", "sealed"])
def layer(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "vault":
        return vaults.make(tmp_path / "secrets.vault")
    layers.seal(tmp_path / "secrets.cis", CONTENT)
    return tmp_path / "secrets.cis"


def options(*words: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    add_key_options(parser)
    return parser.parse_args(words)


def test_an_unlocked_layer_opens_without_a_key_until_it_is_locked(
    layer: Path, key: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(
        NoKeyError, match=f"^layer {layer} is locked: .*/keys, and .*: cisfs unlock {layer}$"
    ):
        unlocked.credential_for(layer)
    assert main(["unlock", *key, str(layer)]) == 0
    assert re.fullmatch(r"unlocked until [0-9: -]+\n", capsys.readouterr().out)
    opening.open_layer(layer, unlocked.credential_for(layer)).close()
    assert main(["verify", str(layer)]) == 0
    capsys.readouterr()
    assert main(["lock", str(layer)]) == 0
    assert capsys.readouterr().out == f"locked {layer}\n"
    with pytest.raises(NoKeyError):
        unlocked.credential_for(layer)
    assert main(["lock", str(layer)]) == 0
    assert capsys.readouterr().out == f"{layer} was not unlocked\n"


def test_all_are_locked_at_once(
    tmp_path: Path, key: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["lock", "--all"]) == 0
    assert capsys.readouterr().out == "none was unlocked\n"
    for name in ("a", "b"):
        assert main(["unlock", *key, str(vaults.make(tmp_path / name))]) == 0
    capsys.readouterr()
    assert main(["lock", "--all"]) == 0
    assert capsys.readouterr().out == "locked 2 layers\n"


def test_who_damages_a_layer_does_not_keep_it_unlocked(
    tmp_path: Path, key: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "secrets.cis"
    layers.seal(path, CONTENT)
    assert main(["unlock", *key, str(path)]) == 0
    name = opening.key_id(path)
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"garbage")  # where the key slots begin
        file.seek(0, os.SEEK_END)
        file.write(b"more")
    assert main(["lock", str(path)]) == 0
    assert capsys.readouterr().out.endswith(f"locked {path}\n")
    assert keyring.terms(name) is None


def test_what_is_gone_is_locked_by_its_key(
    layer: Path, key: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["unlock", *key, str(layer)]) == 0
    name = opening.key_id(layer)
    layer.rename(layer.with_name("elsewhere"))
    assert main(["lock", name]) == 0
    assert capsys.readouterr().out.endswith(f"locked key {name}\n")
    assert keyring.terms(name) is None
    assert main(["lock", name]) == 0
    assert capsys.readouterr().out == f"key {name} was not unlocked\n"


def test_a_wrong_key_unlocks_nothing(
    layer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_bytes(b"w" * 32)
    wrong.chmod(0o600)
    assert main(["unlock", "--key-file", str(wrong), str(layer)]) == 12
    assert capsys.readouterr().err == "cisfs: wrong key file\n"
    assert unlocked.find(layer) is None


def test_a_vault_that_is_mounted_can_be_unlocked(tmp_path: Path, key: list[str]) -> None:
    path = vaults.make(tmp_path / "v")
    with vaults.mounted(path):
        assert main(["unlock", *key, str(path)]) == 0
    opening.open_layer(path, unlocked.credential_for(path)).close()


def test_a_stale_key_is_said_to_be_stale_and_not_the_layer_altered(layer: Path) -> None:
    keyring.store(opening.key_id(layer), SecretKey(b"x" * 32), 60)
    stale = f"^the unlocked key of {layer} is stale; unlock it again with: cisfs unlock {layer}$"
    with pytest.raises(WrongKeyError, match=stale):
        opening.open_layer(layer, unlocked.credential_for(layer))
    with pytest.raises(WrongKeyError, match=stale):
        opening.master_key(layer, unlocked.credential_for(layer))


def test_a_key_that_was_given_goes_before_the_unlocked_one(
    layer: Path, key: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Passphrase(b"asked for")
    assert unlocked.opener(layer, options(), lambda: other) == other
    keyring.store(opening.key_id(layer), SecretKey(b"x" * 32), 60)
    assert unlocked.opener(layer, options(), lambda: other) == MasterKey(SecretKey(b"x" * 32))
    assert unlocked.opener(layer, options(*key)) == vaults.KEY
    monkeypatch.setenv(FILE_VARIABLE, key[1])
    assert not isinstance(unlocked.opener(layer, options()), MasterKey)


def test_the_master_key_is_said_nowhere(
    layer: Path,
    key: list[str],
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    assert main(["unlock", *key, str(layer)]) == 0
    found = unlocked.credential_for(layer)
    assert isinstance(found, MasterKey)
    opening.open_layer(layer, found).close()
    said = "".join(capfd.readouterr()) + caplog.text + repr(found) + str(dict(os.environ))
    said += Path("/proc/self/cmdline").read_text() + Path("/proc/keys").read_text()
    secret = found.secret.reveal()
    for spelled in (secret.hex(), repr(secret)[2:-1], str(list(secret))):
        assert spelled not in said
    assert not any(spelled in said.encode() for spelled in (secret, secret[:8]))


def test_the_end_is_said_with_its_day_if_it_is_another(
    tmp_path: Path, key: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(vaults.make(tmp_path / "v"))
    before = time.time()
    assert main(["unlock", "--timeout", "2d", *key, path]) == 0
    said = capsys.readouterr().out.removeprefix("unlocked until ").strip()
    end = time.mktime(time.strptime(said, "%Y-%m-%d %H:%M:%S"))
    assert before - 1 <= end - 2 * 86_400 <= time.time()
    assert main(["unlock", "--timeout", "none", *key, path]) == 0
    assert capsys.readouterr().out == "unlocked until the machine restarts\n"
    kept = keyring.terms(opening.key_id(Path(path)))
    assert kept == keyring.Terms(float("inf"), stops=False)


def test_that_containers_are_to_be_stopped_is_kept_with_the_key(
    tmp_path: Path, key: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = str(vaults.make(tmp_path / "v"))
    assert main(["unlock", "--timeout", "none", "--stop", *key, path]) == 2
    assert "none never ends" in capsys.readouterr().err
    assert keyring.names() == []
    assert main(["unlock", "--stop", *key, path]) == 0
    kept = keyring.terms(opening.key_id(Path(path)))
    assert kept is not None
    assert kept.stops
    assert main(["unlock", *key, path]) == 0
    kept = keyring.terms(opening.key_id(Path(path)))
    assert kept is not None
    assert not kept.stops


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("30s", 30),
        ("15m", 900),
        ("1h", 3600),
        ("2d", 172_800),
        ("none", None),
        ("3650d", 315360000),
    ],
)
def test_a_duration_has_a_unit(text: str, seconds: int | None) -> None:
    assert duration(text) == seconds


@pytest.mark.parametrize("text", ["", "1", "h", "0s", "-1h", "1.5h", "1w", "3651d", "9" * 40 + "s"])
def test_what_is_no_duration_is_wrong_use(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["unlock", f"--timeout={text}", "x"])
    assert ended.value.code == 2
    assert "is not a time" in capsys.readouterr().err


def test_lock_wants_one_layer_or_all(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([], ["--all", "x"]):
        with pytest.raises(SystemExit) as ended:
            main(["lock", *words])
        assert ended.value.code == 2
    capsys.readouterr()


def test_what_is_no_layer_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("no layer")
    for path in (tmp_path, tmp_path / "file", tmp_path / "missing"):
        for command in ("unlock", "lock"):
            assert main([command, str(path)]) == 10
            assert str(path) in capsys.readouterr().err


# ------------------------------------------------------------------------------ names of layers


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(store, "DIRECTORY", tmp_path / "layers")
    (tmp_path / "layers").mkdir()
    return tmp_path / "layers"


def test_a_name_stands_for_a_layer_of_the_host(stored: Path) -> None:
    (stored / "b.cis").touch()
    assert store.resolve("b") == stored / "b.cis"
    assert store.resolve("b.cis") == stored / "b.cis"
    (stored / "b").mkdir()
    assert store.resolve("b") == stored / "b"
    assert store.resolve(str(stored / "b")) == stored / "b"


@pytest.mark.parametrize("reference", ["", ".", "..", "a/b", "./a", "../a", "a\0b", "/a\0b"])
def test_a_reference_is_an_absolute_path_or_a_name(stored: Path, reference: str) -> None:
    (stored / "a").mkdir()
    with pytest.raises(UsageError, match=re.escape(repr(reference))):
        store.resolve(reference)


@pytest.mark.parametrize("reference", ["missing", "/missing/layer.cis"])
def test_a_layer_that_is_not_there_is_named(stored: Path, reference: str) -> None:
    assert stored.is_dir()
    with pytest.raises(NotAVaultError, match=reference):
        store.resolve(reference)


def test_a_user_may_name_a_layer_from_where_they_are(
    stored: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (stored / "a").mkdir()
    assert store.resolve_from_here("a") == stored / "a"
    (tmp_path / "a").mkdir()
    assert store.resolve_from_here("a") == Path("a")
    assert store.resolve_from_here("./a") == Path("a")
    with pytest.raises(UsageError):
        store.resolve_from_here("")
