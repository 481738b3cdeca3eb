"""The header of a sealed layer, as bytes: docs/FORMAT.md, section 9.

Knows no I/O and no keys: whether the authentication code is right is for `cisfs.layer.sealed`.
Pure functions of immutable values; safe anywhere.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

from cisfs.errors import BaseMismatchError, FormatError, NotAVaultError, UnsupportedVersionError
from cisfs.format.config import canonical
from cisfs.format.geometry import MAX_UNIT_SIZE, MIN_UNIT_SIZE
from cisfs.format.sealed_geometry import HASH_SIZE, HEADER_SIZE, LayerGeometry

MAGIC = b"CISFSSL\0"
VERSION = 1
BOUND_VERSION = 3  # with a base; 2 is the unknown one of the test vectors
EROFS = 1  # what the image is

UNBOUND = bytes(HASH_SIZE)  # the base of a layer that is bound to nothing

# magic, version, log2 of the unit size, kind of image, zeros, id, image size, zeros, root, base,
# zeros
_HEADER = struct.Struct("<8sHBB4s16sQ8s32s32s3952s")
_START = struct.Struct("<8sH")


@dataclass(frozen=True, slots=True)
class LayerHeader:
    """The 4096 bytes at the start of a sealed layer."""

    unit_size: int
    image_size: int
    layer_id: bytes  # 16 bytes
    root: bytes  # 32 bytes
    mac: bytes = field(default=b"", compare=False)  # 32 bytes, HMAC-SHA-256
    base: bytes = UNBOUND  # 32 bytes, `base_of` the layers below

    def body(self) -> bytes:
        """Return the bytes that the authentication code covers."""
        log2 = self.unit_size.bit_length() - 1
        start = (MAGIC, self.version, log2, EROFS, b"", self.layer_id)
        return _HEADER.pack(*start, self.image_size, b"", self.root, self.base, b"")

    def pack(self) -> bytes:
        """Return the header's bytes."""
        return self.body() + self.mac.ljust(HASH_SIZE, b"\0")

    @property
    def version(self) -> int:
        """Of the format."""
        return VERSION if self.base == UNBOUND else BOUND_VERSION

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
        _, version, log2, kind, zeros, layer_id, size, more, root, base, rest = _HEADER.unpack_from(
            data
        )
        if not MIN_UNIT_SIZE <= 1 << log2 <= MAX_UNIT_SIZE:
            raise FormatError(f"layer header damaged: unit size 2**{log2}")
        if kind != EROFS:
            raise FormatError(f"layer header damaged: unknown kind of image {kind}")
        if any(zeros) or any(more) or any(rest) or (version == VERSION and any(base)):
            raise FormatError("layer header damaged: reserved bytes are not zero")
        if version == BOUND_VERSION and base == UNBOUND:
            raise FormatError("layer header damaged: it has no base")
        mac = data[_HEADER.size : HEADER_SIZE]
        header = cls(1 << log2, size, layer_id, root, mac, base)
        try:
            _ = header.geometry
        except ValueError as error:
            raise FormatError(f"layer header damaged: {error}") from None
        return header


def base_of(diff_ids: Sequence[str]) -> bytes:
    """Return what binds a layer to the layers below it: 32 bytes.

    `diff_ids` are those layers' in the image's configuration, the lowest first (OCI image-spec,
    config.md, "Layer DiffID").
    """
    return hashlib.sha256(canonical(list(diff_ids))).digest()


def check_base(header: LayerHeader, diff_ids: Sequence[str]) -> None:
    """Raise BaseMismatchError if the layer belongs on other layers than those with `diff_ids`.

    One that is bound to nothing goes on everything.
    """
    if header.base not in (UNBOUND, base_of(diff_ids)):
        raise BaseMismatchError(
            f"layer {header.identity} was sealed to go on another base than the {len(diff_ids)} "
            "layers below it here: use the image that it was made for, or cisfs push --rebase"
        )


def _check_start(data: bytes) -> None:
    if not data.startswith(MAGIC):
        raise NotAVaultError("it does not begin as one does")
    if len(data) < _START.size:
        raise FormatError(f"layer header truncated to {len(data)} bytes")
    _, version = _START.unpack_from(data)
    if version not in (VERSION, BOUND_VERSION):
        raise UnsupportedVersionError(
            f"layer header has version {version}; this cisfs reads version {VERSION} or "
            f"{BOUND_VERSION}: upgrade cisfs"
        )
