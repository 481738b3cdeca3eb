"""Keys that sign layers, and those that check signatures: where they come from.

A private key is a PEM file of PKCS #8 (RFC 5958) that nobody else may read, possibly encrypted; a
public one a PEM file of a SubjectPublicKeyInfo (RFC 8410), or `ed25519:BASE64` itself.  Does not
know layers nor whom to trust.  Reads each source once, when asked; one thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from cisfs.crypto.signatures import SigningKey, is_valid, sign, signer_of
from cisfs.errors import FormatError, NoKeyError, UsageError, WrongKeyError
from cisfs.format.signatures import Signature, parse_signer, spelled_signer


def signer(text: str, read: Callable[[Path], bytes] | None = None) -> bytes:
    """Return the 32-byte public key that `text` names: ed25519:BASE64, or a PEM file.

    `read` returns what is in a file (default: whatever anybody may read).  Raises UsageError, what
    `read` raises.
    """
    try:
        found = parse_signer(text)
    except FormatError as error:
        raise UsageError(f"{text!r} is no signer: {error}") from None
    if found is not None:
        return found
    from cisfs.keys.private_files import read_public

    return _public_key((read or read_public)(Path(text)), text)


def _public_key(data: bytes, what: str) -> bytes:
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    # A second key in the file would be passed over without a word.
    try:
        if data.count(b"-----BEGIN ") != 1:
            raise ValueError
        found = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm):
        raise UsageError(f"{what} is not one public key in PEM") from None
    if not isinstance(found, Ed25519PublicKey):
        raise UsageError(f"the public key in {what} is not one of Ed25519")
    return found.public_bytes_raw()


def signature_of(key: SigningKey, identity: str) -> Signature:
    """Return a key's signature of the layer with that identity."""
    return Signature(signer_of(key), sign(key, identity))


def describe_signatures(signatures: Iterable[Signature], identity: str) -> list[dict[str, object]]:
    """Return who has signed, for people and programs, and whether each signature is valid."""
    return [
        {
            "signer": spelled_signer(each.signer),
            "valid": is_valid(each.signer, each.signature, identity),
        }
        for each in signatures
    ]


def signing_key(spelled: str) -> SigningKey:
    """Return the private key in FILE, spelled FILE, FILE:file=PATH or FILE:fd=N.

    The latter two say where the password of an encrypted one is; else it is asked for on the
    terminal.  Raises UsageError for a file that will not do or that others can read, NoKeyError
    without a terminal, WrongKeyError.
    """
    from cisfs.keys.private_files import read_private
    from cisfs.keys.spelling import with_password

    path, password = with_password(spelled)
    data = read_private(path, "signing key")
    try:
        return _private_key(data, None, path)
    except TypeError:  # it is encrypted
        secret = _given(password, path)
    return _private_key(data, secret, path)


def _given(password: Callable[[], bytes], path: Path) -> bytes:
    try:
        return password()
    except NoKeyError:
        raise NoKeyError(
            f"signing key {path} is encrypted: say where its password is, with {path}:file=PATH"
        ) from None


def _private_key(data: bytes, password: bytes | None, path: Path) -> SigningKey:
    """Return the key; TypeError if it is encrypted and there is no password.

    What the library says is not repeated: it may quote what it could not read.
    """
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        found = load_pem_private_key(data, password)
    except (ValueError, UnsupportedAlgorithm):
        if password is not None:
            raise WrongKeyError(f"wrong password for signing key {path}") from None
        raise UsageError(f"{path} is not a private key in PEM (PKCS #8)") from None
    if not isinstance(found, Ed25519PrivateKey):
        raise UsageError(
            f"the key in {path} is not one of Ed25519; make one with: cisfs keygen --signing"
        )
    return found
