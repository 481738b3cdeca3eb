"""JSON Web Encryption, as ocicrypt writes and reads it: RFC 7516, and key slots of type `jwe`.

The subset that container tools speak (docs/FORMAT.md, 2.1): RSA-OAEP and ECDH-ES with AES key
wrapping, and no header that would change what the rest means.  Does not know where keys come from
nor what is encrypted.  Pure; safe anywhere.
"""

from __future__ import annotations

import itertools
import json
import re
from base64 import urlsafe_b64decode
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from jwcrypto.common import JWException  # type: ignore[import-untyped]
from jwcrypto.jwe import JWE  # type: ignore[import-untyped]
from jwcrypto.jwk import JWK  # type: ignore[import-untyped]

from cisfs.errors import FormatError, WrongKeyError
from cisfs.format.config import SlotFields, b64, canonical, from_b64, load
from cisfs.keys.keypairs import ALGORITHMS, PrivateKey, PublicKey

TYPE = "jwe"
CONTENT_ALGORITHM = "A256GCM"
CONTENT_ALGORITHMS = (  # RFC 7518, section 5.1: all that are accepted
    "A128CBC-HS256",
    "A192CBC-HS384",
    "A256CBC-HS512",
    "A128GCM",
    "A192GCM",
    "A256GCM",
)
_KEY_ALGORITHMS = tuple(itertools.chain(*ALGORITHMS.values()))
_ALLOWED = [*_KEY_ALGORITHMS, *CONTENT_ALGORITHMS]
_COMPACT = ("protected", "encrypted_key", "iv", "ciphertext", "tag")
_SHARED = ("protected", "unprotected", "iv", "ciphertext", "tag", "aad")
_OWN = ("header", "encrypted_key")
_HEADERS = ("unprotected", "header")  # JSON objects as they are; the other parts are base64url
_REFUSED = ("zip", "crit")
_BASE64URL = re.compile("[A-Za-z0-9_-]*")

Part = dict[str, object]  # a flattened JWE: what all recipients share, and what one has


@dataclass(frozen=True, slots=True)
class JweRecipient:
    """Somebody with an RSA or elliptic-curve key."""

    public: PublicKey

    @property
    def type(self) -> str:
        """`jwe`."""
        return TYPE

    def wrap(self, packet: bytes) -> dict[str, str | int]:
        """Return a slot's other fields: `recipient`, a JWK, and `wrapped`, a JWE in base64."""
        return {"recipient": self.public.jwk, "wrapped": b64(encrypt(packet, [self.public]))}


@dataclass(frozen=True, slots=True)
class JweIdentity:
    """A private key, and in words where it is from."""

    private: PrivateKey
    name: str

    def suits(self, slot: SlotFields) -> bool:
        """Tell whether a slot is of type `jwe`, and of no other recipient as far as it says."""
        if slot["type"] != TYPE:
            return False
        try:
            recipient = PublicKey.from_text(slot.get("recipient"))
        except FormatError:
            return True  # it does not say; whether the key opens it is soon seen
        return recipient.fingerprint == self.private.public.fingerprint

    def unwrap(self, slot: SlotFields) -> bytes:
        """Return the packet in a slot.  Raises WrongKeyError, FormatError."""
        return decrypt(from_b64(slot.get("wrapped"), "a key slot's wrapped key"), [self.private])


def encrypt(payload: bytes, recipients: Sequence[PublicKey]) -> bytes:
    """Encrypt for all of the recipients: JSON, flattened for one and general for several.

    Raises ValueError if there is no recipient or nothing to encrypt.
    """
    if not payload or not recipients:
        raise ValueError("a JWE has a payload and a recipient")
    if len(recipients) == 1:
        return _flattened(payload, recipients[0])
    token = JWE(payload, protected={"enc": CONTENT_ALGORITHM}, algs=_ALLOWED)
    for each in recipients:
        token.add_recipient(JWK(**each.members), header={"alg": each.algorithm})
    return bytes(token.serialize().encode("ascii"))


def decrypt(packet: bytes, keys: Sequence[PrivateKey]) -> bytes:
    """Return the payload of a JWE in any serialization, opened with the first key that does.

    Raises FormatError if it is no JWE, or one with algorithms that are not accepted; WrongKeyError
    if it was made for other keys, or altered.
    """
    parts = [(part, _algorithm(part)) for part in _parts(packet)]
    if not any(algorithm for _, algorithm in parts):
        raise FormatError("a JWE uses an algorithm or an extension that is not accepted")
    # Once for all parts: it is then that an RSA key is checked, which takes longer than to use it.
    offered = [(key.public.members["kty"], JWK.from_pyca(key.reveal())) for key in keys]
    for (part, algorithm), (key_type, key) in itertools.product(parts, offered):
        if algorithm in ALGORITHMS[key_type]:
            with suppress(JWException):
                return _opened(part, key)
    raise WrongKeyError("a JWE was made for other keys, or was altered")


def _flattened(payload: bytes, recipient: PublicKey) -> bytes:
    """Encrypt for one; all of the header is protected, as in the compact form."""
    header = {"alg": recipient.algorithm, "enc": CONTENT_ALGORITHM}
    token = JWE(payload, protected=header, algs=_ALLOWED, recipient=JWK(**recipient.members))
    parts = token.serialize(compact=True).split(".")
    return canonical(dict(zip(_COMPACT, parts, strict=True)))


def _opened(part: Part, key: JWK) -> bytes:
    token = JWE(algs=_ALLOWED)
    token.deserialize(json.dumps(part))
    token.decrypt(key)
    return bytes(token.payload)


def _parts(packet: bytes) -> Iterator[Part]:
    """Yield the JWE once for each recipient, its parts checked for their types.

    ocicrypt puts a copy of the first recipient's `encrypted_key` beside several recipients, which
    RFC 7516, section 7.2.1 forbids; it is overlooked.
    """
    document = _document(packet)
    shared = {name: document[name] for name in _SHARED if name in document}
    recipients = document.get("recipients", [document])
    if not isinstance(recipients, list):
        raise FormatError("a JWE's recipients are not a list")
    for recipient in recipients:
        if not isinstance(recipient, dict):
            raise FormatError("a JWE's recipient is not an object")
        part = shared | {name: recipient[name] for name in _OWN if name in recipient}
        _check(part)
        yield part


def _document(packet: bytes) -> dict[str, object]:
    try:
        words = packet.decode("ascii").strip().split(".")
        if len(words) == len(_COMPACT) and _BASE64URL.fullmatch(words[0]):
            return dict(zip(_COMPACT, words, strict=True))
        return load(packet)
    except (UnicodeDecodeError, FormatError):
        raise FormatError(
            "it is not a JWE: neither JSON nor five words with dots between"
        ) from None


def _check(part: Part) -> None:
    for name in (*_COMPACT, "aad"):
        text = part.get(name, "")
        if not isinstance(text, str) or not _BASE64URL.fullmatch(text) or len(text) % 4 == 1:
            raise FormatError(f"a JWE's {name} is not base64url")
    for name in ("iv", "ciphertext", "tag"):
        if not part.get(name):
            raise FormatError(f"a JWE has no {name}")
    for name in _HEADERS:
        if not isinstance(part.get(name, {}), dict):
            raise FormatError(f"a JWE's {name} is not an object")


def _algorithm(part: Part) -> str | None:
    """Return how the content key is wrapped, None if anything about it is not accepted."""
    header = _protected(part)
    for name in _HEADERS:
        more = part.get(name, {})
        if isinstance(more, dict):
            if header.keys() & more.keys():
                raise FormatError("a JWE's header says something twice")
            header |= more
    algorithm, content = header.get("alg"), header.get("enc")
    if content not in CONTENT_ALGORITHMS or any(name in header for name in _REFUSED):
        return None
    if not part.get("encrypted_key"):  # a key agreed on without one is not accepted
        return None
    return algorithm if isinstance(algorithm, str) and algorithm in _KEY_ALGORITHMS else None


def _protected(part: Part) -> dict[str, object]:
    text = str(part.get("protected", ""))
    if not text:
        return {}
    try:
        return load(urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    except FormatError:
        raise FormatError("a JWE's protected header is not a JSON object") from None
