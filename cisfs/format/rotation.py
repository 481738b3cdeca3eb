"""What an unfinished rotation says of itself, as bytes: docs/FORMAT.md, section 14.

Knows no I/O and no keys: whether a code is right is for `cisfs.layer`.  Immutable values and pure
functions; safe anywhere.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from cisfs.errors import FormatError, UnsupportedVersionError

LAYER_MAGIC = b"CISFSRL\0"
VAULT_MAGIC = b"CISFSRV\0"
VERSION = 1
LAYER_RECORD_SIZE = 4096
VAULT_RECORD_SIZE = 112
MAC_SIZE = 32

# magic, version, zeros, new layer id, identity of the source, SHA-256 of the slots, bytes done
_LAYER = struct.Struct("<8sH6s16s32s32sQ")
# magic, version, zeros, new vault id, id of the source
_VAULT = struct.Struct("<8sH6s16s16s")
_START = struct.Struct("<8sH6s")


@dataclass(frozen=True, slots=True)
class LayerRecord:
    """How far a new sealed layer is; it stands where the layer's header will be."""

    layer_id: bytes  # 16 bytes, of the new layer
    source: bytes  # 32 bytes, the identity of the layer that is rotated
    slots: bytes  # 32 bytes, SHA-256 of all between the record and the first unit
    done: int  # bytes of the image, from its beginning
    mac: bytes = field(default=b"", compare=False)  # 32 bytes, HMAC-SHA-256

    def body(self) -> bytes:
        """Return what the authentication code covers, after the hashes of the units done."""
        start = (LAYER_MAGIC, VERSION, b"", self.layer_id)
        packed = _LAYER.pack(*start, self.source, self.slots, self.done)
        return packed.ljust(LAYER_RECORD_SIZE - MAC_SIZE, b"\0")

    def pack(self) -> bytes:
        """Return the record's bytes."""
        return self.body() + self.mac.ljust(MAC_SIZE, b"\0")

    @classmethod
    def parse(cls, data: bytes) -> LayerRecord:
        """Read a record.  Raises FormatError, UnsupportedVersionError."""
        _check(data, LAYER_MAGIC, LAYER_RECORD_SIZE)
        *_, layer_id, source, slots, done = _LAYER.unpack_from(data)
        record = cls(layer_id, source, slots, done, data[-MAC_SIZE:])
        if record.pack() != data:
            raise FormatError("rotation record damaged: reserved bytes are not zero")
        return record


@dataclass(frozen=True, slots=True)
class VaultRecord:
    """Which vault a new one is made of."""

    vault_id: bytes  # 16 bytes, of the new vault
    source: bytes  # 16 bytes, the id of the vault that is rotated
    mac: bytes = field(default=b"", compare=False)  # 32 bytes, HMAC-SHA-256 under both master keys
    new_mac: bytes = field(default=b"", compare=False)  # the same, under the new one alone

    def body(self) -> bytes:
        """Return what the two authentication codes cover."""
        return _VAULT.pack(VAULT_MAGIC, VERSION, b"", self.vault_id, self.source)

    def pack(self) -> bytes:
        """Return the record's bytes."""
        return self.body() + self.mac.ljust(MAC_SIZE, b"\0") + self.new_mac.ljust(MAC_SIZE, b"\0")

    @classmethod
    def parse(cls, data: bytes) -> VaultRecord:
        """Read a record.  Raises FormatError, UnsupportedVersionError."""
        _check(data, VAULT_MAGIC, VAULT_RECORD_SIZE)
        *_, vault_id, source = _VAULT.unpack_from(data)
        macs = data[_VAULT.size :]
        return cls(vault_id, source, macs[:MAC_SIZE], macs[MAC_SIZE:])


def _check(data: bytes, magic: bytes, size: int) -> None:
    if len(data) != size:
        raise FormatError(f"rotation record of {len(data)} bytes")
    found, version, zeros = _START.unpack_from(data)
    if found != magic:
        raise FormatError("rotation record damaged: bad magic")
    if version != VERSION:
        raise UnsupportedVersionError(
            f"rotation record has version {version}; this cisfs reads version {VERSION}: "
            "upgrade cisfs"
        )
    if any(zeros):
        raise FormatError("rotation record damaged: reserved bytes are not zero")
