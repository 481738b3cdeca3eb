"""The public image of a base, made to name the sealed layers that belong on top of it.

Pure: documents in, documents out.  Source: OCI image-spec 1.1, config.md and manifest.md.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from cisfs.errors import FormatError
from cisfs.registry import manifest as manifests
from cisfs.registry.artifacts import LAYERS
from cisfs.registry.descriptor import Descriptor
from cisfs.registry.documents import Json, parse_object
from cisfs.registry.manifest import Manifest
from cisfs.registry.ocicrypt import mediatypes
from cisfs.registry.reference import is_digest

CONFIG_TYPE = mediatypes.CONFIG
VARIABLE = "CISFS_LAYERS"
MAX_CONFIG = 8 << 20  # bytes
_IN_PLAIN = frozenset(mediatypes.TAR + how for how in ("", "+gzip", "+zstd"))


def diff_ids(config: bytes) -> list[str]:
    """Return what `listed` returns of a configuration that is not parsed yet."""
    return [*listed(parse_object(config, "the image's configuration"))]


def listed(document: Mapping[str, Json]) -> tuple[str, ...]:
    """Return the digests of an image's layers as tars, the lowest first (`rootfs.diff_ids`).

    Raises FormatError.
    """
    rootfs = document.get("rootfs")
    found = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    if not isinstance(found, list) or len(found) > manifests.MAX_LAYERS:
        raise FormatError("the image's configuration does not list its layers")
    digests = tuple(each for each in found if isinstance(each, str) and is_digest(each))
    if len(digests) != len(found):
        raise FormatError("the image's configuration lists layers by what is no digest of sha256")
    return digests


def naming(config: bytes, layers: str) -> bytes:
    """Return the configuration that names sealed layers in a variable and a label.

    `layers` is what CISFS_LAYERS is to be.  Raises FormatError.
    """
    document = parse_object(config, "the image's configuration")
    inner = document.get("config") or {}
    if not isinstance(inner, dict):
        raise FormatError("the image's configuration has a config that is no object")
    variables = inner.get("Env") or []
    labels = inner.get("Labels") or {}
    if not isinstance(variables, list) or not isinstance(labels, dict):
        raise FormatError("the image's configuration has variables or labels that are none")
    kept = [each for each in variables if not str(each).startswith(f"{VARIABLE}=")]
    changed: dict[str, Json] = {
        **inner,
        "Env": [*kept, f"{VARIABLE}={layers}"],
        "Labels": {**labels, LAYERS: layers},
    }
    return manifests.dump({**document, "config": changed})


def layer_types(layers: Sequence[Descriptor]) -> list[Descriptor]:
    """Return the descriptors of an image's layers in OCI's words.

    Raises FormatError for a layer that no engine would take for one in plain.
    """
    found = []
    for layer in layers:
        media_type = mediatypes.oci(layer.media_type)
        if media_type not in _IN_PLAIN:
            raise FormatError(f"the base image has a layer of type {media_type!a}")
        found.append(replace(layer, media_type=media_type))
    return found


def image(
    config: Descriptor, layers: Sequence[Descriptor], named: str, annotations: Mapping[str, str]
) -> Manifest:
    """Return the manifest of the image; `named` is what CISFS_LAYERS is."""
    return manifests.build_manifest(
        config=config, layers=layers, annotations={**annotations, LAYERS: named}
    )


def named_in(config: bytes) -> list[str]:
    """Return the references of sealed layers that an image names, the topmost first."""
    inner = parse_object(config, "the image's configuration").get("config")
    variables = inner.get("Env") if isinstance(inner, dict) else None
    for each in variables if isinstance(variables, list) else []:
        name, _, value = str(each).partition("=")
        if name == VARIABLE:
            return [layer.strip() for layer in value.split(",") if layer.strip()]
    return []
