"""A sealed layer of 1 TiB that takes little disk: only the first units hold anything.

All others are zeros as they are stored (and decrypt to noise), so their hashes are alike, and so
are nearly all blocks of the tree, which takes half a GiB.  For the tests of all tiers.

    build(path, KEY, content=image)
"""

from __future__ import annotations

import os
from dataclasses import replace
from hmac import digest as hmac_digest
from pathlib import Path

from cisfs.crypto.hashes import block_hash, unit_hash
from cisfs.crypto.keys import LayerKeys, SecretKey
from cisfs.crypto.units import XtsCipher
from cisfs.format.sealed import LayerHeader
from cisfs.format.sealed_geometry import LayerGeometry
from cisfs.format.slotarea import SlotText
from cisfs.keys.credentials import Credential
from cisfs.keys.slots import new_slot

TIB = 1 << 40
UNIT = 64 * 1024
LAYER_ID = b"one TiB of zeros"


def build(
    path: Path, credential: Credential, *, content: bytes = b"", image_size: int = TIB
) -> LayerGeometry:
    """Make the layer; `content` (whole units) is what its image begins with."""
    geometry = LayerGeometry(UNIT, image_size)
    layer_key = SecretKey(bytes(range(32)))
    keys = LayerKeys.derive(layer_key, LAYER_ID)
    with path.open("wb") as file:
        os.truncate(file.fileno(), geometry.stored_size)
        hashes = _units(file.fileno(), geometry, XtsCipher(keys.units), content)
        root = _tree(file.fileno(), geometry, hashes)
        header = LayerHeader(UNIT, image_size, LAYER_ID, root)
        code = hmac_digest(keys.header_mac, header.body(), "sha256")
        file.write(replace(header, mac=code).pack())
        file.write(SlotText((new_slot(layer_key, credential, LAYER_ID),)).pack())
    return geometry


def noise(geometry: LayerGeometry, unit: int) -> bytes:
    """What a unit decrypts to that is stored as zeros."""
    keys = LayerKeys.derive(SecretKey(bytes(range(32))), LAYER_ID)
    plain = bytearray(geometry.unit_length(unit))
    XtsCipher(keys.units).decrypt_into(unit, bytes(len(plain)), plain)
    return bytes(plain)


def _units(fd: int, geometry: LayerGeometry, xts: XtsCipher, content: bytes) -> list[bytes]:
    """Write the units of `content`; returns their hashes."""
    hashes = []
    cipher = bytearray(UNIT)
    for unit in range(len(content) // UNIT):
        xts.encrypt_into(unit, content[unit * UNIT : (unit + 1) * UNIT], cipher)
        os.pwrite(fd, cipher, geometry.unit_offset(unit))
        hashes.append(unit_hash(bytes(cipher)))
    return hashes


def _tree(fd: int, geometry: LayerGeometry, hashes: list[bytes]) -> bytes:
    """Write the tree; returns its root.

    In each level the first hashes are of content, and all others alike, but for the last one:
    the block below it may be filled up with zeros.
    """
    count, usual = geometry.unit_count, unit_hash(bytes(UNIT))
    last = unit_hash(bytes(geometry.unit_length(count - 1)))
    first_block = 0
    for blocks in geometry.level_blocks:
        level = _Level(hashes, usual, last, count)
        level.write(fd, geometry.block_offset(first_block), blocks)
        hashes = [block_hash(level.block(each)) for each in range(-(-len(hashes) // 128))]
        last = block_hash(level.block(blocks - 1))
        usual, count = block_hash(usual * 128), blocks
        first_block += blocks
    return last


class _Level:
    """One level of the tree: `count` hashes, the first ones given, the last one too."""

    def __init__(self, first: list[bytes], usual: bytes, last: bytes, count: int) -> None:
        self._first, self._usual, self._last, self._count = first, usual, last, count

    def block(self, index: int) -> bytes:
        """One block of it."""
        numbers = range(index * 128, min((index + 1) * 128, self._count))
        return b"".join(self._hash(number) for number in numbers).ljust(4096, b"\0")

    def _hash(self, number: int) -> bytes:
        if number < len(self._first):
            return self._first[number]
        return self._last if number == self._count - 1 else self._usual

    def write(self, fd: int, offset: int, blocks: int) -> None:
        """Write all of it, most of it in long pieces that are alike."""
        special = -(-len(self._first) // 128)
        for index in {*range(special), blocks - 1}:
            os.pwrite(fd, self.block(index), offset + 4096 * index)
        alike = self._usual * 128 * 256  # 1 MiB
        for index in range(special, blocks - 1, 256):
            length = 4096 * min(256, blocks - 1 - index)
            os.pwrite(fd, memoryview(alike)[:length], offset + 4096 * index)
