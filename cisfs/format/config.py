"""`vault.json` as a value: docs/FORMAT.md, section 2.

Knows the shape of every field and none of the keys: whether the authentication code is right is
for `cisfs.layer.vault`, what a slot holds for `cisfs.keys.slots`.  No I/O.  Pure functions of
immutable values; safe anywhere.
"""

from __future__ import annotations

import binascii
import hashlib
import json
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field

from cisfs.errors import FormatError, UnsupportedVersionError
from cisfs.format.geometry import Geometry

FORMAT = "cisfs vault"
VERSION = 1
MAX_SIZE = 1 << 20  # bytes; more is not a vault.json
MAX_SLOTS = 256

SlotFields = Mapping[str, "str | int"]


@dataclass(frozen=True, slots=True)
class VaultConfig:
    """Everything `vault.json` says, except the two codes that protect it."""

    vault_id: bytes
    unit_size: int
    slots: tuple[SlotFields, ...]
    mac: bytes = field(default=b"", compare=False)

    def body(self) -> bytes:
        """Return the canonical bytes that checksum and authentication code cover.

        JSON with sorted keys and no white space, ASCII only.
        """
        return canonical(
            {
                "format": FORMAT,
                "version": VERSION,
                "vault_id": b64(self.vault_id),
                "unit_size": self.unit_size,
                "slots": [dict(slot) for slot in self.slots],
            }
        )

    def pack(self) -> bytes:
        """Return the file's bytes, checksum and code included, laid out for a person to read."""
        document = json.loads(self.body())
        document["mac"] = b64(self.mac)
        document["checksum"] = _checksum(canonical(document))
        return (json.dumps(document, indent=2, sort_keys=True) + "\n").encode()

    @classmethod
    def parse(cls, data: bytes) -> VaultConfig:
        """Read the file's bytes.

        Raises UnsupportedVersionError for a newer version, FormatError for any damage: the
        checksum tells damage apart from a wrong passphrase.
        """
        document = load(data)
        if document.get("format") != FORMAT:
            raise FormatError("it does not say that it is a cisfs vault")
        _check_version(document.get("version"))
        checksum = document.pop("checksum", None)
        if checksum != _checksum(canonical(document)):
            raise FormatError("its checksum does not match its contents")
        known = {"format", "version", "vault_id", "unit_size", "slots", "mac"}
        if set(document) != known:
            raise FormatError(f"fields missing or unknown: {sorted(set(document) ^ known)}")
        return cls(
            vault_id=_sized(document["vault_id"], 16, "vault_id"),
            unit_size=_unit_size(document["unit_size"]),
            slots=parse_slots(document["slots"]),
            mac=_sized(document["mac"], 32, "mac"),
        )


def b64(data: bytes) -> str:
    """Spell bytes as standard base64 (RFC 4648, section 4)."""
    return b64encode(data).decode("ascii")


def from_b64(text: object, what: str) -> bytes:
    """Read standard base64 back; FormatError names the field `what`."""
    if not isinstance(text, str):
        raise FormatError(f"{what} is not text")
    try:
        return b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise FormatError(f"{what} is not base64") from None


def canonical(document: object) -> bytes:
    """Spell a JSON document in its canonical form: sorted keys, no white space, ASCII only."""
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode("ascii")


def _checksum(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def load(data: bytes) -> dict[str, object]:
    """Read a JSON object in any spelling; FormatError for anything else, or a field twice."""
    if len(data) > MAX_SIZE:
        raise FormatError("it is too large")
    try:
        document = json.loads(data.decode("utf-8"), object_pairs_hook=_no_duplicates)
        canonical(document)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"it is not valid JSON ({error})") from None
    if not isinstance(document, dict):
        raise FormatError("it is not a JSON object")
    return document


def _no_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a field stands twice")
    return result


def _check_version(version: object) -> None:
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise FormatError("its version is not a positive number")
    if version != VERSION:
        raise UnsupportedVersionError(
            f"vault.json has version {version}; this cisfs reads version {VERSION}: upgrade cisfs"
        )


def _sized(text: object, size: int, what: str) -> bytes:
    value = from_b64(text, what)
    if len(value) != size:
        raise FormatError(f"{what} has {len(value)} bytes instead of {size}")
    return value


def _unit_size(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise FormatError("unit_size is not a number")
    try:
        return Geometry(value).unit_size
    except ValueError as error:
        raise FormatError(str(error)) from None


def parse_slots(value: object) -> tuple[SlotFields, ...]:
    """Check the shape of a list of key slots, and return them; FormatError says what is wrong."""
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_SLOTS:
        raise FormatError(f"slots is not a list of 1 to {MAX_SLOTS} key slots")
    for slot in value:
        if not isinstance(slot, dict) or not isinstance(slot.get("type"), str):
            raise FormatError("a key slot is not an object with a type")
        if not all(isinstance(item, (str, int)) for item in slot.values()):
            raise FormatError("a key slot has a field that is neither text nor number")
    return tuple(value)
