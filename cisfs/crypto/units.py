"""Data units: AES-256-XTS (IEEE 1619, NIST SP 800-38E), and keyed BLAKE3 tags.

Does not know where a unit lies or what file or layer it belongs to; the caller gives the unit
number.  The ciphers hold no mutable state; safe from several threads.
"""

from __future__ import annotations

import struct
from hmac import compare_digest

from blake3 import blake3
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

TAG_SIZE = 16
BLOCK_SIZE = 16

# What a tag speaks of; the context that ends every tag's input is <number, kind, level>.
_KIND_UNIT = 0
_KIND_END = 1
_KIND_HOLE = 2
_CONTEXT = struct.Struct("<QBB6x")
_TWEAK = struct.Struct("<QQ")


class XtsCipher:
    """Encrypts and decrypts data units under one key; authenticates nothing.

    Every length is a multiple of 16 bytes, so no ciphertext is ever stolen and each block stands
    alone.
    """

    __slots__ = ("_aes",)

    def __init__(self, xts_key: bytes | memoryview) -> None:
        """Take the 64-byte XTS key (two AES-256 keys)."""
        self._aes = algorithms.AES(xts_key)

    # One unit is one context and one update: `cryptography` restarts the tweak at each update of
    # an XTS context, which tests/vectors/test_xts.py shows.

    def encrypt_into(
        self, unit: int, plain: bytes | memoryview, out: bytearray | memoryview, version: int = 0
    ) -> None:
        """Encrypt one unit into `out`, which is at least as long; a multiple of 16 bytes.

        `version` is the other half of the tweak: it tells the contents of one unit apart.
        """
        mode = modes.XTS(_TWEAK.pack(unit, version))
        Cipher(self._aes, mode).encryptor().update_into(plain, out)

    def decrypt_into(
        self, unit: int, cipher: bytes | memoryview, out: bytearray | memoryview, version: int = 0
    ) -> None:
        """Decrypt one unit into `out`, which is at least as long; it was authenticated before."""
        mode = modes.XTS(_TWEAK.pack(unit, version))
        Cipher(self._aes, mode).decryptor().update_into(cipher, out)


class UnitCipher(XtsCipher):
    """Encrypts, decrypts and tags the data units of one file.

    A plaintext that is not whole blocks is padded with zeros by the caller.
    """

    __slots__ = ("_tag_key",)

    def __init__(self, xts_key: bytes, tag_key: bytes) -> None:
        """Take the 64-byte XTS key (two AES-256 keys) and the 32-byte tag key."""
        super().__init__(xts_key)
        self._tag_key = tag_key

    def tag(self, unit: int, cipher: bytes | memoryview) -> bytes:
        """Return the 16-byte tag over a unit's ciphertext, its number and (implied) its length."""
        hasher = blake3(cipher, key=self._tag_key)
        hasher.update(_CONTEXT.pack(unit, _KIND_UNIT, 0))
        return hasher.digest(TAG_SIZE)

    def verify(self, unit: int, cipher: bytes | memoryview, tag: bytes | memoryview) -> bool:
        """Tell in constant time whether `tag` is the tag of this ciphertext at this number."""
        return compare_digest(self.tag(unit, cipher), tag)

    def end_tag(self, plain_size: int) -> bytes:
        """Return the 16-byte tag that says: the file ends here, with `plain_size` bytes."""
        context = _CONTEXT.pack(plain_size, _KIND_END, 0)
        return blake3(context, key=self._tag_key).digest(TAG_SIZE)

    def hole_tag(self, unit: int, level: int) -> bytes:
        """Return the 16-byte tag that says: `2**level` units from `unit` on are a hole."""
        context = _CONTEXT.pack(unit, _KIND_HOLE, level)
        return blake3(context, key=self._tag_key).digest(TAG_SIZE)


class VersionedCipher(XtsCipher):
    """Encrypts, decrypts and tags units that are written again and again, under a key of its own.

    The caller never gives a version twice: then no tweak is ever used twice, and a tag vouches for
    one content of one unit, not for an earlier one.  The cipher works on the caller's
    own key bytes; `forget` overwrites them.
    """

    __slots__ = ("_key",)
    KEY_SIZE = 64 + 32

    def __init__(self, key: bytearray) -> None:
        """Take 96 bytes: the 64 of the XTS key (two AES-256 keys), and the 32 of the tag key."""
        self._key = memoryview(key)
        super().__init__(self._key[:64])

    def tag(self, unit: int, version: int, cipher: bytes | memoryview) -> bytes:
        """Return the 16-byte tag over a ciphertext, its number and version, and its length."""
        hasher = blake3(cipher, key=self._key[64:])
        hasher.update(_TWEAK.pack(unit, version))
        return hasher.digest(TAG_SIZE)

    def verify(self, unit: int, version: int, cipher: bytes | memoryview, tag: bytes) -> bool:
        """Tell in constant time whether `tag` is the tag of this ciphertext, number and version."""
        return compare_digest(self.tag(unit, version, cipher), tag)

    def forget(self) -> None:
        """Overwrite the key: nothing is decrypted any more, nor encrypted to be read again."""
        self._key[:] = bytes(self.KEY_SIZE)
