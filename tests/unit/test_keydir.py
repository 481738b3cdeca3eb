"""The key directory: what is offered from it, what is refused, and when it is looked at."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cisfs.cli.main import main
from cisfs.errors import NoKeyError, UsageError, WrongKeyError
from cisfs.keys import keydir, keyring, options, provider_config
from cisfs.keys.credentials import FILE_VARIABLE, Identities, MasterKey, Passphrase, RawKey
from cisfs.keys.provider import ProviderIdentity
from cisfs.layer import opening, unlocked
from cisfs.runtime import holdings
from tests.unit import vaults
from tests.unit.keyrings import private_ring

OTHER = b"o" * 32


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The key directory of a user without any other keys."""
    made = tmp_path / "keys"
    made.mkdir(0o700)
    monkeypatch.setattr(keydir, "directory", lambda: made)
    monkeypatch.setenv(provider_config.VARIABLE, str(tmp_path / "providers.json"))
    monkeypatch.delenv(FILE_VARIABLE, raising=False)
    with private_ring():
        yield made


@pytest.fixture
def vault(tmp_path: Path) -> Path:
    return vaults.make(tmp_path / "v")


def put(place: Path, name: str, content: bytes, mode: int = 0o600) -> Path:
    file = place / name
    file.touch(0o600)
    file.write_bytes(content)
    file.chmod(mode)
    return file


def no_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    options.add_key_options(parser)
    return parser.parse_args([])


def test_whose_directory_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert keydir.directory() == Path("/etc/cisfs/keys")
    monkeypatch.setattr(os, "geteuid", lambda: 1234)
    monkeypatch.setenv("HOME", str(tmp_path))
    for configured in ("", "relative"):
        monkeypatch.setenv("XDG_CONFIG_HOME", configured)
        assert keydir.directory() == tmp_path / ".config/cisfs/keys"
    monkeypatch.setenv("XDG_CONFIG_HOME", "/elsewhere")
    assert keydir.directory() == Path("/elsewhere/cisfs/keys")


def test_files_are_offered_in_the_order_of_their_names(place: Path) -> None:
    assert keydir.identities() == []
    put(place, "b", b"b" * 32)
    put(place, "a", b"a" * 32)
    for name in (".hidden", "a.pub", "a.crt"):
        put(place, name, b"no key at all", 0o644)
    (place / "old").mkdir(0o755)
    assert keydir.identities() == [RawKey(b"a" * 32), RawKey(b"b" * 32)]
    place.rename(place.with_name("gone"))
    assert keydir.identities() == []


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o610, 0o601])
def test_one_loose_file_spoils_all(place: Path, mode: int) -> None:
    put(place, "a", b"a" * 32)
    loose = put(place, "z", b"z" * 32, mode)
    said = f"^others have a right to {loose}, so no key .* is used: chmod 600 {loose}$"
    with pytest.raises(UsageError, match=said):
        keydir.identities()


@pytest.mark.parametrize("mode", [0o750, 0o701, 0o1777])
def test_a_loose_directory_is_refused(place: Path, mode: int) -> None:
    place.chmod(mode)
    with pytest.raises(UsageError, match=f"chmod 700 {place}$"):
        keydir.identities()


@pytest.mark.parametrize("whose", ["directory", "file"])
def test_what_is_anothers_is_refused(
    place: Path, monkeypatch: pytest.MonkeyPatch, whose: str
) -> None:
    file = put(place, "a", b"a" * 32)
    ours = os.geteuid()
    if whose == "file":
        if ours != 0:
            pytest.skip("only root can give a file away")
        os.chown(file, 65534, -1)
    else:
        monkeypatch.setattr(os, "geteuid", lambda: ours + 1)
    with pytest.raises(UsageError, match="belongs to user"):
        keydir.identities()


def test_what_is_no_key_is_named(place: Path) -> None:
    file = put(place, "a", b"not a key")
    with pytest.raises(UsageError, match=f"{file} is no private key"):
        keydir.identities()


# ---- in its place among the others


def test_a_key_that_lies_ready_opens_a_locked_layer(place: Path, vault: Path) -> None:
    with pytest.raises(NoKeyError, match=f"there is none in {place}, and no key provider"):
        unlocked.credential_for(vault)
    put(place, "1", OTHER)
    put(place, "2", vaults.KEY.secret)
    opening.open_layer(vault, unlocked.credential_for(vault)).close()
    assert main(["verify", str(vault)]) == 0
    opened = holdings.open_layers([vault], unlocked.credential_for)
    assert opened.kept == frozenset()
    opened.layers[0].close()


def test_a_key_that_does_not_fit_is_said_to_be_tried(place: Path, vault: Path) -> None:
    put(place, "1", OTHER)
    said = rf"^layer {vault}: no key slot opens; tried: key file \(.*: cisfs unlock {vault}$"
    with pytest.raises(WrongKeyError, match=said):
        holdings.open_layers([vault], unlocked.credential_for)


def test_what_is_unlocked_goes_before_what_lies_ready(place: Path, vault: Path) -> None:
    master = opening.master_key(vault, vaults.KEY)
    keyring.store(opening.key_id(vault), master, 60)
    place.chmod(0o777)  # it is not so much as looked at
    assert unlocked.credential_for(vault) == MasterKey(master)
    assert unlocked.opener(vault, no_options()) == MasterKey(master)


def test_who_is_asked_comes_last(place: Path, vault: Path) -> None:
    typed = Passphrase(b"typed")
    assert unlocked.opener(vault, no_options(), lambda: typed) == typed
    put(place, "1", OTHER)
    found = unlocked.opener(vault, no_options(), lambda: typed)
    assert isinstance(found, Identities)
    assert found.offered == (RawKey(OTHER),)
    assert found.ask is not None
    assert found.ask() == typed


def test_providers_come_after_the_directory(place: Path, tmp_path: Path) -> None:
    put(tmp_path, "providers.json", b'{"key-providers": {"tpm": {"cmd": {"path": "/bin/false"}}}}')
    put(place, "1", OTHER)
    assert unlocked.ready() == (RawKey(OTHER), ProviderIdentity("tpm"))


def test_unlocking_takes_the_key_that_lies_ready(place: Path, vault: Path) -> None:
    put(place, "1", vaults.KEY.secret)
    assert main(["unlock", str(vault)]) == 0
    found = unlocked.find(vault)
    assert found is not None
    assert found.secret == opening.master_key(vault, vaults.KEY)
