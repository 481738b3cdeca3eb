"""How names, targets and attributes are spelled, and that none can be moved."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cisfs.crypto.keys import SecretKey, VaultKeys
from cisfs.crypto.names import NameCipher
from cisfs.errors import FormatError, IntegrityError
from cisfs.format import names as spelling
from cisfs.layer.directory import READ_FLAGS, StoredNames

CIPHER = NameCipher(VaultKeys.derive(SecretKey(bytes(32)), bytes(16)))
HERE, THERE = b"h" * 16, b"t" * 16
NAMES = StoredNames(CIPHER)


@pytest.mark.parametrize("size", [1, 2, 3, 15, 16, 17, 174, 175, 176, 254, 255])
def test_names_of_every_length_get_a_stored_name_that_fits(size: int) -> None:
    stored = NAMES.stored(HERE, b"n" * size)
    assert len(stored) <= 255
    assert spelling.is_long(stored) == (size > 175)
    assert not spelling.is_reserved(stored)
    assert b"/" not in stored
    assert NAMES.stored(HERE, b"n" * size) == stored
    assert NAMES.stored(THERE, b"n" * size) != stored


def test_a_name_of_256_bytes_is_too_long() -> None:
    with pytest.raises(OSError, match="File name too long"):
        NAMES.stored(HERE, b"n" * 256)


def test_names_round_trip_and_authenticate() -> None:
    sealed = CIPHER.encrypt_name(HERE, b"name\xff\n")
    assert CIPHER.decrypt_name(HERE, sealed) == b"name\xff\n"
    with pytest.raises(IntegrityError, match="an encrypted name was altered or moved"):
        CIPHER.decrypt_name(THERE, sealed)
    for bit in range(len(sealed) * 8):
        altered = bytearray(sealed)
        altered[bit // 8] ^= 1 << bit % 8
        with pytest.raises(IntegrityError):
            CIPHER.decrypt_name(HERE, bytes(altered))
    for short in (b"", sealed[:15], sealed[:16]):
        with pytest.raises(IntegrityError, match="an encrypted name is too short"):
            CIPHER.decrypt_name(HERE, short)


def test_names_targets_and_attributes_are_not_exchangeable() -> None:
    """The same bytes under the same associated data, in another role, do not open."""
    sealed = CIPHER.encrypt_name(HERE, b"x")
    with pytest.raises(IntegrityError, match="symlink target"):
        CIPHER.decrypt_target(HERE, sealed)
    with pytest.raises(IntegrityError, match="extended attribute"):
        CIPHER.decrypt_xattr(HERE, sealed)
    with pytest.raises(IntegrityError, match="name"):
        CIPHER.decrypt_name(HERE, CIPHER.encrypt_target(HERE, b"x"))


def test_attribute_ids_depend_on_owner_and_name() -> None:
    ids = {CIPHER.xattr_id(owner, name) for owner in (HERE, THERE) for name in (b"a", b"b", b"ab")}
    assert len(ids) == 6
    assert {len(each) for each in ids} == {16}


def test_a_long_name_is_read_from_the_file_beside_it(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)
    try:
        name = b"long" * 60
        stored = NAMES.stored(HERE, name)
        NAMES.prepare(fd, HERE, name, stored)
        beside = tmp_path / os.fsdecode(spelling.sidecar(stored))
        assert NAMES.plain(fd, HERE, stored) == name
        with pytest.raises(IntegrityError):
            NAMES.plain(fd, THERE, stored)
        good = beside.read_bytes()
        for bad in (b"", good[:-1], good + b"A", b"A" + good[1:], b"x" * 5000):
            beside.write_bytes(bad)
            with pytest.raises(FormatError, match="the file with a long name is damaged"):
                NAMES.plain(fd, HERE, stored)
        NAMES.discard(fd, stored)
        assert list(tmp_path.iterdir()) == []
        with pytest.raises(FormatError, match="the file with a long name is missing"):
            NAMES.plain(fd, HERE, stored)
        NAMES.discard(fd, stored)
    finally:
        os.close(fd)


def test_a_short_name_needs_no_file_beside_it(tmp_path: Path) -> None:
    fd = os.open(tmp_path, READ_FLAGS)
    stored = NAMES.stored(HERE, b"short")
    NAMES.prepare(fd, HERE, b"short", stored)
    NAMES.discard(fd, stored)
    os.close(fd)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", range(20))
def test_spelling_round_trips(size: int) -> None:
    text = spelling.encode(bytes(range(240, 240 + size % 16)) * 2)
    assert b"=" not in text
    assert spelling.encode(spelling.decode(text)) == text


@pytest.mark.parametrize("text", [b"A", b"AA=", b"AA==", b"A B", b"AB", b"AA\n", b"A+/A", b"\xff"])
def test_there_is_one_right_spelling(text: bytes) -> None:
    with pytest.raises(FormatError, match=r"not base64url|not in its one right spelling"):
        spelling.decode(text)


def test_our_own_files_are_reserved() -> None:
    own = [spelling.VAULT_FILE, spelling.JOURNAL_FILE, spelling.DIRECTORY_FILE, b"vault.json.new"]
    own.append(spelling.sidecar(spelling.long_name(b"x" * 300)))
    assert all(spelling.is_reserved(each) for each in own)
    assert not spelling.is_reserved(spelling.long_name(b"x" * 300))


@pytest.mark.parametrize("size", [1, 2, 3, 100, 1000, 3038, 3039])
def test_the_size_of_a_target_is_arithmetic(size: int) -> None:
    stored = spelling.encode(HERE + CIPHER.encrypt_target(HERE, b"t" * size))
    assert spelling.target_size(len(stored)) == size
    assert len(stored) <= 4095
    assert size < spelling.TARGET_MAX or len(spelling.encode(bytes(size + 33))) > 4094


def test_attributes_round_trip_and_bad_ones_are_refused() -> None:
    for name, value in [(b"user.a", b""), (b"n" * 255, b"v" * 1000)]:
        assert spelling.parse_xattr(spelling.pack_xattr(name, value)) == (name, value)
    for bad in (b"", b"\0abc", b"\5abc", b"\1"):
        with pytest.raises(FormatError, match="a stored extended attribute is damaged"):
            spelling.parse_xattr(bad)
