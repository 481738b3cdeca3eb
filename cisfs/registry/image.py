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

CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
VARIABLE = "CISFS_LAYERS"
MAX_CONFIG = 8 << 20  # bytes
_LAYER = "application/vnd.oci.image.layer.v1."
# What docker's layers are called by OCI; their bytes are the same.
_DOCKER = {
    "application/vnd.docker.image.rootfs.diff.tar": f"{_LAYER}tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip": f"{_LAYER}tar+gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd": f"{_LAYER}tar+zstd",
}
_KNOWN = frozenset({*_DOCKER.values(), f"{_LAYER}tar+zstd"})


def diff_ids(config: bytes) -> list[str]:
    """Return the digests of an image's layers as tars, the lowest first.  Raises FormatError."""
    rootfs = parse_object(config, "the image's configuration").get("rootfs")
    found = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    if not isinstance(found, list) or not all(isinstance(each, str) for each in found):
        raise FormatError("the image's configuration has no list of diff_ids")
    return [str(each) for each in found]


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
        media_type = _DOCKER.get(layer.media_type, layer.media_type)
        if media_type not in _KNOWN:
            raise FormatError(f"the base image has a layer of type {media_type}")
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
