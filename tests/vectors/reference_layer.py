"""A second writer and reader of sealed layers, from docs/FORMAT.md, sections 8 to 11, alone.

Made to check cisfs against; knows nothing of it.  Slow, and all in memory; pure functions.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass

from blake3 import blake3
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tests.vectors import reference_xts


def key_file_slot(
    layer_key: bytes, layer_id: bytes, key_file: bytes, salt: bytes, nonce: bytes
) -> dict[str, str | int]:
    """A slot that a key file opens."""
    fields = {"salt": base64.b64encode(salt).decode(), "type": "key-file"}
    wrapping = HKDF(hashes.SHA256(), 32, salt, b"cisfs v1 key-file slot").derive(key_file)
    return _wrapped(layer_key, layer_id, wrapping, fields, nonce)


def passphrase_slot(
    layer_key: bytes, layer_id: bytes, passphrase: bytes, salt: bytes, nonce: bytes
) -> dict[str, str | int]:
    """A slot that a passphrase opens, as cheap as Argon2id gets."""
    fields: dict[str, str | int] = {
        "iterations": 1,
        "kdf": "argon2id",
        "lanes": 1,
        "memory_kib": 8,
        "salt": base64.b64encode(salt).decode(),
        "type": "passphrase",
    }
    kdf = Argon2id(salt=salt, length=32, iterations=1, lanes=1, memory_cost=8)
    return _wrapped(layer_key, layer_id, kdf.derive(passphrase), fields, nonce)


def _wrapped(
    layer_key: bytes,
    layer_id: bytes,
    wrapping: bytes,
    fields: Mapping[str, str | int],
    nonce: bytes,
) -> dict[str, str | int]:
    associated = b"cisfs v1 key slot" + layer_id + spelled(fields)
    wrapped = nonce + AESGCM(wrapping).encrypt(nonce, layer_key, associated)
    return {**fields, "wrapped": base64.b64encode(wrapped).decode()}


@dataclass(frozen=True)
class Parts:
    """What a layer is made of, each as it is stored; `joined` is the file."""

    header: bytes
    slots: bytes
    units: tuple[bytes, ...]
    levels: tuple[bytes, ...]

    def joined(self) -> bytes:
        """The stored file."""
        return b"".join([self.header, self.slots, bytes(65536), *self.units, *self.levels])


def sealed(
    layer_key: bytes,
    layer_id: bytes,
    image: bytes,
    unit_size: int,
    slots: list[dict[str, str | int]],
) -> Parts:
    """Seal an image."""
    key = derived(layer_key, layer_id, b"cisfs v1 layer units", 64)
    units = tuple(
        reference_xts.encrypt(key, number, image[start : start + unit_size])
        for number, start in enumerate(range(0, len(image), unit_size))
    )
    levels, root = tree(units)
    body = struct.pack("<8sHBB4x", b"CISFSSL\0", 1, unit_size.bit_length() - 1, 1)
    body += layer_id + struct.pack("<Q8x", len(image)) + root
    header = authenticated(layer_key, body.ljust(4064, b"\0"))
    return Parts(header, slots_area(spelled({"slots": slots})), units, levels)


def opened(stored: bytes, layer_key: bytes) -> bytes:
    """Read the whole image of a layer, checking everything but the key slots."""
    magic, version, log2, kind, layer_id, size = struct.unpack_from("<8sHBB4x16sQ", stored)
    assert (magic, version, kind) == (b"CISFSSL\0", 1, 1)
    header = stored[:4096]
    assert header == authenticated(layer_key, header[:4064])
    assert not any(header[12:16] + header[40:48] + header[80:4064] + stored[65536:131072])
    cipher, unit_size = stored[131072 : 131072 + size], 1 << log2
    units = [cipher[start : start + unit_size] for start in range(0, size, unit_size)]
    levels, root = tree(tuple(units))
    assert root == header[48:80]
    assert stored[131072 + size :] == b"".join(levels)
    key = derived(layer_key, layer_id, b"cisfs v1 layer units", 64)
    return b"".join(reference_xts.decrypt(key, number, unit) for number, unit in enumerate(units))


def tree(units: tuple[bytes, ...]) -> tuple[tuple[bytes, ...], bytes]:
    """The levels of the hash tree over these units, and its root."""
    found = [b"".join(hashed(unit, "cisfs v1 layer unit") for unit in units)]
    while True:
        found[-1] += bytes(-len(found[-1]) % 4096)
        above = b"".join(
            hashed(found[-1][at : at + 4096], "cisfs v1 layer tree")
            for at in range(0, len(found[-1]), 4096)
        )
        if len(above) == 32:
            return tuple(found), above
        found.append(above)


def slots_area(text: bytes) -> bytes:
    """The 61440 bytes of the key slots."""
    area = struct.pack("<8sI52x", b"CISFSKS\0", len(text)) + text.ljust(61440 - 64, b"\0")
    return area[:32] + hashlib.sha256(area).digest() + area[64:]


def authenticated(layer_key: bytes, body: bytes) -> bytes:
    """A header of 4064 bytes with its code."""
    key = derived(layer_key, body[16:32], b"cisfs v1 layer header", 32)
    return body + hmac.digest(key, body, "sha256")


def derived(layer_key: bytes, layer_id: bytes, info: bytes, length: int) -> bytes:
    """One of the keys of a layer."""
    return HKDF(hashes.SHA256(), length, layer_id, info).derive(layer_key)


def hashed(data: bytes, context: str) -> bytes:
    """BLAKE3 in derive-key mode."""
    return blake3(data, derive_key_context=context).digest()


def spelled(document: object) -> bytes:
    """The canonical form."""
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode("ascii")
