"""RSA keys in PKCS #11 tokens (smart cards, HSMs): wrap with the public half, unwrap in the token.

What a slot holds is ocicrypt's (containers/ocicrypt, crypto/pkcs11): JSON with the packet under
RSA-OAEP and the name of its hash.  Wrapping needs the public key alone, and no token unless the
key is to be read from it.  A token is spoken to by a child process (`cisfs.keys.pkcs11_token`):
vendors' modules start threads, crash and hang.

Does not know modules or tokens.  A PIN is read when it is needed, kept by its identity, and tried
once, since a token locks itself after a few wrong ones.  Not for several threads at a time.
"""

from __future__ import annotations

import getpass
import json
import os
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric.padding import MGF1, OAEP
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey, RSAPublicNumbers

from cisfs.errors import CisfsError, FormatError, NoKeyError, UsageError, WrongKeyError
from cisfs.format.config import SlotFields, b64, canonical, from_b64, load
from cisfs.keys import pkcs11_uri
from cisfs.keys.pkcs11_uri import SCHEME, Uri
from cisfs.keys.provider import ask_ours

TYPE = "pkcs11"
HASH_VARIABLE = (
    "OCICRYPT_OAEP_HASHALG"  # what ocicrypt's own users set where a token has SHA-1 only
)

_MIN_BITS = 2048
_MAX_BITS = 16384
_MAX_FILE = 1 << 16  # bytes of a public key or a PIN
_CHILD = "cisfs.keys.pkcs11_token"

# The names in ocicrypt's JSON, the names in a JWK (RFC 7518, section 4.1), and what they mean.
_ALGORITHMS: dict[str, tuple[str, hashes.HashAlgorithm]] = {
    "sha256": ("RSA-OAEP-256", hashes.SHA256()),
    "sha1": ("RSA-OAEP", hashes.SHA1()),  # noqa: S303 - OAEP needs no collision resistance
}


@dataclass(frozen=True, slots=True)
class Pkcs11Recipient:
    """Who has the token with the private half of a key."""

    key: RSAPublicKey
    hash: str

    @classmethod
    def from_words(cls, words: str) -> Pkcs11Recipient:
        """Return the recipient that `pkcs11:URI` or `pkcs11:FILE` names, a public key in PEM.

        Raises UsageError, CisfsError if the token fails.
        """
        path = words.removeprefix(SCHEME)
        if "=" in path:
            return cls._from_token(pkcs11_uri.parse(words))
        return cls(_public_key(Path(path)), _chosen_hash() or "sha256")

    @classmethod
    def from_stored(cls, recipient: object) -> Pkcs11Recipient:
        """Return the recipient that a slot's field `recipient` is of; FormatError."""
        return cls(*_from_jwk(recipient))

    @classmethod
    def _from_token(cls, uri: Uri) -> Pkcs11Recipient:
        pin = _pin_in(uri.pin_file) if uri.pin_file else None
        answer = _ask_token(uri, {"op": "public", "pin": pin})
        key = _checked_key(_number(answer["n"]), _number(answer["e"]), uri.shown)
        return cls(key, _chosen_hash() or answer["hash"])

    @property
    def type(self) -> str:
        """The type of the slots made for it."""
        return TYPE

    def wrap(self, packet: bytes) -> dict[str, str | int]:
        """Return a slot's other fields."""
        blob = self.key.encrypt(packet, _padding(self.hash))
        document = {
            "version": 0,
            "recipients": [{"version": 0, "blob": b64(blob), "hash": self.hash}],
        }
        wrapped = json.dumps(document, separators=(",", ":")).encode()
        return {"recipient": self._jwk(), "wrapped": b64(wrapped)}

    def _jwk(self) -> str:
        numbers = self.key.public_numbers()
        document = {
            "alg": _ALGORITHMS[self.hash][0],
            "e": _b64url(numbers.e),
            "kty": "RSA",
            "n": _b64url(numbers.n),
        }
        return canonical(document).decode("ascii")


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
        """Return the packet in a slot.

        Raises WrongKeyError if the token has not the key, FormatError, NoKeyError if there is no
        PIN, CisfsError if the token fails: then it is not tried again.
        """
        if self._failure is not None:
            raise self._failure
        blob, hash_name = _blob_in(slot)
        modulus = _b64url(_from_jwk(slot.get("recipient"))[0].public_numbers().n)
        request = {"op": "decrypt", "blob": b64(blob), "hash": hash_name, "n": modulus}
        try:
            return self._decrypt(request)
        except WrongKeyError:
            raise
        except CisfsError as error:
            self._failure = error
            raise

    def _decrypt(self, request: dict[str, str]) -> bytes:
        if self._pin is None and self._uri.pin_file is not None:
            self._pin = _pin_in(self._uri.pin_file)
        answer = _ask_token(self._uri, {**request, "pin": self._pin})
        if "token" in answer:
            self._pin = _ask_pin(answer["token"], self._uri.shown)
            answer = _ask_token(self._uri, {**request, "pin": self._pin})
        return from_b64(answer.get("packet"), f"the answer of {self._uri.shown}")


def _ask_token(uri: Uri, request: dict[str, str | None]) -> dict[str, str]:
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


def _blob_in(slot: SlotFields) -> tuple[bytes, str]:
    """Return what the token is to decrypt, and the name of OAEP's hash."""
    what = "a pkcs11 key slot's wrapped key"
    document = load(from_b64(slot.get("wrapped"), what))
    recipients = document.get("recipients")
    if document.get("version") != 0 or not isinstance(recipients, list) or len(recipients) != 1:
        raise FormatError(f"{what} is not of version 0 with one recipient")
    (one,) = recipients
    if not isinstance(one, dict) or one.get("version") != 0:
        raise FormatError(f"{what} is not of version 0 with one recipient")
    hash_name = one.get("hash") or "sha1"  # ocicrypt did not always write it
    if not isinstance(hash_name, str) or hash_name not in _ALGORITHMS:
        raise FormatError(f"{what} uses an unknown hash")
    return from_b64(one.get("blob"), what), hash_name


def _from_jwk(recipient: object) -> tuple[RSAPublicKey, str]:
    what = "a pkcs11 key slot's recipient"
    if not isinstance(recipient, str):
        raise FormatError(f"{what} is not text")
    document = load(recipient.encode("utf-8", "replace"))
    names = [name for name, (alg, _) in _ALGORITHMS.items() if alg == document.get("alg")]
    if document.get("kty") != "RSA" or not names:
        raise FormatError(f"{what} is not a JWK of an RSA key for RSA-OAEP or RSA-OAEP-256")
    try:
        key = _checked_key(_number(document.get("n")), _number(document.get("e")), what)
    except (UsageError, ValueError, TypeError):
        raise FormatError(f"{what} has no RSA key of {_MIN_BITS} bits or more") from None
    return key, names[0]


def _public_key(path: Path) -> RSAPublicKey:
    try:
        with path.open("rb") as file:
            key = serialization.load_pem_public_key(file.read(_MAX_FILE))
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except ValueError:
        raise UsageError(
            f"{path} is not a public key in PEM (nor a URI: pkcs11:token=...;object=...)"
        ) from None
    if not isinstance(key, RSAPublicKey):
        raise UsageError(f"{path} is not an RSA key, which is what tokens unwrap with")
    numbers = key.public_numbers()
    return _checked_key(numbers.n, numbers.e, str(path))


def _checked_key(n: int, e: int, what: str) -> RSAPublicKey:
    if not _MIN_BITS <= n.bit_length() <= _MAX_BITS:
        raise UsageError(f"{what}: its RSA key has {n.bit_length()} bits; use {_MIN_BITS} or more")
    try:
        return RSAPublicNumbers(e, n).public_key()
    except ValueError:
        raise UsageError(f"{what}: its RSA key is not valid") from None


def _chosen_hash() -> str | None:
    said = os.environ.get(HASH_VARIABLE, "").lower()
    if said and said not in _ALGORITHMS:
        raise UsageError(f"{HASH_VARIABLE} is neither sha256 nor sha1")
    return said or None


def _padding(hash_name: str) -> OAEP:
    algorithm = _ALGORITHMS[hash_name][1]
    return OAEP(mgf=MGF1(algorithm), algorithm=algorithm, label=None)


def _pin_in(path: Path) -> str:
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_mode & 0o077:
                raise UsageError(f"others can read the PIN in {path}; chmod 600 it")
            line = file.read(_MAX_FILE).split(b"\n", 1)[0].rstrip(b"\r")
    except OSError as error:
        raise UsageError(f"cannot read the PIN in {path}: {error.strerror}") from None
    try:
        pin = line.decode()
    except UnicodeDecodeError:
        raise UsageError(f"the PIN in {path} is not UTF-8") from None
    if not pin:
        raise UsageError(f"no PIN: the first line of {path} is empty")
    return pin


def _ask_pin(token: str, shown: str) -> str:
    try:
        with open("/dev/tty", "rb"):
            pass
        typed = getpass.getpass(f"PIN of token {token}: ")
    except (OSError, EOFError):
        typed = ""
    if not typed:
        raise NoKeyError(f"{shown}: no PIN; add ?pin-source=/FILE")
    return typed


def _b64url(number: int) -> str:
    data = number.to_bytes((number.bit_length() + 7) // 8, "big")
    return urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def _number(text: object) -> int:
    if not isinstance(text, str):
        raise TypeError
    return int.from_bytes(urlsafe_b64decode(text + "=" * (-len(text) % 4)), "big")
