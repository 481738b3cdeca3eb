"""RSA keys in PKCS #11 tokens (smart cards, HSMs): wrap with the public half, unwrap in the token.

What a slot holds is ocicrypt's (containers/ocicrypt, crypto/pkcs11): JSON with the packet under
RSA-OAEP and the name of its hash.  Wrapping needs the public key alone, and no token unless the
key is to be read from it.  A token is spoken to by a child process (`cisfs.keys.pkcs11_token`):
vendors' modules start threads, crash and hang.

Does not know modules or tokens.  A PIN is read when it is needed, kept by its identity, and tried
once, since a token locks itself after a few wrong ones.  Not for several threads at a time.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, OAEP
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from cisfs.errors import CisfsError, FormatError, NoKeyError, UsageError, WrongKeyError
from cisfs.format.config import SlotFields, b64, from_b64, load
from cisfs.keys import pkcs11_uri
from cisfs.keys.credentials import typed
from cisfs.keys.encodings import load_public
from cisfs.keys.keypairs import PublicKey
from cisfs.keys.pkcs11_uri import SCHEME, Uri
from cisfs.keys.private_files import read_private, read_public
from cisfs.keys.provider import ask_ours

TYPE = "pkcs11"
HASH_VARIABLE = (
    "OCICRYPT_OAEP_HASHALG"  # what ocicrypt's own users set where a token has SHA-1 only
)

_MAX_RECIPIENTS = 64  # in one packet; a token is asked for each
_CHILD = "cisfs.keys.pkcs11_token"

# The algorithms of a JWK (RFC 7518, section 4.1), and the name of their hash in ocicrypt's JSON.
_HASHES = {"RSA-OAEP-256": "sha256", "RSA-OAEP": "sha1"}
_ALGORITHMS: dict[str, hashes.HashAlgorithm] = {
    "sha256": hashes.SHA256(),
    "sha1": hashes.SHA1(),  # noqa: S303 - OAEP needs no collision resistance
}


@dataclass(frozen=True, slots=True)
class Pkcs11Recipient:
    """Who has the token with the private half of an RSA key; the key's algorithm names the hash."""

    public: PublicKey

    @classmethod
    def from_words(cls, words: str) -> Pkcs11Recipient:
        """Return the recipient that `pkcs11:URI` or `pkcs11:FILE`, a public key, names.

        Raises UsageError, CisfsError if the token fails.
        """
        path = words.removeprefix(SCHEME)
        if "=" in path:
            return cls._from_token(pkcs11_uri.parse(words))
        public = load_public(read_public(Path(path)), path)
        if public.members["kty"] != "RSA":
            raise UsageError(f"{path} is not an RSA key, which is what tokens unwrap with here")
        # Without a word on it SHA-256, as ocicrypt does for tokens, though not in JWE.
        return cls._for(public.members, _HASHES[public.members.get("alg", "RSA-OAEP-256")])

    @classmethod
    def from_stored(cls, recipient: object) -> Pkcs11Recipient:
        """Return the recipient that a slot's field `recipient` is of; FormatError."""
        public = PublicKey.from_text(recipient)
        if public.members["kty"] != "RSA":
            raise FormatError("a pkcs11 key slot's recipient is not an RSA key")
        return cls(public)

    @classmethod
    def _from_token(cls, uri: Uri) -> Pkcs11Recipient:
        pin = _pin_in(uri.pin_file) if uri.pin_file else None
        answer = _ask_token(uri, {"op": "public", "pin": pin})
        members = {"kty": "RSA", "n": answer["n"], "e": answer["e"]}
        try:
            return cls._for(members, answer["hash"])
        except ValueError as error:
            raise UsageError(f"{uri.shown} will not do as a key: {error}") from None

    @classmethod
    def _for(cls, members: dict[str, str], usual: str) -> Pkcs11Recipient:
        """Return the recipient with a key, to be used with the hash that was chosen or is usual."""
        chosen = _chosen_hash() or usual
        (algorithm,) = (each for each, name in _HASHES.items() if name == chosen)
        return cls(PublicKey.from_members({**members, "alg": algorithm}))

    @property
    def type(self) -> str:
        """The type of the slots made for it."""
        return TYPE

    def wrap(self, packet: bytes) -> dict[str, str | int]:
        """Return a slot's other fields."""
        hash_name = _HASHES[self.public.algorithm]
        algorithm = _ALGORITHMS[hash_name]
        padding = OAEP(mgf=MGF1(algorithm), algorithm=algorithm, label=None)
        key = self.public.reveal()
        if not isinstance(key, RSAPublicKey):
            raise ValueError("tokens unwrap with RSA keys here")
        blob = b64(key.encrypt(packet, padding))
        document = {
            "version": 0,
            "recipients": [{"version": 0, "blob": blob, "hash": hash_name}],
        }
        wrapped = json.dumps(document, separators=(",", ":")).encode()
        return {"recipient": self.public.jwk, "wrapped": b64(wrapped)}


class Pkcs11Identity:
    """A token, and the key or keys in it that a URI names."""

    def __init__(self, uri: str) -> None:
        """Raises UsageError for a URI that is none; does not look for the token yet."""
        self._uri = pkcs11_uri.parse(uri)
        self._pin: str | None = None
        self._failure: CisfsError | None = None

    @property
    def name(self) -> str:
        """The URI, without what is not to be shown."""
        return self._uri.shown

    def suits(self, slot: SlotFields) -> bool:
        """Tell whether a slot was made for a token; which one, only the token can tell."""
        return slot.get("type") == TYPE

    def unwrap(self, slot: SlotFields) -> bytes:
        """Return the packet in a slot, or in what ocicrypt wrote: that names no recipient.

        Raises WrongKeyError if the token has not the key, FormatError, NoKeyError if there is no
        PIN, CisfsError if the token fails: then it is not tried again.
        """
        if self._failure is not None:
            raise self._failure
        modulus, wrong = None, WrongKeyError(f"{self.name}: it was made for other keys")
        blobs = _blobs_in(slot)
        if "recipient" in slot:
            modulus = Pkcs11Recipient.from_stored(slot["recipient"]).public.members["n"]
        for blob, hash_name in blobs:
            request = {"op": "decrypt", "blob": b64(blob), "hash": hash_name, "n": modulus}
            try:
                return self._decrypt(request)
            except WrongKeyError as error:
                wrong = error
            except CisfsError as error:
                self._failure = error
                raise
        raise wrong

    def _decrypt(self, request: dict[str, str | None]) -> bytes:
        if self._pin is None and self._uri.pin_file is not None:
            self._pin = _pin_in(self._uri.pin_file)
        answer = _ask_token(self._uri, {**request, "pin": self._pin})
        if "token" in answer:
            self._pin = _ask_pin(answer["token"], self._uri.shown)
            answer = _ask_token(self._uri, {**request, "pin": self._pin})
        return from_b64(answer.get("packet"), f"the answer of {self._uri.shown}")


def _ask_token(uri: Uri, request: Mapping[str, str | None]) -> dict[str, str]:
    """Ask the child, which reads the URI again; the PIN is on its standard input only."""
    named = {
        "module": pkcs11_uri.module(uri),
        "token": uri.token,
        "serial": uri.serial,
        "manufacturer": uri.manufacturer,
        "model": uri.model,
        "slot": uri.slot,
        "label": uri.label,
        "id": None if uri.key_id is None else uri.key_id.hex(),
    }
    answer = ask_ours(uri.shown, _CHILD, (), json.dumps({**named, **request}).encode())
    try:
        document: dict[str, str] = json.loads(answer)
    except ValueError:  # the module ended the process
        raise CisfsError(f"{uri.shown}: it answered nothing that can be read") from None
    return document


def _blobs_in(slot: SlotFields) -> list[tuple[bytes, str]]:
    """Return what a token is to decrypt, and the name of OAEP's hash: one for each recipient.

    There is one, but where ocicrypt wrote it.
    """
    what = "a pkcs11 key slot's wrapped key"
    document = load(from_b64(slot.get("wrapped"), what))
    recipients = document.get("recipients")
    most = 1 if "recipient" in slot else _MAX_RECIPIENTS
    if document.get("version") != 0 or not isinstance(recipients, list):
        raise FormatError(f"{what} is not of version 0 with recipients")
    if not 1 <= len(recipients) <= most:
        raise FormatError(f"{what} has {len(recipients)} recipients, not 1 to {most}")
    return [_blob_of(each, what) for each in recipients]


def _blob_of(recipient: object, what: str) -> tuple[bytes, str]:
    if not isinstance(recipient, dict) or recipient.get("version") != 0:
        raise FormatError(f"{what} has a recipient that is not of version 0")
    hash_name = recipient.get("hash") or "sha1"  # ocicrypt did not always write it
    if not isinstance(hash_name, str) or hash_name not in _ALGORITHMS:
        raise FormatError(f"{what} uses an unknown hash")
    return from_b64(recipient.get("blob"), what), hash_name


def _chosen_hash() -> str | None:
    said = os.environ.get(HASH_VARIABLE, "").lower()
    if said and said not in _ALGORITHMS:
        raise UsageError(f"{HASH_VARIABLE} is neither sha256 nor sha1")
    return said or None


def _pin_in(path: Path) -> str:
    line = read_private(path, "PIN file").split(b"\n", 1)[0].rstrip(b"\r")
    if not line:
        raise UsageError(f"no PIN: the first line of {path} is empty")
    return _text(line, f"the PIN in {path}")


def _ask_pin(token: str, shown: str) -> str:
    try:
        return _text(typed(f"PIN of token {token}").secret, "that PIN")
    except NoKeyError:  # whose words are of passphrases
        raise NoKeyError(f"{shown}: no PIN; add ?pin-source=/FILE") from None


def _text(pin: bytes, what: str) -> str:
    try:
        return pin.decode()
    except UnicodeDecodeError:
        raise UsageError(f"{what} is not UTF-8") from None
