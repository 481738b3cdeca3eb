"""Signatures of sealed layers: Ed25519 (RFC 8032) over a layer's identity (docs/FORMAT.md, 13).

The identity covers every bit of the ciphertext through the hash tree, and commits to the layer key
through the header's code, so what is signed is the decrypted content as well.  Does not know where
keys come from (`cisfs.keys.signing`) nor whom to trust.  Pure functions; safe anywhere.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SIGNER_SIZE = 32
SIGNATURE_SIZE = 64

# Keeps these signatures apart from all others that a key may ever make.  Changing it makes every
# existing signature worthless; tests/unit/test_signatures.py pins it.
LABEL_LAYER_SIGNATURE = b"cisfs v1 layer signature\0"

SigningKey = Ed25519PrivateKey


def signer_of(key: SigningKey) -> bytes:
    """Return the 32-byte public key by which a signing key's signatures are known."""
    return key.public_key().public_bytes_raw()


def sign(key: SigningKey, identity: str) -> bytes:
    """Return the 64-byte signature of a layer's identity, "sha256:" and hexadecimal digits."""
    return key.sign(_message(identity))


def is_valid(signer: bytes, signature: bytes, identity: str) -> bool:
    """Tell whether `signature` is that of the 32-byte public key `signer` over `identity`."""
    try:
        Ed25519PublicKey.from_public_bytes(signer).verify(signature, _message(identity))
    except (InvalidSignature, ValueError):  # ValueError: bytes that are no key
        return False
    return True


def _message(identity: str) -> bytes:
    return LABEL_LAYER_SIGNATURE + identity.encode("ascii")
