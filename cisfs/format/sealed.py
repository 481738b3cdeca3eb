"""The header and the key slots of a sealed layer, as bytes: docs/FORMAT.md, sections 9 and 10.

Knows no I/O and no keys: whether the authentication code is right is for `cisfs.layer.sealed`, what
a slot holds for `cisfs.keys.slots`.  Pure functions of immutable values; safe anywhere.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field

from cisfs.errors import FormatError, NotAVaultError, UnsupportedVersionError
from cisfs.format.config import SlotFields, canonical, load, parse_slots
from cisfs.format.geometry import MAX_UNIT_SIZE, MIN_UNIT_SIZE
from cisfs.format.sealed_geometry import (
    HASH_SIZE,
    HEADER_SIZE,
    RESERVED_SIZE,
    SLOTS_SIZE,
    LayerGeometry,
)

MAGIC = b"CISFSSL\0"
VERSION = 1
EROFS = 1  # what the image is
SLOTS_MAGIC = b"CISFSKS\0"

# magic, version, log2 of the unit size, kind of image, zeros, id, image size, zeros, root, zeros
_HEADER = struct.Struct("<8sHBB4s16sQ8s32s3984s")
_START = struct.Struct("<8sH")
_SLOTS = struct.Struct("<8sI20s32s")
_CHECKSUM_OFFSET = 32
MAX_SLOTS_TEXT = SLOTS_SIZE - _SLOTS.size


@dataclass(frozen=True, slots=True)
class LayerHeader:
    """The 4096 bytes at the start of a sealed layer."""

    unit_size: int
    image_size: int
    layer_id: bytes  # 16 bytes
    root: bytes  # 32 bytes
    mac: bytes = field(default=b"", compare=False)  # 32 bytes, HMAC-SHA-256

    def body(self) -> bytes:
        """Return the bytes that the authentication code covers."""
        log2 = self.unit_size.bit_length() - 1
        start = (MAGIC, VERSION, log2, EROFS, b"", self.layer_id)
        return _HEADER.pack(*start, self.image_size, b"", self.root, b"")

    def pack(self) -> bytes:
        """Return the header's bytes."""
        return self.body() + self.mac.ljust(HASH_SIZE, b"\0")

    @property
    def identity(self) -> str:
        """What the layer is known by: "sha256:" and the hexadecimal SHA-256 of the header."""
        return f"sha256:{hashlib.sha256(self.pack()).hexdigest()}"

    @property
    def geometry(self) -> LayerGeometry:
        """Where everything lies in the layer."""
        return LayerGeometry(self.unit_size, self.image_size)

    @classmethod
    def parse(cls, data: bytes) -> LayerHeader:
        """Read a header.

        Raises NotAVaultError for other magic, UnsupportedVersionError, FormatError.
        """
        _check_start(data)
        if len(data) < HEADER_SIZE:
            raise FormatError(f"layer header truncated to {len(data)} bytes")
        _, _, log2, kind, zeros, layer_id, size, more, root, rest = _HEADER.unpack_from(data)
        if not MIN_UNIT_SIZE <= 1 << log2 <= MAX_UNIT_SIZE:
            raise FormatError(f"layer header damaged: unit size 2**{log2}")
        if kind != EROFS:
            raise FormatError(f"layer header damaged: unknown kind of image {kind}")
        if any(zeros) or any(more) or any(rest):
            raise FormatError("layer header damaged: reserved bytes are not zero")
        mac = data[_HEADER.size : HEADER_SIZE]
        header = cls(1 << log2, size, layer_id, root, mac)
        try:
            _ = header.geometry
        except ValueError as error:
            raise FormatError(f"layer header damaged: {error}") from None
        return header


def _check_start(data: bytes) -> None:
    if not data.startswith(MAGIC):
        raise NotAVaultError("it does not begin as one does")
    if len(data) < _START.size:
        raise FormatError(f"layer header truncated to {len(data)} bytes")
    _, version = _START.unpack_from(data)
    if version != VERSION:
        raise UnsupportedVersionError(
            f"layer header has version {version}; this cisfs reads version {VERSION}: upgrade cisfs"
        )


def pack_slots(slots: Iterable[SlotFields]) -> bytes:
    """Return the bytes of the key slots' area; ValueError if there are too many for it."""
    text = canonical({"slots": [dict(slot) for slot in slots]})
    if len(text) > MAX_SLOTS_TEXT:
        raise ValueError(f"key slots of {len(text)} bytes; a layer has room for {MAX_SLOTS_TEXT}")
    area = _SLOTS.pack(SLOTS_MAGIC, len(text), b"", b"") + text.ljust(MAX_SLOTS_TEXT, b"\0")
    return area[:_CHECKSUM_OFFSET] + _checksum(area) + area[_SLOTS.size :]


def parse_layer_slots(data: bytes) -> tuple[SlotFields, ...]:
    """Read the key slots' area; FormatError says what is wrong with it."""
    if len(data) != SLOTS_SIZE:
        raise FormatError(f"key slots truncated to {len(data)} bytes")
    magic, length, reserved, checksum = _SLOTS.unpack_from(data)
    if magic != SLOTS_MAGIC:
        raise FormatError("key slots damaged: bad magic")
    if checksum != _checksum(data):
        raise FormatError("key slots damaged: the checksum does not match")
    if any(reserved):
        raise FormatError("key slots damaged: reserved bytes are not zero")
    if length > MAX_SLOTS_TEXT:
        raise FormatError(f"key slots damaged: a text of {length} bytes")
    text, rest = data[_SLOTS.size : _SLOTS.size + length], data[_SLOTS.size + length :]
    if rest != bytes(len(rest)):
        raise FormatError("key slots damaged: padding is not zero")
    try:
        return _slots_of(text)
    except FormatError as error:
        raise FormatError(f"key slots damaged: {error}") from None


def check_reserved(data: bytes) -> None:
    """Check the reserved area; FormatError if it is not zeros."""
    if len(data) != RESERVED_SIZE:
        raise FormatError(f"reserved area truncated to {len(data)} bytes")
    if data != bytes(RESERVED_SIZE):
        raise FormatError("reserved area damaged: it is not zero")


def _checksum(area: bytes) -> bytes:
    """SHA-256 of the area with zeros in the checksum's place."""
    digest = hashlib.sha256(area[:_CHECKSUM_OFFSET] + bytes(HASH_SIZE))
    digest.update(memoryview(area)[_SLOTS.size :])
    return digest.digest()


def _slots_of(text: bytes) -> tuple[SlotFields, ...]:
    document = load(text)
    if canonical(document) != text:
        raise FormatError("it is not in canonical form")
    if set(document) != {"slots"}:
        raise FormatError("it has other fields than slots")
    return parse_slots(document["slots"])
