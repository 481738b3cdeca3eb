"""RSA and elliptic-curve keys that something is encrypted for: values, and their form as a JWK.

Does not know what is encrypted (`cisfs.keys.jwe`) nor files and their encodings
(`cisfs.keys.encodings`).  Pure; immutable values, safe anywhere.
"""

from __future__ import annotations

import hashlib
import json
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Mapping
from dataclasses import dataclass

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa

from cisfs.errors import FormatError
from cisfs.format.config import canonical, load

MIN_RSA_BITS = 2048
MAX_RSA_BITS = 16384  # OpenSSL's own limit

# RFC 7518, section 4.1, as far as ocicrypt goes; the first is for keys that do not name their own.
ALGORITHMS: dict[str, tuple[str, ...]] = {
    "RSA": ("RSA-OAEP", "RSA-OAEP-256"),
    "EC": ("ECDH-ES+A256KW", "ECDH-ES+A192KW", "ECDH-ES+A128KW"),
}
_CURVES: dict[str, ec.EllipticCurve] = {
    "P-256": ec.SECP256R1(),
    "P-384": ec.SECP384R1(),
    "P-521": ec.SECP521R1(),
}
_WORDS = re.compile("[A-Za-z0-9_-]+")

RawPublicKey = rsa.RSAPublicKey | ec.EllipticCurvePublicKey
RawPrivateKey = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
_SIGNING = (
    ed25519.Ed25519PrivateKey,
    ed25519.Ed25519PublicKey,
    ed448.Ed448PrivateKey,
    ed448.Ed448PublicKey,
)


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A public key as the canonical text of its JWK: RFC 7517, no members but those it needs.

    `alg` is there only if the key came with one.
    """

    jwk: str

    @classmethod
    def of(cls, key: object, algorithm: str | None = None) -> PublicKey:
        """Return the value for a key of `cryptography`; ValueError says why it will not do."""
        members = _members(key)
        if algorithm is not None:
            if algorithm not in ALGORITHMS[members["kty"]]:
                raise ValueError(
                    f"its algorithm {algorithm[:40]!a} is not one that encrypts keys here"
                )
            members["alg"] = algorithm
        return cls(canonical(members).decode("ascii"))

    @classmethod
    def from_members(cls, members: Mapping[str, object]) -> PublicKey:
        """Return the value for the members of any JWK; ValueError says why it will not do."""
        return cls.of(_public(members), _algorithm(members))

    @classmethod
    def from_text(cls, text: object) -> PublicKey:
        """Read `jwk` back, as a key slot keeps it.  Raises FormatError."""
        if not isinstance(text, str):
            raise FormatError("a key slot's recipient is not text")
        try:
            return cls.from_members(load(text.encode("utf-8", "surrogatepass")))
        except (FormatError, ValueError) as error:
            raise FormatError(f"a key slot's recipient is no public key: {error}") from None

    @property
    def members(self) -> dict[str, str]:
        """The members of the JWK."""
        members: dict[str, str] = json.loads(self.jwk)
        return members

    def reveal(self) -> RawPublicKey:
        """Return the key itself, to encrypt with."""
        return _public(self.members)

    @property
    def algorithm(self) -> str:
        """How keys are encrypted for it, in the words of RFC 7518, section 4.1."""
        members = self.members
        return members.get("alg", ALGORITHMS[members["kty"]][0])

    @property
    def fingerprint(self) -> str:
        """The thumbprint of RFC 7638 with SHA-256: 43 characters of base64url."""
        members = self.members
        members.pop("alg", None)
        return _base64url(hashlib.sha256(canonical(members)).digest())


class PrivateKey:
    """A private key that shows only the fingerprint of its public half."""

    __slots__ = ("_key", "public")

    def __init__(self, key: object, algorithm: str | None = None) -> None:
        """Wrap a key of `cryptography`; ValueError says why it will not do."""
        if isinstance(key, _SIGNING):
            raise ValueError("it is a signing key, which decrypts nothing")
        if not isinstance(key, RawPrivateKey):
            raise ValueError("it is neither an RSA nor an elliptic-curve key")
        self.public = PublicKey.of(key.public_key(), algorithm)
        self._key = key

    @classmethod
    def from_members(cls, members: Mapping[str, object]) -> PrivateKey:
        """Return the value for the members of a private JWK; ValueError says why not."""
        if "d" not in members:
            raise ValueError("it is a public key, which encrypts but does not decrypt")
        return cls(_private(members), _algorithm(members))

    def reveal(self) -> RawPrivateKey:
        """Return the key itself, to decrypt with and nothing else."""
        return self._key

    def __repr__(self) -> str:
        return f"<PrivateKey {self.public.fingerprint}>"

    def __reduce__(self) -> str:
        raise TypeError("a PrivateKey is not pickled")


def is_signing(key: object) -> bool:
    """Tell whether a key of `cryptography` or the members of a JWK can do nothing but sign."""
    if isinstance(key, Mapping):
        return key.get("use") == "sig" or key.get("crv") in ("Ed25519", "Ed448")
    return isinstance(key, _SIGNING)


def _members(key: object) -> dict[str, str]:
    if isinstance(key, rsa.RSAPublicKey):
        if not MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS:
            raise ValueError(
                f"it is an RSA key of {key.key_size} bits, not of {MIN_RSA_BITS} to {MAX_RSA_BITS}"
            )
        number = key.public_numbers()
        return {"kty": "RSA", "n": _number(number.n), "e": _number(number.e)}
    if isinstance(key, ec.EllipticCurvePublicKey):
        point = key.public_numbers()
        size = (key.key_size + 7) // 8
        x, y = (_base64url(each.to_bytes(size, "big")) for each in (point.x, point.y))
        return {"kty": "EC", "crv": _curve_name(key.curve), "x": x, "y": y}
    if isinstance(key, _SIGNING):
        raise ValueError("it is a signing key, for which nothing can be encrypted")
    raise ValueError("it is neither an RSA nor an elliptic-curve key")


def _curve_name(curve: ec.EllipticCurve) -> str:
    for name, known in _CURVES.items():
        if known.name == curve.name:
            return name
    raise ValueError(f"its curve {curve.name} is none of {', '.join(_CURVES)}")


def _algorithm(members: Mapping[str, object]) -> str | None:
    if members.get("use", "enc") != "enc":
        raise ValueError("it is for another use than enc")
    algorithm = members.get("alg")
    if algorithm is not None and not isinstance(algorithm, str):
        raise ValueError("its alg is not text")
    return algorithm


def _public(members: Mapping[str, object]) -> RawPublicKey:
    try:
        if members.get("kty") == "RSA":
            return _rsa_numbers(members).public_key()
        if members.get("kty") == "EC":
            return _point(members).public_key()
    except UnsupportedAlgorithm as error:
        raise ValueError(str(error)) from None
    raise ValueError("its kty is neither RSA nor EC")


def _private(members: Mapping[str, object]) -> RawPrivateKey:
    secret = _integer(members, "d")
    if members.get("kty") == "EC":
        return ec.EllipticCurvePrivateNumbers(secret, _point(members)).private_key()
    if members.get("kty") != "RSA":
        raise ValueError("its kty is neither RSA nor EC")
    public = _rsa_numbers(members)
    PublicKey.of(public.public_key())  # before anything is computed with numbers of any size
    if "p" in members:
        p, q, dp, dq, qi = (_integer(members, name) for name in ("p", "q", "dp", "dq", "qi"))
    else:  # RFC 7518, section 6.3.2: a key may have d alone
        p, q = rsa.rsa_recover_prime_factors(public.n, public.e, secret)
        dp, dq = rsa.rsa_crt_dmp1(secret, p), rsa.rsa_crt_dmq1(secret, q)
        qi = rsa.rsa_crt_iqmp(p, q)
    return rsa.RSAPrivateNumbers(p, q, secret, dp, dq, qi, public).private_key()


def _rsa_numbers(members: Mapping[str, object]) -> rsa.RSAPublicNumbers:
    return rsa.RSAPublicNumbers(_integer(members, "e"), _integer(members, "n"))


def _point(members: Mapping[str, object]) -> ec.EllipticCurvePublicNumbers:
    curve = _CURVES.get(str(members.get("crv")))
    if curve is None:
        raise ValueError(f"its curve is none of {', '.join(_CURVES)}")
    x, y = _integer(members, "x"), _integer(members, "y")
    return ec.EllipticCurvePublicNumbers(x, y, curve)


def _integer(members: Mapping[str, object], name: str) -> int:
    text = members.get(name)
    if not isinstance(text, str) or not _WORDS.fullmatch(text) or len(text) % 4 == 1:
        raise ValueError(f"its {name} is not base64url")
    return int.from_bytes(urlsafe_b64decode(text + "=" * (-len(text) % 4)), "big")


def _number(value: int) -> str:
    return _base64url(value.to_bytes((value.bit_length() + 7) // 8, "big"))


def _base64url(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode("ascii")
