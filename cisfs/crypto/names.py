"""Names, symlink targets and xattrs: AES-256-SIV (RFC 5297) with associated data, keyed BLAKE3.

Does not know how ciphertexts are spelled on disk (`cisfs.format.names`).
A NameCipher holds no mutable state; safe from several threads.
"""

from __future__ import annotations

from blake3 import blake3
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESSIV

from cisfs.crypto.keys import VaultKeys
from cisfs.errors import IntegrityError

SIV_OVERHEAD = 16
XATTR_ID_SIZE = 16


class NameCipher:
    """Encrypts what names things in one vault.

    Names are deterministic within a directory (the file system finds a name by encrypting it)
    and unrelated between directories.  Decryption authenticates; a ciphertext moved elsewhere or
    altered raises IntegrityError.
    """

    __slots__ = ("_links", "_names", "_values", "_xattr_key")

    def __init__(self, keys: VaultKeys) -> None:
        """Take the name, symlink and xattr keys of `keys`."""
        self._names = AESSIV(keys.names)
        self._links = AESSIV(keys.symlinks)
        self._values = AESSIV(keys.xattr_values)
        self._xattr_key = keys.xattr_names

    def encrypt_name(self, dir_id: bytes, name: bytes) -> bytes:
        """Return the ciphertext (16 bytes longer) of one name in the directory `dir_id`."""
        return self._names.encrypt(name, [dir_id])

    def decrypt_name(self, dir_id: bytes, cipher: bytes) -> bytes:
        """Return the name, or raise IntegrityError if it was not written in this directory."""
        return _open(self._names, cipher, dir_id, "name")

    def encrypt_target(self, nonce: bytes, target: bytes) -> bytes:
        """Return the ciphertext (16 bytes longer) of a symlink's target; `nonce` is random."""
        return self._links.encrypt(target, [nonce])

    def decrypt_target(self, nonce: bytes, cipher: bytes) -> bytes:
        """Return a symlink's target, or raise IntegrityError."""
        return _open(self._links, cipher, nonce, "symlink target")

    def xattr_id(self, owner_id: bytes, name: bytes) -> bytes:
        """Return the 16 bytes under which the object `owner_id` keeps its xattr `name`."""
        return blake3(owner_id + name, key=self._xattr_key).digest(XATTR_ID_SIZE)

    def encrypt_xattr(self, owner_id: bytes, content: bytes) -> bytes:
        """Return the ciphertext (16 bytes longer) of an xattr's name and value together."""
        return self._values.encrypt(content, [owner_id])

    def decrypt_xattr(self, owner_id: bytes, cipher: bytes) -> bytes:
        """Return an xattr's name and value, or raise IntegrityError."""
        return _open(self._values, cipher, owner_id, "extended attribute")


def _open(siv: AESSIV, cipher: bytes, associated: bytes, what: str) -> bytes:
    if len(cipher) <= SIV_OVERHEAD:
        raise IntegrityError(f"an encrypted {what} is too short")
    try:
        return siv.decrypt(cipher, [associated])
    except InvalidTag:
        raise IntegrityError(f"an encrypted {what} was altered or moved") from None
