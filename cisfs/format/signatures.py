"""Signatures as JSON, and the file of detached ones: docs/FORMAT.md, section 13.

Knows the shape of every field, and neither keys nor whether a signature is right.  What is hostile
is never quoted in a message: the file may be a link to something else.  No I/O.  Pure functions of
immutable values; safe anywhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from cisfs.errors import FormatError, UnsupportedVersionError, UsageError
from cisfs.format.config import b64, canonical, from_b64, load

FORMAT = "cisfs signature"
VERSION = 1
MAX_SIGNATURES = 64
MAX_SIZE = 1 << 14  # bytes of a file; 64 signatures take 10.4 KiB
SIGNER_SIZE = 32
SIGNATURE_SIZE = 64

_IDENTITY = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)
_FILE_FIELDS = {"format", "version", "identity", "signatures"}
_FIELDS = {"signer", "signature"}
_PREFIX = "ed25519:"


@dataclass(frozen=True, slots=True)
class Signature:
    """What one signer has put under one identity, which is not in it."""

    signer: bytes  # 32 bytes, an Ed25519 public key
    signature: bytes  # 64 bytes


@dataclass(frozen=True, slots=True)
class SignatureFile:
    """A file of detached signatures, all of one layer."""

    identity: str
    signatures: tuple[Signature, ...]

    def pack(self) -> bytes:
        """Return the file's bytes: the canonical form, and a line end."""
        document = {
            "format": FORMAT,
            "version": VERSION,
            "identity": self.identity,
            "signatures": signature_fields(self.signatures),
        }
        return canonical(document) + b"\n"

    @classmethod
    def parse(cls, data: bytes) -> SignatureFile:
        """Read a file's bytes.  Raises UnsupportedVersionError for a newer version, FormatError."""
        document = load(data)
        if document.get("format") != FORMAT:
            raise FormatError("it does not say that it is a cisfs signature")
        _check_version(document.get("version"))
        if set(document) != _FILE_FIELDS:
            raise FormatError("it has other fields than format, version, identity and signatures")
        if canonical(document) + b"\n" != data:
            raise FormatError("it is not in canonical form")
        identity = document["identity"]
        if not isinstance(identity, str) or not is_identity(identity):
            raise FormatError("its identity is not sha256: and 64 hexadecimal digits")
        return cls(identity, parse_signatures(document["signatures"]))


def is_identity(text: str) -> bool:
    """Tell whether `text` is spelled as the identity of a layer."""
    return _IDENTITY.fullmatch(text) is not None


def signature_fields(signatures: Iterable[Signature]) -> list[dict[str, str]]:
    """Return signatures as what JSON has."""
    return [{"signer": b64(each.signer), "signature": b64(each.signature)} for each in signatures]


def parse_signatures(value: object) -> tuple[Signature, ...]:
    """Read a list of 1 to 64 signatures, each of another signer; FormatError says what is wrong."""
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_SIGNATURES:
        raise FormatError(f"signatures is not a list of 1 to {MAX_SIGNATURES} signatures")
    found = tuple(map(_signature, value))
    if len({each.signer for each in found}) != len(found):
        raise FormatError("a signer stands twice among the signatures")
    return found


def added(signatures: Iterable[Signature], new: Signature) -> tuple[Signature, ...]:
    """Return the signatures with a new one, in the place of an earlier one of the same signer.

    Raises UsageError if there are too many.
    """
    others = [each for each in signatures if each.signer != new.signer]
    if len(others) == MAX_SIGNATURES:
        raise UsageError(f"there are {MAX_SIGNATURES} signatures already")
    return (*others, new)


def spelled_signer(signer: bytes) -> str:
    """Spell a public key as users write it: "ed25519:" and base64."""
    return _PREFIX + b64(signer)


def parse_signer(text: str) -> bytes | None:
    """Read what `spelled_signer` spells; None if it is something else, FormatError if damaged."""
    if not text.startswith(_PREFIX):
        return None
    return _sized(text.removeprefix(_PREFIX), SIGNER_SIZE, "the key after ed25519:")


def _signature(value: object) -> Signature:
    if not isinstance(value, dict) or set(value) != _FIELDS:
        raise FormatError("a signature is not an object with signer and signature alone")
    return Signature(
        _sized(value["signer"], SIGNER_SIZE, "a signer"),
        _sized(value["signature"], SIGNATURE_SIZE, "a signature"),
    )


def _sized(text: object, size: int, what: str) -> bytes:
    value = from_b64(text, what)
    if len(value) != size:
        raise FormatError(f"{what} has {len(value)} bytes instead of {size}")
    if b64(value) != text:  # one spelling for each, RFC 4648, 3.5
        raise FormatError(f"{what} is not base64 in its only spelling")
    return value


def _check_version(version: object) -> None:
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise FormatError("its version is not a positive number")
    if version != VERSION:
        raise UnsupportedVersionError(
            f"signature has version {version}; this cisfs reads version {VERSION}: upgrade cisfs"
        )
