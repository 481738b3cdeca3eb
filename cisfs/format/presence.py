"""What of a sealed layer is here already, as bytes: the start of the file `present` in the store.

    header (4096) | bits now | bits that are durable

Both sets of bits fill whole blocks of 4096 bytes and have one bit for each unit, then one for each
block of the hash tree.  Bits of the first set are true as long as the machine runs: they are set
when the data is with the kernel.  Those of the second are set when it is on the disk; they replace
the first set when the machine has been started anew, which its boot id tells.

Knows no I/O.  Pure functions of immutable values; safe anywhere.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from cisfs.errors import FormatError
from cisfs.format.sealed_geometry import HASH_SIZE, LayerGeometry

MAGIC = b"CISFSPB\0"
VERSION = 1
SIZE = 4096
BOOT_ID_SIZE = 16
COMPLETE_OFFSET = 10  # of the byte that says that nothing is missing any more
BOOT_ID_OFFSET = 16

# magic, version, complete, zeros, boot id, SHA-256 of the layer's header, bits in each set
_HEADER = struct.Struct("<8sHB5s16s32sQ")


@dataclass(frozen=True, slots=True)
class PresenceHeader:
    """The header: which layer the bits are about, and since when the first set is true."""

    identity: bytes
    bits: int
    boot_id: bytes = bytes(BOOT_ID_SIZE)
    is_complete: bool = False

    @property
    def set_size(self) -> int:
        """Bytes of each set of bits."""
        return -(-self.bits // (8 * SIZE)) * SIZE

    @property
    def file_size(self) -> int:
        """Bytes in the file."""
        return SIZE + 2 * self.set_size

    def pack(self) -> bytes:
        """Return the header's bytes."""
        fields = (MAGIC, VERSION, self.is_complete, b"", self.boot_id, self.identity, self.bits)
        return _HEADER.pack(*fields).ljust(SIZE, b"\0")

    @classmethod
    def parse(cls, data: bytes) -> PresenceHeader:
        """Read a header; FormatError for what is none."""
        if len(data) < SIZE:
            raise FormatError(f"truncated to {len(data)} bytes")
        magic, version, complete, zeros, boot_id, identity, bits = _HEADER.unpack_from(data)
        if magic != MAGIC or version != VERSION:
            raise FormatError("it does not begin as one does")
        if complete > 1 or any(zeros) or any(data[_HEADER.size : SIZE]):
            raise FormatError("reserved bytes are not zero")
        if not 0 < bits <= 1 << 52:
            raise FormatError(f"{bits} bits")
        return cls(identity, bits, boot_id, bool(complete))


def header_for(identity: str, geometry: LayerGeometry) -> PresenceHeader:
    """Return the header for a layer that is known by `identity`, "sha256:" and hex digits."""
    digest = bytes.fromhex(identity.removeprefix("sha256:"))
    if len(digest) != HASH_SIZE:
        raise ValueError(f"identity {identity!r}")
    return PresenceHeader(digest, bit_count(geometry))


def bit_count(geometry: LayerGeometry) -> int:
    """How many bits a layer takes."""
    return geometry.unit_count + geometry.block_count


def bit_of_block(geometry: LayerGeometry, block: int) -> int:
    """The bit of a block of the hash tree; that of a unit is the unit's number."""
    return geometry.unit_count + block
