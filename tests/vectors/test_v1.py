"""Version 1 of the format, one scenario per file: tests/vectors/v1, made by tests/vectors/make.py.

A failure here means that existing vaults can no longer be read, or are written differently.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from blake3 import blake3
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from cisfs import errors
from cisfs.crypto.keys import SecretKey, VaultKeys
from cisfs.crypto.names import NameCipher
from cisfs.format import journal
from cisfs.format import names as spelling
from cisfs.format.header import pack_directory, parse_directory
from cisfs.format.journal import Record
from cisfs.keys.credentials import RawKey
from cisfs.layer.directory import StoredNames
from cisfs.layer.file import EncryptedFile, FileContext
from cisfs.layer.units import Buffers
from cisfs.layer.vault import Vault
from tests.unit.vaults import same
from tests.vectors import reference_xts, writing

HERE = Path(__file__).parent / "v1"
SCENARIOS = {path.stem: json.loads(path.read_text("ascii")) for path in sorted(HERE.iterdir())}
Scenario = dict[str, Any]


def of_kind(*kinds: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize(
        "scenario",
        [pytest.param(each, id=name) for name, each in SCENARIOS.items() if each["kind"] in kinds],
    )


def in_hex(scenario: Scenario, name: str) -> bytes:
    return bytes.fromhex(scenario[name])


def names_of(scenario: Scenario) -> NameCipher:
    master = SecretKey(in_hex(scenario, "master key"))
    return NameCipher(VaultKeys.derive(master, in_hex(scenario, "vault id")))


def read(scenario: Scenario) -> bytes:
    master = SecretKey(in_hex(scenario, "master key"))
    context = FileContext(master, scenario["unit size"], Buffers(), None)
    fd = os.memfd_create("vector")
    try:
        os.pwrite(fd, in_hex(scenario, "stored"), 0)
        file = EncryptedFile.open(fd, context)
        return bytes(file.read(0, file.size + 1))
    finally:
        os.close(fd)


def refused(scenario: Scenario, attempt: Callable[[], object]) -> None:
    name, words = scenario["refusal"].split(": ", 1)
    with pytest.raises(errors.CisfsError) as caught:
        attempt()
    assert type(caught.value) is getattr(errors, name)
    assert words in str(caught.value)


def test_every_scenario_is_looked_at() -> None:
    kinds = {"file", "refused file", "directory id", "name", "symlink", "xattr", "journal record"}
    assert {each["kind"] for each in SCENARIOS.values()} == kinds | {"vault"}
    assert len(SCENARIOS) >= 50


@of_kind("file")
def test_files_are_read_and_written(scenario: Scenario) -> None:
    master, file_id = SecretKey(in_hex(scenario, "master key")), in_hex(scenario, "file id")
    assert same(read(scenario), in_hex(scenario, "plain"))
    written = writing.stored(master, file_id, scenario["unit size"], scenario["steps"])
    assert same(written, in_hex(scenario, "stored"))


@of_kind("file")
def test_a_second_implementation_reads_the_files(scenario: Scenario) -> None:
    """Thirty lines from docs/FORMAT.md alone: header, keys, slots, tags, holes, trailer."""
    stored, plain = in_hex(scenario, "stored"), in_hex(scenario, "plain")
    magic, version, log2, reserved, file_id = struct.unpack("<8sHB5s16s", stored[:32])
    assert (magic, version, 1 << log2, reserved) == (b"CISFSVF\0", 1, 4096, bytes(5))
    assert file_id == in_hex(scenario, "file id")
    info = b"cisfs v1 file" + stored[:16]
    okm = HKDF(hashes.SHA256(), 96, file_id, info).derive(in_hex(scenario, "master key"))

    def tag(body: bytes, number: int, kind: int, level: int = 0) -> bytes:
        context = struct.pack("<QBB6x", number, kind, level)
        return blake3(body + context, key=okm[64:]).digest(16)

    found, at, unit, hole_until = b"", 32, 0, 0
    while len(found) < len(plain):
        length = min(4096, len(plain) - len(found))
        body = stored[at : at + length + -length % 16]
        slot_tag = stored[at + len(body) : at + len(body) + 16]
        if slot_tag == bytes(16) and unit >= hole_until:
            hole_until = unit + (1 << body[0])
            assert unit % (1 << body[0]) == 0
            assert body[1:16] == bytes(15)
            assert body[16:32] == tag(b"", unit, 2, body[0])
        if slot_tag == bytes(16):
            found += bytes(4096)
        else:
            assert slot_tag == tag(body, unit, 0)
            found += reference_xts.decrypt(okm[:64], unit, body)[:length]
        at += len(body) + 16
        unit += 1
    assert same(found, plain)
    assert stored[at:] == tag(b"", len(plain), 1).ljust(32 - (-len(plain) % 16), b"\0")


@of_kind("refused file")
def test_bad_files_are_refused(scenario: Scenario) -> None:
    refused(scenario, lambda: read(scenario))


@of_kind("directory id")
def test_directory_ids(scenario: Scenario) -> None:
    stored = in_hex(scenario, "stored")
    if "refusal" in scenario:
        refused(scenario, lambda: parse_directory(stored))
    else:
        assert parse_directory(stored) == in_hex(scenario, "directory id")
        assert pack_directory(in_hex(scenario, "directory id")) == stored


@of_kind("name")
def test_names(scenario: Scenario, tmp_path: Path) -> None:
    names = StoredNames(names_of(scenario))
    dir_id, name = in_hex(scenario, "directory id"), in_hex(scenario, "name")
    stored = scenario["stored name"].encode("ascii")
    assert names.stored(dir_id, name) == stored
    for beside, content in scenario["beside"].items():
        (tmp_path / beside).write_text(content, "ascii")
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        assert names.plain(fd, dir_id, stored) == name
        for beside in tmp_path.iterdir():
            beside.unlink()
        names.prepare(fd, dir_id, name, stored)
    finally:
        os.close(fd)
    assert {each.name: each.read_text("ascii") for each in tmp_path.iterdir()} == (
        scenario["beside"]
    )


@of_kind("symlink")
def test_symlinks(scenario: Scenario) -> None:
    cipher, nonce = names_of(scenario), in_hex(scenario, "nonce")
    sealed = spelling.decode(scenario["stored"].encode("ascii"))
    assert sealed[:16] == nonce
    assert cipher.decrypt_target(nonce, sealed[16:]) == in_hex(scenario, "target")
    assert cipher.encrypt_target(nonce, in_hex(scenario, "target")) == sealed[16:]


@of_kind("xattr")
def test_extended_attributes(scenario: Scenario) -> None:
    cipher, owner = names_of(scenario), in_hex(scenario, "owner id")
    name, value = in_hex(scenario, "name"), in_hex(scenario, "value")
    stored_id = spelling.encode(cipher.xattr_id(owner, name)).decode("ascii")
    assert scenario["stored name"] == spelling.XATTR_PREFIX + stored_id
    stored = in_hex(scenario, "stored")
    assert spelling.parse_xattr(cipher.decrypt_xattr(owner, stored)) == (name, value)
    assert cipher.encrypt_xattr(owner, spelling.pack_xattr(name, value)) == stored


@of_kind("journal record")
def test_journal_records(scenario: Scenario) -> None:
    master = SecretKey(in_hex(scenario, "master key"))
    key = VaultKeys.derive(master, in_hex(scenario, "vault id")).journal
    file_id, *numbers = scenario["record"]
    record = Record(bytes.fromhex(file_id), *numbers)
    journal_id, stored = in_hex(scenario, "journal id"), in_hex(scenario, "stored")
    assert journal.parse_record(key, journal_id, stored) == record
    assert journal.pack_record(key, journal_id, record) == stored


@of_kind("vault")
def test_vaults(scenario: Scenario, tmp_path: Path) -> None:
    (tmp_path / "vault.json").write_text(scenario["vault.json"], "ascii")
    (tmp_path / "cisfs.dir").write_bytes(pack_directory(bytes(16)))
    credential = RawKey(in_hex(scenario, "key file"))
    if "refusal" in scenario:
        refused(scenario, lambda: Vault.open(tmp_path, credential, read_only=True))
        return
    vault = Vault.open(tmp_path, credential, read_only=True)
    assert vault.keys.master.reveal() == in_hex(scenario, "master key")
    assert vault.config.vault_id == in_hex(scenario, "vault id")
    assert vault.config.pack().decode("ascii") == scenario["vault.json"]
    vault.close()
