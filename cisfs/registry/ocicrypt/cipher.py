"""The layer cipher of ocicrypt: AES-256 in counter mode, with HMAC-SHA256 of the ciphertext.

containers/ocicrypt, blockcipher/blockcipher_aes_ctr.go.  Both take the same key, the counter begins
with the nonce (NIST SP 800-38A, 6.5), and the code comes after all of the bytes: whoever decrypts
has to hold back what comes out until it was checked.  Does not know what is encrypted.  One object
for one pass over one layer, in order.
"""

from __future__ import annotations

import hashlib
import hmac

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from cisfs.crypto.keys import SecretKey

NAME = "AES_256_CTR_HMAC_SHA256"
NONCE_SIZE = 16  # bytes
MAC_SIZE = 32


class Encryption:
    """Encrypts a layer piece by piece."""

    def __init__(self, key: SecretKey, nonce: bytes) -> None:
        """Begin.  A key is for one layer, whatever the nonce."""
        self._stream = _Keystream(key, nonce)
        self._mac = hmac.new(key.reveal(), digestmod=hashlib.sha256)

    def update(self, plain: bytes) -> bytes:
        """Return the ciphertext, as long as the plaintext."""
        cipher = self._stream.update(plain)
        self._mac.update(cipher)
        return cipher

    def mac(self) -> bytes:
        """Return the code of all ciphertext so far."""
        return self._mac.digest()


class Decryption:
    """Decrypts a layer piece by piece, and finds in the end whether it was authentic."""

    def __init__(self, key: SecretKey, nonce: bytes) -> None:
        """Begin."""
        self._stream = _Keystream(key, nonce)
        self._mac = hmac.new(key.reveal(), digestmod=hashlib.sha256)

    def update(self, cipher: bytes) -> bytes:
        """Return the plaintext, which nobody may see before `is_authentic` was asked."""
        self._mac.update(cipher)
        return self._stream.update(cipher)

    def is_authentic(self, mac: bytes) -> bool:
        """Tell whether `mac` is the code of all ciphertext so far."""
        return hmac.compare_digest(self._mac.digest(), mac)


class _Keystream:
    """Adds the key stream, which encrypts and decrypts alike."""

    def __init__(self, key: SecretKey, nonce: bytes) -> None:
        cipher = Cipher(algorithms.AES256(key.reveal()), modes.CTR(nonce))
        self.update = cipher.encryptor().update
