"""Signatures and the file of detached ones: pinned, bound to one identity, and each refusal."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cisfs.crypto import signatures
from cisfs.crypto.signatures import SigningKey, is_valid, sign, signer_of
from cisfs.errors import FormatError, UnsupportedVersionError, UsageError
from cisfs.format.signatures import (
    MAX_SIGNATURES,
    MAX_SIZE,
    Signature,
    SignatureFile,
    added,
    parse_signatures,
    parse_signer,
    signature_fields,
    spelled_signer,
)

KEY, OTHER = (SigningKey.from_private_bytes(bytes([number]) * 32) for number in (1, 2))
IDENTITY, ANOTHER = f"sha256:{'0a' * 32}", f"sha256:{'0b' * 32}"


def signed(key: SigningKey = KEY, identity: str = IDENTITY) -> Signature:
    return Signature(signer_of(key), sign(key, identity))


def many(count: int) -> tuple[Signature, ...]:
    return tuple(Signature(bytes([number]) * 32, bytes(64)) for number in range(count))


FILE = SignatureFile(IDENTITY, (signed(), signed(OTHER)))


# -- what is signed ------------------------------------------------------------------------


def test_the_label_is_pinned() -> None:
    """Change it, and no signature that was ever made is valid; share it, and others would be."""
    assert signatures.LABEL_LAYER_SIGNATURE == b"cisfs v1 layer signature\0"


def test_a_signature_is_over_the_label_and_the_identity() -> None:
    made = sign(KEY, IDENTITY)
    KEY.public_key().verify(made, b"cisfs v1 layer signature\0" + IDENTITY.encode())
    assert made == sign(KEY, IDENTITY)
    assert len(made) == 64


def test_a_signature_is_of_one_signer_and_one_identity() -> None:
    made = sign(KEY, IDENTITY)
    assert is_valid(signer_of(KEY), made, IDENTITY)
    assert not is_valid(signer_of(OTHER), made, IDENTITY)
    assert not is_valid(signer_of(KEY), made, ANOTHER)
    assert not is_valid(signer_of(KEY), KEY.sign(IDENTITY.encode()), IDENTITY)


def test_every_bit_of_a_signature_counts() -> None:
    made = sign(KEY, IDENTITY)
    for bit in range(512):
        altered = bytearray(made)
        altered[bit // 8] ^= 1 << bit % 8
        assert not is_valid(signer_of(KEY), bytes(altered), IDENTITY)


@pytest.mark.parametrize("signer", [b"", bytes(31), bytes(33), b"\xff" * 32])
def test_what_is_no_key_has_signed_nothing(signer: bytes) -> None:
    assert not is_valid(signer, sign(KEY, IDENTITY), IDENTITY)


@pytest.mark.parametrize("size", [0, 63, 65])
def test_what_is_no_signature_is_not_valid(size: int) -> None:
    assert not is_valid(signer_of(KEY), bytes(size), IDENTITY)


# -- the file ------------------------------------------------------------------------------


def test_files_round_trip() -> None:
    assert SignatureFile.parse(FILE.pack()) == FILE
    assert SignatureFile.parse(SignatureFile(ANOTHER, (signed(),)).pack()).identity == ANOTHER


def test_the_largest_file_is_small_enough() -> None:
    data = SignatureFile(IDENTITY, many(MAX_SIGNATURES)).pack()
    assert len(data) <= MAX_SIZE
    assert len(SignatureFile.parse(data).signatures) == MAX_SIGNATURES


def spelled(change: dict[str, Any]) -> bytes:
    document = {**json.loads(FILE.pack()), **change}
    kept = {key: value for key, value in document.items() if value is not None}
    return json.dumps(kept, sort_keys=True, separators=(",", ":")).encode() + b"\n"


FIELDS = signature_fields(FILE.signatures)
REFUSED: dict[str, tuple[bytes, str]] = {
    "no JSON": (b"ed25519", "it is not valid JSON"),
    "format": (spelled({"format": "cisfs vault"}), "does not say that it is a cisfs signature"),
    "version 0": (spelled({"version": 0}), "its version is not a positive number"),
    "version true": (spelled({"version": True}), "its version is not a positive number"),
    "no version": (spelled({"version": None}), "its version is not a positive number"),
    "more": (spelled({"secret": 1}), "other fields than"),
    "less": (spelled({"identity": None}), "other fields than"),
    "spelling": (FILE.pack().replace(b":", b": ", 1), "not in canonical form"),
    "no line end": (FILE.pack()[:-1], "not in canonical form"),
    "identity": (spelled({"identity": IDENTITY.upper()}), "identity is not sha256:"),
    "identity's end": (spelled({"identity": IDENTITY + "\n"}), "identity is not sha256:"),
    "identity a number": (spelled({"identity": 1}), "identity is not sha256:"),
    "none": (spelled({"signatures": []}), "not a list of 1 to 64"),
    "too many": (spelled({"signatures": signature_fields(many(65))}), "not a list of 1 to 64"),
    "no list": (spelled({"signatures": {}}), "not a list of 1 to 64"),
    "twice": (spelled({"signatures": [FIELDS[0], FIELDS[0]]}), "a signer stands twice"),
    "text": (spelled({"signatures": ["x"]}), "not an object with signer and signature alone"),
    "field": (
        spelled({"signatures": [{**FIELDS[0], "name": "x"}]}),
        "not an object with signer and signature alone",
    ),
    "signer": (
        spelled({"signatures": [{**FIELDS[0], "signer": "AAAA"}]}),
        "a signer has 3 bytes instead of 32",
    ),
    "signature": (
        spelled({"signatures": [{**FIELDS[0], "signature": FIELDS[0]["signer"]}]}),
        "a signature has 32 bytes instead of 64",
    ),
    "base64": (spelled({"signatures": [{**FIELDS[0], "signer": "!"}]}), "a signer is not base64"),
    "loose bits": (
        spelled({"signatures": [{**FIELDS[0], "signer": "A" * 42 + "B="}]}),
        "not base64 in its only spelling",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_version_1_has_is_refused(name: str) -> None:
    data, words = REFUSED[name]
    with pytest.raises(FormatError, match=words) as caught:
        SignatureFile.parse(data)
    assert not isinstance(caught.value, UnsupportedVersionError)


def test_a_newer_version_is_told_apart() -> None:
    with pytest.raises(UnsupportedVersionError, match="has version 2; this cisfs reads version 1"):
        SignatureFile.parse(spelled({"version": 2, "more": "whatever"}))


def test_messages_do_not_quote_what_was_found() -> None:
    """A link from LAYER.cis.sig can lead to what only root may read."""
    for change in ({"canary-key": 1}, {"identity": "canary"}, {"signatures": [{"canary": "x"}]}):
        with pytest.raises(FormatError) as caught:
            SignatureFile.parse(spelled(change))
        assert "canary" not in str(caught.value)
    with pytest.raises(FormatError) as caught:
        SignatureFile.parse(b"root:canary:1:2\n")
    assert "canary" not in str(caught.value)


# -- lists of signatures -------------------------------------------------------------------


def test_a_list_round_trips_in_its_order() -> None:
    assert parse_signatures(signature_fields(FILE.signatures)) == FILE.signatures
    back = tuple(reversed(FILE.signatures))
    assert parse_signatures(signature_fields(back)) == back


def test_a_signer_signs_once() -> None:
    old = Signature(signer_of(KEY), bytes(64))
    assert added([old, signed(OTHER)], signed()) == (signed(OTHER), signed())
    assert added([], signed()) == (signed(),)


def test_there_is_an_end_to_signing() -> None:
    full = many(MAX_SIGNATURES)
    assert len(added(full, Signature(full[3].signer, b"x" * 64))) == MAX_SIGNATURES
    with pytest.raises(UsageError, match="64 signatures already"):
        added(full, signed())


# -- signers as text -----------------------------------------------------------------------


def test_signers_round_trip_as_text() -> None:
    text = spelled_signer(signer_of(KEY))
    assert text.startswith("ed25519:")
    assert parse_signer(text) == signer_of(KEY)
    assert parse_signer("/etc/cisfs/signers/alice.pub") is None


@pytest.mark.parametrize("text", ["ed25519:", "ed25519:AAAA", "ed25519:é", "ed25519:" + "A" * 43])
def test_a_damaged_signer_is_no_file_name(text: str) -> None:
    with pytest.raises(FormatError):
        parse_signer(text)
