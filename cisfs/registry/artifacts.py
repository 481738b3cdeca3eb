"""What cisfs keeps in registries: bare layers, key slots, and the manifests that hold them.

docs/FORMAT.md, section 15.  Pure: values to documents and back, no registry.  Safe anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from cisfs.errors import FormatError
from cisfs.format.sealed_geometry import HEADER_SIZE
from cisfs.format.slotarea import MAX_TEXT, SlotText
from cisfs.registry import manifest as manifests
from cisfs.registry.descriptor import EMPTY, Descriptor
from cisfs.registry.manifest import Index, Manifest
from cisfs.registry.reference import is_digest

LAYER_TYPE = "application/vnd.cisfs.layer.v1"
KEYS_TYPE = "application/vnd.cisfs.keys.v1+json"
LAYERS_ARTIFACT = "application/vnd.cisfs.layers.v1"
KEYS_ARTIFACT = "application/vnd.cisfs.keys.v1"
IDENTITY = "dev.cisfs.identity"  # annotation: the identity of a sealed layer
LAYERS = "dev.cisfs.layers"  # annotation, label and, as CISFS_LAYERS, variable of an image

MAX_KEYS = MAX_TEXT  # bytes
PART = 16 << 20  # bytes, at least
MOST_PARTS = 256  # of a layer
_TAG = "cisfs-"


@dataclass(frozen=True, slots=True)
class PushedLayer:
    """A sealed layer in a registry: its identity, and the parts of its bare layer in order."""

    identity: str
    parts: tuple[Descriptor, ...]

    @property
    def size(self) -> int:
        """Of the bare layer, in bytes."""
        return sum(part.size for part in self.parts)


def part_size(size: int) -> int:
    """Return how large the parts of a bare layer of `size` bytes are, but for the last one.

    Registries forget an upload that was cut off, so a part is what is lost then; and a manifest
    lists so many blobs, and no more.
    """
    return PART * max(1, -(-size // (MOST_PARTS * PART)))


def part(digest: str, size: int, identity: str) -> Descriptor:
    """Describe a part of the bare layer of a sealed layer."""
    return Descriptor(LAYER_TYPE, digest, size, {IDENTITY: identity})


def layers_artifact(layers: Sequence[PushedLayer], image: Descriptor) -> Manifest:
    """Return the manifest that holds the sealed layers of an image, the topmost first."""
    return manifests.build_manifest(
        config=EMPTY,
        layers=[part for layer in layers for part in layer.parts],
        artifact_type=LAYERS_ARTIFACT,
        subject=_bare_subject(image),
    )


def keys_artifact(keys: Descriptor, identity: str, layers: Descriptor) -> Manifest:
    """Return the manifest that holds the key slots of one sealed layer of an artifact."""
    return manifests.build_manifest(
        config=EMPTY,
        layers=[keys],
        artifact_type=KEYS_ARTIFACT,
        subject=_bare_subject(layers),
        annotations={IDENTITY: identity},
    )


def keys_tag(identity: str) -> str:
    """Return the tag under which the key slots of a layer are found."""
    return _TAG + identity.removeprefix("sha256:")


def layers_in(found: Manifest | Index) -> list[PushedLayer]:
    """Return the sealed layers that an artifact holds.  Raises FormatError."""
    if not isinstance(found, Manifest) or found.artifact_type != LAYERS_ARTIFACT:
        raise FormatError("what should hold the sealed layers is another kind of artifact")
    if any(each.media_type != LAYER_TYPE for each in found.layers):
        raise FormatError("the sealed layers' artifact holds something else, too")
    grouped = groupby(found.layers, key=lambda each: _identity(each.annotations))
    layers = [PushedLayer(identity, tuple(parts)) for identity, parts in grouped]
    if len({each.identity for each in layers}) != len(layers) or not layers:
        raise FormatError("the sealed layers' artifact holds none, or one of them twice")
    for each in layers:
        sizes = [part.size for part in each.parts]
        if len(sizes) > MOST_PARTS or sizes[0] < HEADER_SIZE or 0 in sizes:
            raise FormatError("a sealed layer in the registry is not in parts as one is")
    return layers


def keys_in(found: Manifest | Index, identity: str) -> tuple[Descriptor, Descriptor]:
    """Return the keys blob of a layer, and the artifact that holds the layer.

    Raises FormatError if that is not what `found` says.
    """
    if not isinstance(found, Manifest) or found.artifact_type != KEYS_ARTIFACT:
        raise FormatError("what should hold the key slots is another kind of artifact")
    if _identity(found.annotations) != identity:
        raise FormatError("the key slots that were found are those of another layer")
    if len(found.layers) != 1 or found.layers[0].media_type != KEYS_TYPE or found.subject is None:
        raise FormatError("the key slots' artifact is not made as one is")
    return found.layers[0], found.subject


def keys_blob(text: SlotText) -> bytes:
    """Return the keys blob: the text of the key slots, in canonical form."""
    return text.spelled()


def parse_keys(data: bytes) -> SlotText:
    """Read a keys blob.  Raises FormatError."""
    if len(data) > MAX_KEYS:
        raise FormatError(f"key slots of {len(data)} bytes")
    return SlotText.read(data)


def _identity(annotations: Mapping[str, str]) -> str:
    found = annotations.get(IDENTITY)
    if found is None or not is_digest(found):
        raise FormatError("a sealed layer in the registry has no identity")
    return found


def _bare_subject(found: Descriptor) -> Descriptor:
    return Descriptor(found.media_type, found.digest, found.size)
