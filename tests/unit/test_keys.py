"""Key derivation is pinned, and no key byte shows by accident."""

from __future__ import annotations

import copy
import pickle
import traceback

import pytest

from cisfs.crypto import keys
from cisfs.crypto.keys import (
    LayerKeys,
    SecretKey,
    VaultKeys,
    file_keys,
    rotated_key,
    rotation_key,
)
from cisfs.errors import CisfsError
from cisfs.keys.credentials import Passphrase, RawKey

SECRET = bytes(range(100, 132))
MASTER = SecretKey(SECRET)


def shows_no_secret(text: str) -> bool:
    spellings = [SECRET.hex(), str(list(SECRET))[1:-1], repr(SECRET)[2:-1], SECRET.decode("latin1")]
    return not any(spelling in text for spelling in spellings)


def test_labels_are_pinned() -> None:
    """Every derived key depends on its label: change one, and no existing vault can be read.

    Files, names, links, attributes, the header or the slots would fail to authenticate; a sealed
    layer would be refused as altered, or its image decrypt to noise.
    """
    assert {name: value for name, value in vars(keys).items() if name.startswith("LABEL_")} == {
        "LABEL_HEADER": b"cisfs v1 vault header",
        "LABEL_NAMES": b"cisfs v1 names",
        "LABEL_SYMLINKS": b"cisfs v1 symlinks",
        "LABEL_XATTR_NAMES": b"cisfs v1 xattr names",
        "LABEL_XATTR_VALUES": b"cisfs v1 xattr values",
        "LABEL_JOURNAL": b"cisfs v1 journal",
        "LABEL_FILE": b"cisfs v1 file",
        "LABEL_KEY_FILE_SLOT": b"cisfs v1 key-file slot",
        "LABEL_LAYER_HEADER": b"cisfs v1 layer header",
        "LABEL_LAYER_UNITS": b"cisfs v1 layer units",
        "LABEL_LAYER_SLOTS": b"cisfs v1 layer slots",
        "LABEL_SCRATCH": b"cisfs v1 scratch",
        "LABEL_ROTATION": b"cisfs v1 rotation",
    }


def test_no_label_starts_another() -> None:
    """The file label is followed by the header's fields: no other label may be such a string."""
    labels = [value for name, value in vars(keys).items() if name.startswith("LABEL_")]
    for one in labels:
        assert not any(other.startswith(one) for other in labels if other is not one)


def test_vault_keys_differ_from_each_other_and_between_vaults() -> None:
    one, other = VaultKeys.derive(MASTER, bytes(16)), VaultKeys.derive(MASTER, b"\1" * 16)
    drawn = [
        part
        for vault in (one, other)
        for part in (
            vault.header_mac,
            vault.names[:32],
            vault.symlinks[:32],
            vault.xattr_names,
            vault.xattr_values[:32],
            vault.journal,
        )
    ]
    assert len(set(drawn)) == len(drawn)
    assert [len(one.names), len(one.symlinks), len(one.xattr_values)] == [64, 64, 64]


def test_layer_keys_differ_from_each_other_and_between_layers() -> None:
    one, other = LayerKeys.derive(MASTER, bytes(16)), LayerKeys.derive(MASTER, b"\1" * 16)
    drawn = [
        part
        for layer in (one, other)
        for part in (layer.header_mac, layer.units[:32], layer.units[32:])
    ]
    assert {len(part) for part in drawn} == {32}
    assert len(set(drawn)) == len(drawn)


def test_what_a_rotation_says_takes_both_master_keys() -> None:
    other, one_id = SecretKey(b"o" * 32), b"i" * 16
    drawn = {
        rotation_key(MASTER, other, one_id),
        rotation_key(other, MASTER, one_id),
        rotation_key(MASTER, MASTER, one_id),
        rotation_key(MASTER, other, bytes(16)),
        rotated_key(MASTER, one_id),
        rotated_key(other, one_id),
        rotated_key(MASTER, bytes(16)),
    }
    assert {len(each) for each in drawn} == {32}
    assert len(drawn) == 7


def test_file_keys_depend_on_the_master_key_the_id_and_every_header_bit() -> None:
    fields, file_id = bytes(range(16)), b"i" * 16
    xts, tag = file_keys(MASTER, file_id, fields)
    assert (len(xts), len(tag)) == (64, 32)
    assert xts[:32] != xts[32:]
    others = [
        file_keys(SecretKey(b"m" * 32), file_id, fields),
        file_keys(MASTER, bytes(16), fields),
    ]
    for bit in range(128):
        altered = bytearray(fields)
        altered[bit // 8] ^= 1 << bit % 8
        others.append(file_keys(MASTER, file_id, bytes(altered)))
    assert len({xts, *(other for other, _ in others)}) == 131
    assert len({tag, *(other for _, other in others)}) == 131


def test_a_secret_key_shows_only_a_fingerprint() -> None:
    shown = [
        repr(MASTER),
        str(MASTER),
        f"{MASTER}",
        f"{MASTER!r:>40}",
        f"{MASTER}{MASTER!r}",
    ]
    assert all("SecretKey" in text and shows_no_secret(text) for text in shown)
    assert repr(MASTER) == repr(SecretKey(SECRET)) != repr(SecretKey(bytes(32)))
    assert not hasattr(MASTER, "__dict__")


def test_what_holds_keys_does_not_show_them() -> None:
    derived = VaultKeys.derive(MASTER, bytes(16))
    text = repr(derived)
    assert shows_no_secret(text)
    layer = LayerKeys.derive(MASTER, bytes(16))
    text += repr(layer)
    for value in (
        derived.header_mac,
        derived.names,
        derived.journal,
        derived.xattr_values,
        layer.header_mac,
        layer.units,
    ):
        assert value.hex() not in text
        assert repr(value)[2:-1] not in text
    assert shows_no_secret(repr(Passphrase(SECRET)) + repr(RawKey(SECRET)))


def test_a_secret_key_is_neither_pickled_nor_copied() -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        with pytest.raises(TypeError, match="not pickled"):
            pickle.dumps(MASTER, protocol)
    with pytest.raises(TypeError, match="not pickled"):
        copy.deepcopy(MASTER)


def test_a_traceback_with_local_variables_shows_no_key_byte() -> None:
    def fail(master: SecretKey, credential: RawKey) -> None:
        derived = VaultKeys.derive(master, bytes(16))
        raise CisfsError(f"no luck with {derived.master} and {credential}")

    with pytest.raises(CisfsError) as caught:
        fail(MASTER, RawKey(SECRET))
    found = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    # The frame of this test is left out: it has nothing but the constant.
    assert shows_no_secret("".join(found.format()))


def test_equal_secrets_are_equal_keys() -> None:
    assert SecretKey(SECRET) == MASTER
    assert hash(SecretKey(SECRET)) == hash(MASTER)
    assert SecretKey(bytes(32)) != MASTER
    assert MASTER != SECRET


def test_generated_keys_are_fresh() -> None:
    drawn = {SecretKey.generate().reveal() for _ in range(50)}
    assert len(drawn) == 50
    assert {len(each) for each in drawn} == {32}
