"""Making, opening and describing vaults; the lock; each way in which it can go wrong."""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from cisfs.errors import (
    BusyError,
    CisfsError,
    FormatError,
    IntegrityError,
    NotAVaultError,
    UnsupportedVersionError,
    UsageError,
    WrongKeyError,
)
from cisfs.format.config import VaultConfig
from cisfs.keys.credentials import Passphrase, RawKey
from cisfs.keys.slots import slot_id
from cisfs.layer import vault as vaults_module
from cisfs.layer import vault_file
from cisfs.layer.vault import Vault, describe
from tests.unit import vaults
from tests.unit.vaults import KEY


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return vaults.make(tmp_path / "vault")


def rewrite(path: Path, old: bytes, new: bytes) -> None:
    file = path / "vault.json"
    data = file.read_bytes()
    assert old in data
    file.write_bytes(data.replace(old, new))


def test_a_new_vault_has_three_files_and_is_its_owners(path: Path) -> None:
    assert sorted(each.name for each in path.iterdir()) == ["cisfs.dir", "vault.json"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    for file in path.iterdir():
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with vaults.opened(path):
        assert stat.S_IMODE((path / "cisfs.journal").stat().st_mode) == 0o600


def test_a_vault_is_made_in_an_empty_directory_too(tmp_path: Path) -> None:
    tmp_path.joinpath("here").mkdir()
    vaults.make(tmp_path / "here")
    with vaults.opened(tmp_path / "here") as vault:
        assert vault.config.unit_size == vaults.UNIT


def test_a_directory_with_something_in_it_is_left_alone(path: Path, tmp_path: Path) -> None:
    before = (path / "vault.json").read_bytes()
    with pytest.raises(UsageError, match=f"^{path} is not empty: a vault is made in a new or an"):
        vaults.make(path)
    assert (path / "vault.json").read_bytes() == before
    tmp_path.joinpath("file").touch()
    with pytest.raises(FileExistsError):
        vaults.make(tmp_path / "file")
    with pytest.raises(FileNotFoundError):
        vaults.make(tmp_path / "no" / "parent")


@pytest.mark.parametrize("unit_size", [0, 4095, 5000, 2 << 20])
def test_a_vault_that_could_not_be_opened_is_not_made(tmp_path: Path, unit_size: int) -> None:
    with pytest.raises(ValueError, match="not a power of two"):
        vaults.make(tmp_path / "vault", unit_size=unit_size)
    assert list(tmp_path.iterdir()) == []


def test_a_vault_that_does_not_fit_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a vault would be in the way for good: neither opened nor made again."""

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (tmp_path / "empty").mkdir()
    with monkeypatch.context() as full:
        full.setattr(vault_file, "write_config", fail)
        for name in ("new", "empty"):
            with pytest.raises(OSError, match="No space left"):
                vaults.make(tmp_path / name)
    assert list(tmp_path.iterdir()) == [tmp_path / "empty"]
    assert not any((tmp_path / "empty").iterdir())
    vaults.make(tmp_path / "new")


def test_a_vault_that_another_makes_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "v").mkdir()
    other = os.open(tmp_path / "v", os.O_RDONLY)
    try:
        vault_file.lock(other, tmp_path / "v", read_only=False)
        with pytest.raises(BusyError):
            vaults.make(tmp_path / "v")
    finally:
        os.close(other)
    assert (tmp_path / "v").is_dir()


def test_two_vaults_with_the_same_key_have_nothing_in_common(tmp_path: Path) -> None:
    with (
        vaults.opened(vaults.make(tmp_path / "one")) as one,
        vaults.opened(vaults.make(tmp_path / "other")) as other,
    ):
        assert one.config.vault_id != other.config.vault_id
        assert one.keys.master != other.keys.master
        assert one.root_id != other.root_id


def test_wrong_key_damage_and_a_newer_version_are_three_errors(path: Path) -> None:
    found: list[CisfsError] = []

    def refused(credential: RawKey | Passphrase = KEY) -> None:
        with pytest.raises(CisfsError) as caught:
            Vault.open(path, credential)
        found.append(caught.value)
        assert str(caught.value).count("\n") == 0

    refused(RawKey(b"w" * 32))
    good = (path / "vault.json").read_bytes()
    rewrite(path, b'"unit_size": 4096', b'"unit_size": 8192')
    refused()
    (path / "vault.json").write_bytes(good)
    rewrite(path, b'"version": 1', b'"version": 2')
    refused()
    assert [type(each) for each in found] == [WrongKeyError, FormatError, UnsupportedVersionError]
    assert [each.exit_code for each in found] == [12, 11, 13]
    assert str(found[0]) == "wrong key file"
    assert f"{path}/vault.json is damaged: its checksum" in str(found[1])
    assert str(found[2]).startswith(f"{path}: vault.json has version 2")
    assert "upgrade cisfs" in str(found[2])


def test_a_header_that_someone_without_the_key_rewrote_is_forged(path: Path) -> None:
    """The checksum can be made by anyone, the authentication code cannot."""
    config = VaultConfig.parse((path / "vault.json").read_bytes())
    forged = VaultConfig(config.vault_id, 8192, config.slots, config.mac)
    (path / "vault.json").write_bytes(forged.pack())
    with pytest.raises(IntegrityError, match=f"^{path}/vault.json was altered by someone without"):
        Vault.open(path, KEY)


def test_a_damaged_slot_is_damage_and_not_a_wrong_key(path: Path) -> None:
    config = VaultConfig.parse((path / "vault.json").read_bytes())
    slot = {**config.slots[0], "salt": "AAAA"}
    forged = VaultConfig(config.vault_id, config.unit_size, (slot,), config.mac)
    (path / "vault.json").write_bytes(forged.pack())
    with pytest.raises(FormatError, match=f"^{path}/vault.json is damaged: a key slot's salt"):
        Vault.open(path, KEY)


def test_every_flipped_bit_of_the_header_is_refused(path: Path) -> None:
    file = path / "vault.json"
    good = file.read_bytes()
    for at in range(len(good)):
        altered = bytearray(good)
        altered[at] ^= 1 << at % 8
        file.write_bytes(bytes(altered))
        try:
            Vault.open(path, KEY).close()
        except CisfsError:
            continue
        assert VaultConfig.parse(bytes(altered)) == VaultConfig.parse(good)


@pytest.mark.parametrize("size", [0, 1, 100, 400])
def test_a_truncated_header_is_refused(path: Path, size: int) -> None:
    os.truncate(path / "vault.json", size)
    for attempt in (lambda: Vault.open(path, KEY), lambda: describe(path)):
        with pytest.raises(FormatError, match=f"^{path}/vault.json is damaged: .* from a backup$"):
            attempt()


def test_what_is_no_vault_is_said_to_be_none(path: Path, tmp_path: Path) -> None:
    (path / "vault.json").unlink()
    (tmp_path / "file").touch()
    for where, why in [
        (path, "it has no vault.json; make one with: cisfs init"),
        (tmp_path / "gone", "No such file or directory"),
        (tmp_path / "file", "Not a directory"),
        (tmp_path / "file" / "below", "Not a directory"),
    ]:
        for attempt in (lambda: Vault.open(where, KEY), lambda: describe(where)):  # noqa: B023 - called at once
            with pytest.raises(NotAVaultError, match=f"^{where} is not a vault: {why}") as caught:
                attempt()
            assert caught.value.exit_code == 10


def test_a_damaged_root_id_is_named(path: Path) -> None:
    vaults.flip(path / "cisfs.dir", 0)
    with pytest.raises(FormatError, match=f"{path}.*the directory's id is missing or damaged"):
        Vault.open(path, KEY)
    (path / "cisfs.dir").unlink()
    with pytest.raises(FormatError, match=f"{path}.*the directory's id is missing or damaged"):
        Vault.open(path, KEY)


def test_a_newer_root_id_is_said_to_be_newer(path: Path) -> None:
    with (path / "cisfs.dir").open("r+b") as file:
        file.seek(8)
        file.write(b"\2")
    with pytest.raises(UnsupportedVersionError, match="version 2"):
        Vault.open(path, KEY)


@pytest.fixture
def hung() -> Iterator[None]:
    """Make a hang a failure."""

    def fail(_number: int, _frame: object) -> None:
        pytest.fail("it hangs")

    before = signal.signal(signal.SIGALRM, fail)
    yield
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("planted", ["symlink", "directory", "fifo"])
@pytest.mark.parametrize("name", ["vault.json", "cisfs.journal", "cisfs.dir"])
@pytest.mark.usefixtures("hung")
def test_a_planted_object_is_refused_at_once(path: Path, name: str, planted: str) -> None:
    (path / name).unlink(missing_ok=True)
    if planted == "symlink":
        (path / name).symlink_to("/etc/passwd")
    elif planted == "directory":
        (path / name).mkdir()
    else:
        os.mkfifo(path / name)
    signal.alarm(1)  # a FIFO opened without care waits for a writer for ever
    try:
        with pytest.raises((CisfsError, OSError)):
            Vault.open(path, KEY).close()
    finally:
        signal.alarm(0)


def test_the_lock_keeps_writers_alone_and_lets_readers_share(path: Path) -> None:
    with vaults.opened(path):
        for read_only in (False, True):
            with pytest.raises(BusyError, match=f"^vault {path} is mounted ") as caught:
                Vault.open(path, KEY, read_only=read_only)
            assert caught.value.exit_code == 15
    with (
        vaults.opened(path, read_only=True),
        vaults.opened(path, read_only=True),
        pytest.raises(BusyError, match="unmount it first"),
    ):
        Vault.open(path, KEY)
    with vaults.opened(path):
        pass


def test_a_busy_vault_is_said_to_be_busy_before_a_key_is_asked_for(path: Path) -> None:
    def never() -> RawKey:
        pytest.fail("asked for a key")

    with vaults.opened(path), pytest.raises(BusyError):
        Vault.open(path, never)
    with pytest.raises(NotAVaultError):
        Vault.open(path / "gone", never)
    with vaults.opened(path), pytest.raises(BusyError):
        Vault.open(path, lambda: KEY, read_only=True)


def test_the_lock_goes_with_a_refused_opening(path: Path) -> None:
    with pytest.raises(WrongKeyError):
        Vault.open(path, RawKey(bytes(32)))
    Vault.open(path, lambda: KEY).close()


def test_the_lock_survives_in_a_forked_process(path: Path) -> None:
    vault = Vault.open(path, KEY)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writing)
        os.read(reading, 1)
        os._exit(0)
    vault.abandon()
    with pytest.raises(BusyError):
        Vault.open(path, KEY)
    os.close(writing)
    os.waitpid(child, 0)
    os.close(reading)
    Vault.open(path, KEY).close()


def test_reading_a_vault_writes_nothing(path: Path) -> None:
    with vaults.mounted(path) as tree:
        vaults.put(tree, b"file", b"content")
    before = {each: each.stat().st_mtime_ns for each in path.iterdir()}
    with vaults.mounted(path, read_only=True) as tree:
        assert vaults.fetch(tree, b"file") == b"content"
    assert {each: each.stat().st_mtime_ns for each in path.iterdir()} == before


def test_describe_says_what_anyone_may_know(path: Path) -> None:
    said = describe(path)
    assert json.loads(json.dumps(said)) == said
    config = json.loads((path / "vault.json").read_bytes())
    assert said["vault_id"] == VaultConfig.parse((path / "vault.json").read_bytes()).vault_id.hex()
    assert (said["type"], said["version"], said["unit_size"]) == ("vault", 1, 4096)
    (slot,) = VaultConfig.parse((path / "vault.json").read_bytes()).slots
    assert said["slots"] == [{"id": slot_id(slot), "type": "key-file"}]
    assert config["slots"][0]["wrapped"] not in json.dumps(said)
    with vaults.opened(path):
        assert describe(path) == said


def test_the_default_unit_size_is_one_that_vaults_take(tmp_path: Path) -> None:
    vaults_module.create(tmp_path / "v", KEY)
    assert describe(tmp_path / "v")["unit_size"] == vaults_module.DEFAULT_UNIT_SIZE
