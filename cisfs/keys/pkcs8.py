"""Private keys as PKCS #8, encrypted so that a passphrase is dear to guess.

`cryptography` and `openssl` write 2048 rounds of PBKDF2 and let nobody choose more, but read any
number.  So the envelope is spelled here: RFC 5958, section 3, with PBES2 of RFC 8018, appendix A.
Does not know files.  Pure; safe anywhere.
"""

from __future__ import annotations

import base64
import secrets

from cryptography.hazmat.primitives import hashes, padding
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

ROUNDS = 600_000  # of PBKDF2-HMAC-SHA-256, what OWASP recommends since 2023; 0.2 s

_SALT_SIZE = 16
_INTEGER, _OCTETS, _NULL, _OID, _SEQUENCE = 0x02, 0x04, 0x05, 0x06, 0x30
_PBES2 = bytes.fromhex("2a864886f70d01050d")
_PBKDF2 = bytes.fromhex("2a864886f70d01050c")
_HMAC_SHA256 = bytes.fromhex("2a864886f70d0209")
_AES256_CBC = bytes.fromhex("60864801650304012a")
_LINE = 48  # bytes in a line of 64 characters, RFC 7468, section 2


def private_pem(key: PrivateKeyTypes, passphrase: bytes | None = None) -> bytes:
    """Return a key in PEM, encrypted if there is a passphrase."""
    if passphrase is None:
        return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    plain = key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    return _pem("ENCRYPTED PRIVATE KEY", _encrypted(plain, passphrase))


def _encrypted(plain: bytes, passphrase: bytes) -> bytes:
    salt, iv = secrets.token_bytes(_SALT_SIZE), secrets.token_bytes(16)
    key = PBKDF2HMAC(hashes.SHA256(), 32, salt, ROUNDS).derive(passphrase)
    padder = padding.PKCS7(128).padder()
    padded = padder.update(plain) + padder.finalize()
    encryptor = Cipher(algorithms.AES256(key), modes.CBC(iv)).encryptor()
    cipher = encryptor.update(padded) + encryptor.finalize()
    rounds = ROUNDS.to_bytes(ROUNDS.bit_length() // 8 + 1, "big")
    function = _sequence(_der(_OID, _HMAC_SHA256), _der(_NULL, b""))
    derivation = _sequence(_der(_OCTETS, salt), _der(_INTEGER, rounds), function)
    scheme = _sequence(
        _sequence(_der(_OID, _PBKDF2), derivation),
        _sequence(_der(_OID, _AES256_CBC), _der(_OCTETS, iv)),
    )
    return _sequence(_sequence(_der(_OID, _PBES2), scheme), _der(_OCTETS, cipher))


def _sequence(*parts: bytes) -> bytes:
    return _der(_SEQUENCE, b"".join(parts))


def _der(tag: int, content: bytes) -> bytes:
    """Spell a value in DER: ITU-T X.690, section 8.1."""
    size = len(content)
    if size < 0x80:
        return bytes([tag, size]) + content
    length = size.to_bytes((size.bit_length() + 7) // 8, "big")
    return bytes([tag, 0x80 | len(length)]) + length + content


def _pem(label: str, data: bytes) -> bytes:
    lines = [base64.b64encode(data[at : at + _LINE]) for at in range(0, len(data), _LINE)]
    begin, end = (f"-----{word} {label}-----".encode() for word in ("BEGIN", "END"))
    return b"\n".join([begin, *lines, end, b""])
