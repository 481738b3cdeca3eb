"""Media types of layers, and of the same layers encrypted: ocicrypt, spec/spec.go.

Docker's types become OCI's when a layer is encrypted, as ocicrypt has it.  Knows names only.  Pure
functions; safe anywhere.
"""

from __future__ import annotations

from cisfs.errors import FormatError, UsageError

CONFIG = "application/vnd.oci.image.config.v1+json"
TAR = "application/vnd.oci.image.layer.v1.tar"
_NOT_DISTRIBUTED = "application/vnd.oci.image.layer.nondistributable.v1.tar"
_DOCKER = "application/vnd.docker.image.rootfs.diff.tar"
_DOCKER_FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar"

_SUFFIX = "+encrypted"
_LAYERS = tuple(tar + how for tar in (TAR, _NOT_DISTRIBUTED) for how in ("", "+gzip", "+zstd"))
_OF_DOCKER = {
    "application/vnd.docker.container.image.v1+json": CONFIG,
    _DOCKER: TAR,
    f"{_DOCKER}.gzip": f"{TAR}+gzip",
    f"{_DOCKER}.zstd": f"{TAR}+zstd",
    _DOCKER_FOREIGN: _NOT_DISTRIBUTED,
    f"{_DOCKER_FOREIGN}.gzip": f"{_NOT_DISTRIBUTED}+gzip",
}


def is_encrypted(media_type: str) -> bool:
    """Tell whether a type is that of something encrypted, known here or not."""
    return media_type.endswith(_SUFFIX)


def is_foreign(media_type: str) -> bool:
    """Tell whether a layer may be somewhere else than its image: not distributed with it."""
    return oci(media_type).startswith(_NOT_DISTRIBUTED)


def oci(media_type: str) -> str:
    """Return OCI's name for one of Docker's types, any other as it is."""
    return _OF_DOCKER.get(media_type, media_type)


def encrypted(media_type: str) -> str:
    """Return the type of a layer once it is encrypted.

    Raises UsageError for what ocicrypt has no type for, and for what is encrypted already.
    """
    if is_encrypted(media_type):
        raise UsageError("it is encrypted already, for others: decrypt it first")
    if media_type.startswith(_DOCKER_FOREIGN):
        raise UsageError("it is a foreign layer, which is not in the image but somewhere else")
    if oci(media_type) not in _LAYERS:
        raise UsageError(f"{media_type!a} is no layer that ocicrypt has an encrypted type for")
    return oci(media_type) + _SUFFIX


def decrypted(media_type: str) -> str:
    """Return the type of an encrypted layer once it is decrypted: one of OCI's.

    Raises FormatError.
    """
    found = oci(media_type.removesuffix(_SUFFIX))
    if not is_encrypted(media_type) or found not in _LAYERS:
        raise FormatError(f"{media_type!a} is no type of an encrypted layer")
    return found
