"""A second AES-XTS, from AES-ECB and the doubling in GF(2**128) alone (IEEE 1619, section 5).

Made to check `cisfs.crypto.units` against; knows nothing of it.  Slow; pure functions.
"""

from __future__ import annotations

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes


def encrypt(key: bytes, unit: int, plain: bytes) -> bytes:
    """Encrypt whole blocks: first half of `key` for the data, second for the tweak."""
    return _crypt(key, unit, plain, decrypt=False)


def decrypt(key: bytes, unit: int, cipher: bytes) -> bytes:
    """Undo `encrypt`."""
    return _crypt(key, unit, cipher, decrypt=True)


def _crypt(key: bytes, unit: int, data: bytes, *, decrypt: bool) -> bytes:
    half = len(key) // 2
    masks = _masks(key[half:], unit, len(data))
    aes = Cipher(algorithms.AES(key[:half]), modes.ECB())
    context = aes.decryptor() if decrypt else aes.encryptor()
    return _xor(context.update(_xor(data, masks)) + context.finalize(), masks)


def _masks(tweak_key: bytes, unit: int, length: int) -> bytes:
    """The tweak of each block: AES of the unit number, doubled once more for each block."""
    encryptor = Cipher(algorithms.AES(tweak_key), modes.ECB()).encryptor()
    tweak = int.from_bytes(encryptor.update(unit.to_bytes(16, "little")), "little")
    masks = bytearray()
    for _ in range(0, length, 16):
        masks += tweak.to_bytes(16, "little")
        tweak <<= 1
        if tweak >> 128:
            tweak ^= (1 << 128) | 0x87
    return bytes(masks)


def _xor(left: bytes, right: bytes) -> bytes:
    joined = int.from_bytes(left, "little") ^ int.from_bytes(right, "little")
    return joined.to_bytes(len(left), "little")
