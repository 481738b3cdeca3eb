"""Public and private keys in the encodings that people have them in: PEM, DER, X.509, JWK.

What it is, is seen from the bytes.  Does not know files (`cisfs.keys.identity_files`) nor what the
keys are for, other than that signing keys will not do.  Pure, but for a password that it asks the
caller for; safe anywhere.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization

from cisfs.errors import CisfsError, FormatError, NoKeyError, UsageError, WrongKeyError
from cisfs.format.config import load
from cisfs.keys.keypairs import PrivateKey, PublicKey, is_signing

Password = Callable[[], bytes]

_BLOCK = re.compile(rb"-----BEGIN ([A-Z0-9 ]+)-----.*?-----END \1-----", re.DOTALL)
_DER = b"\x30"  # a SEQUENCE, as which all of these begin


def load_public(data: bytes, where: str) -> PublicKey:
    """Read a public key: PEM or DER, bare (SPKI, PKCS #1) or in a certificate, or a JWK.

    Of a certificate nothing but its key counts.  Raises UsageError, which calls it `where`, also
    for several in one file.
    """
    try:
        if data.lstrip().startswith(b"{"):
            return _public_jwk(_json(data))
        if b"PRIVATE KEY-----" in data:
            raise ValueError("it is a private key, which is not to be given away")
        return PublicKey.of(_public(data))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _refused(where, error) from None


def load_private(data: bytes, where: str, password: Password | None = None) -> list[PrivateKey]:
    """Read the private keys in a PEM or DER file, a JWK or a JWK set.

    PEM may be PKCS #8, PKCS #1 or SEC 1, several in one file, encrypted or not; `password` is
    called once when it is needed.  Signing keys are passed over if there is any other key.  Raises
    UsageError, which calls it `where`; NoKeyError without a password, WrongKeyError for a wrong
    one.
    """
    try:
        found = list(_candidates(data, where, password))
        usable = [each for each in found if not is_signing(each)]
        return [_private(each) for each in usable or found]
    except (ValueError, UnsupportedAlgorithm) as error:
        raise _refused(where, error) from None


def is_encoded_key(data: bytes) -> bool:
    """Tell whether bytes look like what `load_private` reads."""
    return data.startswith(_DER) or data.lstrip().startswith(b"{") or bool(_BLOCK.search(data))


def _refused(where: str, error: Exception) -> CisfsError:
    return UsageError(f"{where} will not do as a key: {error}")


def _json(data: bytes) -> dict[str, object]:
    try:
        return load(data)
    except FormatError:  # whose words may quote what is in it
        raise ValueError("it is not a JSON object") from None


def _public_jwk(document: Mapping[str, object]) -> PublicKey:
    if "d" in document:
        raise ValueError("it is a private key, which is not to be given away")
    return PublicKey.from_members(document)


def _public(data: bytes) -> object:
    # All but the first would be passed over without a word.
    if sum(each[1].endswith((b"PUBLIC KEY", b"CERTIFICATE")) for each in _BLOCK.finditer(data)) > 1:
        raise ValueError("there is more than one key in it: give each its own file")
    if b"-----BEGIN CERTIFICATE-----" in data:
        return _of_certificate(lambda: x509.load_pem_x509_certificate(data))
    if not data.startswith(_DER):
        return _known(lambda: serialization.load_pem_public_key(data))
    try:
        return serialization.load_der_public_key(data)
    except ValueError:
        return _of_certificate(lambda: x509.load_der_x509_certificate(data))


def _of_certificate(read: Callable[[], x509.Certificate]) -> object:
    return _known(lambda: read().public_key())


def _known(read: Callable[[], object]) -> object:
    try:
        return read()
    except ValueError:
        raise ValueError("it is no public key, certificate or JWK") from None


def _candidates(data: bytes, where: str, password: Password | None) -> Iterator[object]:
    """Yield each private key: one of `cryptography`, or the members of a JWK."""
    if data.lstrip().startswith(b"{"):
        yield from _jwks(_json(data))
    elif data.startswith(_DER):
        yield _decoded(serialization.load_der_private_key, data, where, _once(where, password))
    else:
        asked = _once(where, password)
        blocks = [each for each in _BLOCK.finditer(data) if each[1].endswith(b"PRIVATE KEY")]
        if not blocks:
            raise ValueError("there is no private key in it")
        for block in blocks:
            yield _decoded(serialization.load_pem_private_key, block[0] + b"\n", where, asked)


def _jwks(document: Mapping[str, object]) -> Iterator[Mapping[str, object]]:
    members = document.get("keys", [document])
    if not isinstance(members, list) or not members:
        raise ValueError("its keys are not a list of keys")
    for each in members:
        if not isinstance(each, dict):
            raise ValueError("its keys are not a list of keys")
        yield each


def _private(found: object) -> PrivateKey:
    return PrivateKey.from_members(found) if isinstance(found, Mapping) else PrivateKey(found)


def _decoded(
    read: Callable[[bytes, bytes | None], object], data: bytes, where: str, password: Password
) -> object:
    try:
        return read(data, None)
    except TypeError:  # it takes a password
        pass
    except ValueError:
        raise ValueError("a private key in it is damaged, or of a kind unknown here") from None
    secret = password()
    try:
        return read(data, secret)
    except (ValueError, TypeError):
        raise WrongKeyError(f"the password does not open {where}") from None


def _once(where: str, password: Password | None) -> Password:
    """Return a function that asks at most once, however many keys there are."""
    known: list[bytes] = []

    def ask() -> bytes:
        if password is None:
            raise NoKeyError(f"{where} is encrypted, and there is no password for it")
        if not known:
            known.append(password())
        return known[0]

    return ask
