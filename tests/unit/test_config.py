"""`vault.json`: round trip, each refusal's words, and damage told apart from a newer version."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from cisfs.errors import FormatError, UnsupportedVersionError
from cisfs.format.config import MAX_SIZE, VaultConfig, b64, from_b64

SLOT = {"type": "key-file", "salt": b64(bytes(16)), "wrapped": b64(bytes(60))}
CONFIG = VaultConfig(bytes(range(16)), 4096, (SLOT,), b"m" * 32)


def spelled(document: object) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def changed(**fields: Any) -> bytes:
    """The file with some fields changed (None: removed) and a checksum that fits."""
    document = json.loads(CONFIG.pack())
    del document["checksum"]
    for name, value in fields.items():
        if value is None:
            del document[name]
        else:
            document[name] = value
    document["checksum"] = hashlib.sha256(spelled(document)).hexdigest()
    return spelled(document)


def test_it_round_trips() -> None:
    parsed = VaultConfig.parse(CONFIG.pack())
    assert parsed == CONFIG
    assert parsed.mac == CONFIG.mac
    assert parsed.pack() == CONFIG.pack()
    assert CONFIG.pack().endswith(b"}\n")


def test_the_body_is_canonical_and_says_everything_but_the_codes() -> None:
    body = json.loads(CONFIG.body())
    assert spelled(body) == CONFIG.body()
    assert set(body) == {"format", "version", "vault_id", "unit_size", "slots"}


def test_a_rearranged_file_is_the_same() -> None:
    document = json.loads(CONFIG.pack())
    backwards = dict(reversed(document.items()))
    assert VaultConfig.parse(json.dumps(backwards, indent=7).encode()) == CONFIG


REFUSALS = [
    (b"", r"it is not valid JSON"),
    (b"\xff\xfe", r"it is not valid JSON"),
    (CONFIG.pack()[:100], r"it is not valid JSON"),
    (b"[" * 100_000, r"it is not valid JSON"),
    (b'{"format": ' + b"9" * 5000 + b"}", r"it is not valid JSON"),
    (b'{"format": 1, "format": 2}', r"it is not valid JSON \(a field stands twice\)"),
    (b"[]", r"it is not a JSON object"),
    (b"null", r"it is not a JSON object"),
    (b"{}", r"it does not say that it is a cisfs vault"),
    (b" " * (MAX_SIZE + 1), r"it is too large"),
    (changed(format="gocryptfs"), r"it does not say that it is a cisfs vault"),
    (changed(version="1"), r"its version is not a positive number"),
    (changed(version=1.0), r"its version is not a positive number"),
    (changed(version=True), r"its version is not a positive number"),
    (changed(version=0), r"its version is not a positive number"),
    (changed(version=None), r"its version is not a positive number"),
    (CONFIG.pack().replace(b"4096", b"8192"), r"its checksum does not match its contents"),
    (CONFIG.pack().replace(b'"checksum"', b'"checksun"'), r"its checksum does not match"),
    (changed(mac=None), r"fields missing or unknown: \['mac'\]"),
    (changed(comment="x"), r"fields missing or unknown: \['comment'\]"),
    (changed(vault_id=7), r"vault_id is not text"),
    (changed(vault_id="!!"), r"vault_id is not base64"),
    (changed(vault_id="ä"), r"vault_id is not base64"),
    (changed(vault_id=b64(bytes(15))), r"vault_id has 15 bytes instead of 16"),
    (changed(mac=b64(bytes(33))), r"mac has 33 bytes instead of 32"),
    (changed(unit_size="4096"), r"unit_size is not a number"),
    (changed(unit_size=True), r"unit_size is not a number"),
    (changed(unit_size=4096.0), r"unit_size is not a number"),
    (changed(unit_size=5000), r"unit size 5000 is not a power of two"),
    (changed(unit_size=-4096), r"unit size -4096 is not a power of two"),
    (changed(slots={}), r"slots is not a list of 1 to 256 key slots"),
    (changed(slots=[]), r"slots is not a list of 1 to 256 key slots"),
    (changed(slots=[SLOT] * 257), r"slots is not a list of 1 to 256 key slots"),
    (changed(slots=[1]), r"a key slot is not an object with a type"),
    (changed(slots=[{"salt": "x"}]), r"a key slot is not an object with a type"),
    (changed(slots=[{"type": 1}]), r"a key slot is not an object with a type"),
    (changed(slots=[{**SLOT, "x": 1.5}]), r"a key slot has a field that is neither text nor"),
    (changed(slots=[{**SLOT, "x": None, "y": []}]), r"a key slot has a field that is neither"),
]


@pytest.mark.parametrize(("data", "words"), REFUSALS)
def test_damage_is_named(data: bytes, words: str) -> None:
    with pytest.raises(FormatError, match=f"^{words}") as caught:
        VaultConfig.parse(data)
    assert type(caught.value) is FormatError


@pytest.mark.parametrize("version", [2, 3, 10**30])
def test_a_newer_version_is_refused_before_anything_else_is_looked_at(version: int) -> None:
    document = {"format": "cisfs vault", "version": version, "what": ["nobody", "knows"]}
    with pytest.raises(UnsupportedVersionError, match=f"has version {version}; .* upgrade cisfs"):
        VaultConfig.parse(json.dumps(document).encode())


def test_every_bit_of_damage_is_found() -> None:
    """But for white space, and letters of the escaped kind, which change nothing."""
    data = CONFIG.pack()
    for at in range(len(data)):
        for bit in range(8):
            altered = data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :]
            try:
                parsed = VaultConfig.parse(altered)
            except FormatError:
                continue
            assert (parsed, parsed.mac) == (CONFIG, CONFIG.mac)


def test_base64_is_strict() -> None:
    assert from_b64(b64(b"any"), "it") == b"any"
    for text in ("YW55\n", "YW5", "YW5-", "YW 5", "=", "YQ=="[:-1]):
        with pytest.raises(FormatError, match="it is not base64"):
            from_b64(text, "it")
