"""What ocicrypt writes about an encrypted layer: options for everyone, and those for key holders.

JSON as containers/ocicrypt, blockcipher/blockcipher.go, has it; members that we do not know are
passed over, as they are there.  Nothing authenticates the public options: a layer has to match
`mac` and `digest`.  Does not know how the private ones are wrapped.  Immutable values; safe
anywhere.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from cisfs.crypto.keys import KEY_SIZE, SecretKey
from cisfs.errors import FormatError
from cisfs.format.config import b64, from_b64, load
from cisfs.registry.ocicrypt.cipher import MAC_SIZE, NAME, NONCE_SIZE

_DIGEST = re.compile("sha256:[0-9a-f]{64}")
_CIPHER_OPTIONS = "cipheroptions"
_NONCE = "nonce"


@dataclass(frozen=True, slots=True)
class PublicOptions:
    """What anyone may read: the code of the ciphertext, seldom a nonce."""

    mac: bytes
    nonce: bytes | None = None

    def pack(self) -> bytes:
        """Return the JSON."""
        return _dump({"cipher": NAME, "hmac": b64(self.mac), _CIPHER_OPTIONS: _nonce(self.nonce)})

    @classmethod
    def parse(cls, data: bytes) -> PublicOptions:
        """Read the JSON.  Raises FormatError."""
        document = _load(data, "the public options")
        if document.get("cipher") != NAME:
            raise FormatError(f"the layer is encrypted with another cipher than {NAME}")
        mac = _sized(document.get("hmac"), MAC_SIZE, "the layer's HMAC")
        return cls(mac, _nonce_in(document, "the public options"))


@dataclass(frozen=True, slots=True)
class PrivateOptions:
    """What is wrapped for each recipient; `digest` is of the layer before it was encrypted."""

    key: SecretKey
    digest: str
    nonce: bytes | None = field(repr=False)

    def pack(self) -> bytes:
        """Return the JSON."""
        key = b64(self.key.reveal())
        cipher_options = _nonce(self.nonce)
        return _dump({"symkey": key, "digest": self.digest, _CIPHER_OPTIONS: cipher_options})

    @classmethod
    def parse(cls, data: bytes) -> PrivateOptions:
        """Read the JSON.  Raises FormatError, which repeats none of it."""
        document = _load(data, "the private options")
        key = SecretKey(_sized(document.get("symkey"), KEY_SIZE, "the layer's key"))
        digest = document.get("digest")
        if not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
            raise FormatError("the private options have no digest of sha256")
        return cls(key, digest, _nonce_in(document, "the private options"))


def nonce_of(public: PublicOptions, private: PrivateOptions) -> bytes:
    """Return the nonce: the public one if there are two, as ocicrypt looks.  Raises FormatError."""
    nonce = public.nonce or private.nonce
    if nonce is None:
        raise FormatError("neither the public nor the private options have a nonce")
    return nonce


def _dump(document: Mapping[str, object]) -> bytes:
    """Spell JSON as Go does: members in this order, no white space.

    It matters for the private options, of which an RSA key of 2048 bits can encrypt just so many.
    """
    return json.dumps(document, separators=(",", ":")).encode("ascii")


def _load(data: bytes, what: str) -> dict[str, object]:
    try:
        return load(data)
    except FormatError:  # whose words may quote what is in it
        raise FormatError(f"{what} are not a JSON object") from None


def _nonce(nonce: bytes | None) -> dict[str, str]:
    return {} if nonce is None else {_NONCE: b64(nonce)}


def _nonce_in(document: Mapping[str, object], what: str) -> bytes | None:
    options = document.get(_CIPHER_OPTIONS)
    if options is None:  # Go's nil map
        return None
    if not isinstance(options, dict):
        raise FormatError(f"{what} have cipher options that are no object")
    if _NONCE not in options:
        return None
    return _sized(options[_NONCE], NONCE_SIZE, f"the nonce in {what}")


def _sized(text: object, size: int, what: str) -> bytes:
    value = from_b64(text, what)
    if len(value) != size:
        raise FormatError(f"{what} has {len(value)} bytes instead of {size}")
    return value
