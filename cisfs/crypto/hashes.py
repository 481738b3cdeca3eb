"""The hashes of a sealed layer: BLAKE3 in derive-key mode (docs/FORMAT.md, section 11).

They take no key, so whoever carries a layer can check it.  Does not know how hashes make a tree
(`cisfs.layer.hashtree`).  Pure functions; safe anywhere.
"""

from __future__ import annotations

from blake3 import blake3

HASH_SIZE = 32

# Two contexts, so that the hash of a unit never passes for that of a tree's block.  To copy a
# hasher is quicker than to derive a key from its context each time.
_UNIT = blake3(derive_key_context="cisfs v1 layer unit")
_BLOCK = blake3(derive_key_context="cisfs v1 layer tree")


def unit_hash(cipher: bytes | bytearray | memoryview) -> bytes:
    """Return the 32-byte hash of a unit's ciphertext."""
    return _UNIT.copy().update(cipher).digest()


def block_hash(block: bytes | memoryview) -> bytes:
    """Return the 32-byte hash of a block of the hash tree."""
    return _BLOCK.copy().update(block).digest()
