"""What belongs to an image or a sealed layer in a repository, found by what refers to it.

docs/FORMAT.md, section 15.  Everything is checked by digest from where it is named, but for the key
slots, which are found under a tag that moves.  Does not know where anything is stored here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cisfs.errors import (
    CisfsError,
    FormatError,
    NotFoundError,
    RangeIgnoredError,
    WrongContentError,
)
from cisfs.format.sealed import LayerHeader
from cisfs.format.sealed_geometry import HEADER_SIZE
from cisfs.format.slotarea import SlotText
from cisfs.registry import artifacts, image
from cisfs.registry.artifacts import LAYERS_ARTIFACT, PushedLayer, keys_tag
from cisfs.registry.bare import checked_header
from cisfs.registry.descriptor import Descriptor
from cisfs.registry.manifest import Index, Manifest
from cisfs.registry.reference import is_digest
from cisfs.registry.repository import Repository

_MOST_ARTIFACTS = 64  # that refer to one image: each push of other layers leaves one


@dataclass(frozen=True, slots=True)
class Keys:
    """The key slots of a layer as they are now, and the artifact that holds its data."""

    text: SlotText
    manifest: Manifest
    layers: Descriptor


@dataclass(frozen=True, slots=True)
class FoundImage:
    """An image, its configuration, and the identities of its sealed layers, the topmost first."""

    manifest: Manifest
    config: bytes
    identities: tuple[str, ...]


def choose(
    found: Manifest | Index, described: Callable[[Descriptor], Manifest | Index], machine: str
) -> Manifest:
    """Return the one image that `found` is, or that it lists for linux on `machine` (OCI's word).

    `described` fetches what a descriptor names.  Raises FormatError, and what `described` raises.
    """
    if isinstance(found, Manifest):
        return found
    wanted: dict[str, object] = {"os": "linux", "architecture": machine}
    for each in found.manifests:
        if each.platform and wanted.items() <= dict(each.platform).items():
            image = described(each)
            if isinstance(image, Manifest):
                return image
    raise FormatError(f"there is no image for linux on {machine} in the index")


def find_image(repository: Repository, manifest: Manifest) -> FoundImage:
    """Return what an image says of itself.  Raises FormatError, RegistryError."""
    config = repository.read_blob(manifest.config, image.MAX_CONFIG)
    named = image.named_in(config)
    identities = [each.rpartition("@")[2] for each in named]
    if not all(is_digest(each) for each in identities):
        raise FormatError("the image names sealed layers that are none of a registry's")
    return FoundImage(manifest, config, tuple(identities))


def find_keys(repository: Repository, identity: str) -> Keys:
    """Return the key slots of a layer.  Raises NotFoundError, FormatError, RegistryError."""
    try:
        found = repository.manifest(keys_tag(identity))
    except NotFoundError:
        raise NotFoundError(
            f"{repository.name} has no key slots of the sealed layer {identity}"
        ) from None
    blob, layers = artifacts.keys_in(found, identity)
    text = artifacts.parse_keys(repository.read_blob(blob, artifacts.MAX_KEYS))
    assert isinstance(found, Manifest)  # noqa: S101 - keys_in has looked
    return Keys(text, found, layers)


def find_layer(repository: Repository, identity: str, keys: Keys) -> PushedLayer:
    """Return where the data of a layer is.  Raises FormatError, RegistryError."""
    for layer in artifacts.layers_in(repository.described(keys.layers)):
        if layer.identity == identity:
            return layer
    raise FormatError(f"the artifact in {repository.name} does not hold the layer {identity}")


def find_header(repository: Repository, layer: PushedLayer) -> LayerHeader:
    """Return the header of a layer: it is what the identity names, and its size is the layer's.

    Raises WrongContentError, FormatError, RegistryError.
    """
    header = checked_header(_beginning(repository, layer.parts[0]), layer.identity)
    if header.geometry.stored_size != layer.size:
        raise WrongContentError(
            f"{repository.name}: layer {layer.identity} has another size than its header says"
        )
    return header


def _beginning(repository: Repository, part: Descriptor) -> bytes:
    try:
        with repository.open_range(part, 0, HEADER_SIZE) as pieces:
            return b"".join(pieces)
    except RangeIgnoredError:  # all of it, then, of which no more is taken than is needed
        data = b""
        with repository.open_range(part) as pieces:
            while len(data) < HEADER_SIZE and (piece := next(pieces, b"")):
                data += piece
        return data[:HEADER_SIZE]


def find_artifact(repository: Repository, found: FoundImage) -> list[PushedLayer]:
    """Return the sealed layers that belong to an image, in its order.

    Whoever may push can have anything refer to it.  Raises NotFoundError if none of that holds them
    all, or what is wrong with the first that is none; RegistryError.
    """
    wrong: CisfsError | None = None
    listed = repository.referrers(found.manifest.descriptor.digest, LAYERS_ARTIFACT)
    for each in listed[:_MOST_ARTIFACTS]:
        try:
            layers = artifacts.layers_in(repository.described(each))
        except (FormatError, NotFoundError, WrongContentError) as error:
            wrong = wrong or error
            continue
        held = {layer.identity: layer for layer in layers}
        if set(found.identities) <= set(held):
            return [held[identity] for identity in found.identities]
    if wrong is not None:
        raise wrong
    raise NotFoundError(f"{repository.name} does not have the sealed layers that the image names")
