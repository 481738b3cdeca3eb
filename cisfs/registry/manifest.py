"""Manifests and indexes: bytes to values, with no doubt which of the two it is.

The media type in the document, the one that the registry says and the members that are there have
to agree (OCI image-spec, manifest.md and image-index.md; CVE-2021-41190 is why).  Docker's version
2, schema 2 counts as the same.  Does not know how they travel.  Immutable values and pure
functions; safe anywhere.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from cisfs.errors import FormatError
from cisfs.registry.descriptor import Descriptor
from cisfs.registry.documents import Json, objects, optional_text, parse_object, texts

MAX_SIZE = 4 << 20  # bytes; the least that registries take (distribution-spec, "Pushing manifests")
MAX_LAYERS = 1024  # engines stop at 127
MAX_MANIFESTS = 4096  # of an index

OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
MANIFEST_TYPES = (OCI_MANIFEST, DOCKER_MANIFEST)
INDEX_TYPES = (OCI_INDEX, DOCKER_LIST)


@dataclass(frozen=True, slots=True)
class Manifest:
    """One image or artifact.  `body` is what its digest is over, byte for byte."""

    media_type: str
    body: bytes = field(repr=False)
    config: Descriptor
    layers: tuple[Descriptor, ...]
    artifact_type: str | None
    subject: Descriptor | None
    annotations: Mapping[str, str]

    @property
    def descriptor(self) -> Descriptor:
        """Describe it as an index lists it (its annotations too, as the referrers API does)."""
        kind = self.artifact_type or self.config.media_type
        return Descriptor.of(
            self.body, self.media_type, annotations=self.annotations, artifact_type=kind
        )


@dataclass(frozen=True, slots=True)
class Index:
    """Several manifests.  `body` is what its digest is over, byte for byte."""

    media_type: str
    body: bytes = field(repr=False)
    manifests: tuple[Descriptor, ...]
    artifact_type: str | None
    subject: Descriptor | None
    annotations: Mapping[str, str]

    @property
    def descriptor(self) -> Descriptor:
        """Describe it, as `Manifest.descriptor` does."""
        return Descriptor.of(
            self.body,
            self.media_type,
            annotations=self.annotations,
            artifact_type=self.artifact_type,
        )


def parse(body: bytes, said: str | None) -> Manifest | Index:
    """Return what `body` holds; `said` is the media type that the registry calls it, if any.

    Raises FormatError.
    """
    if len(body) > MAX_SIZE:
        raise FormatError(f"the manifest is longer than {MAX_SIZE} bytes")
    document = parse_object(body, "the manifest")
    media_type = _agreed(document, said)
    return (_index if media_type in INDEX_TYPES else _manifest)(body, document, media_type)


def build_manifest(
    *,
    config: Descriptor,
    layers: Sequence[Descriptor],
    artifact_type: str | None = None,
    subject: Descriptor | None = None,
    annotations: Mapping[str, str] | None = None,
) -> Manifest:
    """Make an OCI manifest: the same parts give the same bytes."""
    document: dict[str, Json] = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": config.as_json(),
        "layers": [each.as_json() for each in layers],
    }
    _add(document, artifact_type, subject, annotations)
    body = dump(document)
    return _manifest(body, document, OCI_MANIFEST)


def build_index(
    manifests: Sequence[Mapping[str, Json]],
    *,
    annotations: Mapping[str, str] | None = None,
) -> Index:
    """Make an OCI index of entries in JSON: what others put into them is kept."""
    document: dict[str, Json] = {
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [dict(each) for each in manifests],
    }
    _add(document, None, None, annotations)
    body = dump(document)
    return _index(body, document, OCI_INDEX)


def dump(document: Mapping[str, Json]) -> bytes:
    """Return the one spelling that we give to a document."""
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()


def entries(index: Index) -> list[dict[str, Json]]:
    """Return an index's entries in JSON, with members that cisfs does not know."""
    return objects(parse_object(index.body, "the index"), "manifests", "the index", MAX_MANIFESTS)


def _add(
    document: dict[str, Json],
    artifact_type: str | None,
    subject: Descriptor | None,
    annotations: Mapping[str, str] | None,
) -> None:
    if artifact_type is not None:
        document["artifactType"] = artifact_type
    if subject is not None:
        document["subject"] = Descriptor(subject.media_type, subject.digest, subject.size).as_json()
    if annotations:
        document["annotations"] = dict(annotations)


def _agreed(document: Mapping[str, Json], said: str | None) -> str:
    """The media type on which everything agrees."""
    if document.get("schemaVersion") != 2:
        raise FormatError("the manifest is not of schema version 2, the only one that is taken")
    inside = optional_text(document, "mediaType", "the manifest")
    media_type = inside or said
    if media_type not in MANIFEST_TYPES + INDEX_TYPES:
        raise FormatError("the manifest is neither an image manifest nor an index")
    if said in MANIFEST_TYPES + INDEX_TYPES and said != media_type:
        raise FormatError("the manifest says it is of another type than the registry says")
    one = {"config", "layers", "fsLayers"} & document.keys()
    if "manifests" in document if media_type in MANIFEST_TYPES else one:
        raise FormatError("the manifest is at once an image manifest and an index")
    return media_type


def _manifest(body: bytes, document: Mapping[str, Json], media_type: str) -> Manifest:
    what = "the manifest"
    config = document.get("config")
    if not isinstance(config, dict):
        raise FormatError("the manifest has no config")
    layers = objects(document, "layers", what, MAX_LAYERS)
    return Manifest(
        media_type,
        body,
        Descriptor.parse(config, "the manifest's config"),
        tuple(Descriptor.parse(each, "a layer of the manifest") for each in layers),
        optional_text(document, "artifactType", what),
        _subject(document),
        texts(document, "annotations", what),
    )


def _index(body: bytes, document: Mapping[str, Json], media_type: str) -> Index:
    what = "the index"
    listed = objects(document, "manifests", what, MAX_MANIFESTS)
    return Index(
        media_type,
        body,
        tuple(Descriptor.parse(each, "an entry of the index") for each in listed),
        optional_text(document, "artifactType", what),
        _subject(document),
        texts(document, "annotations", what),
    )


def _subject(document: Mapping[str, Json]) -> Descriptor | None:
    subject = document.get("subject")
    if subject is None:
        return None
    if not isinstance(subject, dict):
        raise FormatError("the manifest has a subject that is no object")
    return Descriptor.parse(subject, "the manifest's subject")
