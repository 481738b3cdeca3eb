"""Writes age files with passphrases by the specification alone, as cheap or dear as wanted.

https://github.com/C2SP/C2SP/blob/main/age.md.  Knows nothing of cisfs or pyrage.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from base64 import b64encode

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt


def scrypt_file(payload: bytes, passphrase: bytes, factor: int) -> bytes:
    """Encrypt at most 64 KiB."""
    salt, file_key = secrets.token_bytes(16), secrets.token_bytes(16)
    label = b"age-encryption.org/v1/scrypt"
    wrapping_key = Scrypt(label + salt, 32, 1 << factor, 8, 1).derive(passphrase)
    wrapped = ChaCha20Poly1305(wrapping_key).encrypt(bytes(12), file_key, None)
    header = b"age-encryption.org/v1\n-> scrypt %s %d\n%s\n---" % (
        _b64(salt),
        factor,
        _b64(wrapped),
    )
    mac = hmac.digest(_hkdf(file_key, b"", b"header"), header, hashlib.sha256)
    nonce = secrets.token_bytes(16)
    stream = ChaCha20Poly1305(_hkdf(file_key, nonce, b"payload"))
    chunk = stream.encrypt(bytes(11) + b"\1", payload, None)
    return header + b" " + _b64(mac) + b"\n" + nonce + chunk


def _hkdf(key: bytes, salt: bytes, info: bytes) -> bytes:
    return HKDF(hashes.SHA256(), 32, salt, info).derive(key)


def _b64(data: bytes) -> bytes:
    return b64encode(data).rstrip(b"=")
