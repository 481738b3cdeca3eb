"""Any bytes into any parser give a value or one of our errors, nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from cisfs.crypto.keys import SecretKey, VaultKeys
from cisfs.crypto.names import NameCipher
from cisfs.errors import CisfsError
from cisfs.format import journal
from cisfs.format import names as spelling
from cisfs.format.config import VaultConfig, b64, from_b64
from cisfs.format.geometry import Geometry
from cisfs.format.header import (
    FileHeader,
    pack_directory,
    pack_marker,
    pack_trailer,
    parse_directory,
    parse_marker,
    parse_trailer,
)
from cisfs.format.journal import Record
from cisfs.keys.credentials import Passphrase, RawKey
from cisfs.keys.slots import open_slots

ID, KEY = bytes(range(16)), bytes(range(32))
CIPHER = NameCipher(VaultKeys.derive(SecretKey(KEY), ID))
SLOT = {"type": "key-file", "salt": b64(ID), "wrapped": b64(bytes(60))}
CONFIG = VaultConfig(ID, 4096, (SLOT,), KEY)

# A parser of bytes, beside bytes that it takes.
Parser = tuple[Callable[[bytes], object], bytes]

# What becomes of them: test_any_bytes.py.
PARSERS: dict[str, Parser] = {
    "file header": (FileHeader.parse, FileHeader(4096, ID).pack()),
    "directory id": (parse_directory, pack_directory(ID)),
    "trailer": (lambda data: parse_trailer(data, 20), pack_trailer(ID, 20)),
    "marker": (parse_marker, pack_marker(3, ID)),
    "config": (VaultConfig.parse, CONFIG.pack()),
    "name": (spelling.decode, spelling.encode(KEY)),
    "attribute": (spelling.parse_xattr, spelling.pack_xattr(b"user.a", b"value")),
    "journal": (journal.parse_header, journal.pack_header(ID, ID)),
    "record": (
        lambda data: journal.parse_record(KEY, ID, data),
        journal.pack_record(KEY, ID, Record(ID, 1, 2, 3, 4)),
    ),
    "sealed name": (lambda data: CIPHER.decrypt_name(ID, data), CIPHER.encrypt_name(ID, b"n")),
    "sealed target": (
        lambda data: CIPHER.decrypt_target(ID, data),
        CIPHER.encrypt_target(ID, b"t"),
    ),
    "sealed attribute": (
        lambda data: CIPHER.decrypt_xattr(ID, data),
        CIPHER.encrypt_xattr(ID, b"x"),
    ),
}
MANY = settings(max_examples=150)


def value_or_our_error(parse: Callable[[], object]) -> None:
    """The invariant: anything but a CisfsError would fail the test by itself."""
    try:
        parse()
    except CisfsError as error:
        said = str(error)
        assert said
        assert said.isprintable()
        assert len(said) < 500


@MANY
@given(size=st.one_of(st.integers(0, 2**63), st.integers(0, 20_000)), log2=st.integers(12, 20))
def test_any_stored_size(size: int, log2: int) -> None:
    geometry = Geometry(1 << log2)
    value_or_our_error(lambda: geometry.plain_size(size))
    below = geometry.plain_size_below(size)
    assert geometry.cipher_size(below) <= max(size, 64)


JSON = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(st.characters(), max_size=20),
        st.sampled_from(["cisfs vault", 1, 4096, b64(ID), b64(KEY), b64(bytes(60)), SLOT]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=10), inner, max_size=4)
    ),
    max_leaves=10,
)
FIELDS = st.sampled_from([*json.loads(CONFIG.pack()), "more"])


@MANY
@given(fields=st.dictionaries(FIELDS, JSON, max_size=3), dropped=st.sets(FIELDS, max_size=1))
def test_any_structure_of_a_config(fields: dict[str, Any], dropped: set[str]) -> None:
    """With a checksum that fits, so that it is looked at."""
    document = json.loads(CONFIG.pack()) | fields
    for name in {*dropped, "checksum"}:
        document.pop(name, None)
    body = json.dumps(document, sort_keys=True, separators=(",", ":")).encode("ascii")
    document["checksum"] = hashlib.sha256(body).hexdigest()
    spelled = json.dumps(document).encode("ascii")
    value_or_our_error(lambda: VaultConfig.parse(spelled))


SLOT_VALUES = st.one_of(
    st.integers(-1, 9),
    st.booleans(),
    st.text(max_size=30),
    st.binary(max_size=70).map(b64),
    st.sampled_from([b64(ID), b64(bytes(60)), "argon2id", "passphrase", "key-file"]),
)
SLOTS = st.fixed_dictionaries(
    {"type": st.sampled_from(["passphrase", "key-file", "tpm2"])},
    optional={
        "kdf": st.sampled_from(["argon2id", "argon2d"]),
        "salt": SLOT_VALUES,
        "wrapped": SLOT_VALUES,
        "iterations": st.integers(-1, 2),
        "lanes": st.integers(-1, 2),
        "memory_kib": st.integers(-1, 32),
        "more": SLOT_VALUES,
    },
)


@MANY
@given(slots=st.lists(SLOTS, min_size=1, max_size=3))
def test_any_key_slots(slots: list[dict[str, str | int]]) -> None:
    for credential in (Passphrase(b"words"), RawKey(KEY)):
        value_or_our_error(lambda: open_slots(slots, credential, ID))  # noqa: B023 - called at once


@MANY
@given(kind=st.text(st.characters(), min_size=1, max_size=10))
def test_any_type_of_slot_is_printable_in_an_error(kind: str) -> None:
    value_or_our_error(lambda: open_slots([{"type": kind}], RawKey(KEY), ID))


@MANY
@given(text=st.one_of(JSON, st.text(st.characters())))
def test_any_base64(text: object) -> None:
    value_or_our_error(lambda: from_b64(text, "it"))
