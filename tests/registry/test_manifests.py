"""Manifests: what came is what was asked for, and what it says it is."""

from __future__ import annotations

import json
from typing import Any

import pytest

from cisfs.errors import NotFoundError, RegistryError, WrongContentError
from cisfs.registry.descriptor import EMPTY, Descriptor
from cisfs.registry.manifest import (
    DOCKER_LIST,
    DOCKER_MANIFEST,
    OCI_INDEX,
    OCI_MANIFEST,
    Index,
    Manifest,
    build_index,
)
from tests.registry.conftest import Open
from tests.registry.content import pushed_artifact
from tests.registry.harness.faults import Answer, Rule
from tests.registry.harness.proxy import Proxy

KIND = "application/vnd.tests.thing"
GET = "GET .*/manifests/"


def test_round_trip(front: Proxy, opened: Open) -> None:
    repository = opened(front.name)
    manifest = pushed_artifact(repository, KIND, note="first")
    with pytest.raises(NotFoundError, match="manifest latest: there is none"):
        repository.manifest("latest")
    assert repository.digest_at("latest") is None
    repository.put_manifest(manifest, "latest")
    assert repository.manifest("latest") == manifest
    assert repository.manifest(manifest.descriptor.digest) == manifest
    assert repository.described(manifest.descriptor) == manifest
    assert repository.digest_at("latest") == manifest.descriptor.digest
    index = build_index([manifest.descriptor.as_json()], annotations={"a": "b"})
    repository.put_manifest(index, "several")
    found = repository.manifest("several")
    assert isinstance(found, Index)
    assert found.manifests == (manifest.descriptor,)
    assert repository.digest_at("several") == index.descriptor.digest


def document(**more: Any) -> dict[str, Any]:
    return {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": EMPTY.as_json(),
        "layers": [],
        **more,
    }


def said(body: object, kind: str | None = OCI_MANIFEST) -> Answer:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Answer(200, [] if kind is None else [("Content-Type", kind)], raw)


BAD = {
    "not json": said(b"<html>"),
    "not utf-8": said(b'{"a":"\xff"}'),
    "an array": said([]),
    "a name twice": said(b'{"schemaVersion":2,"schemaVersion":2}'),
    "nan": said(b'{"schemaVersion":2,"a":NaN}'),
    "deep": said(b'{"schemaVersion":2,"a":' + b"[" * 40 + b"]" * 40 + b"}"),
    "very deep": said(b'{"a":' + b"[" * 1_000_000),
    "an integer without end": said(b'{"a":' + b"9" * 100_000 + b"}"),
    "schema 1": said({"schemaVersion": 1, "fsLayers": []}),
    "another type": said(document(mediaType="application/vnd.oci.other")),
    "no type": said({k: v for k, v in document().items() if k != "mediaType"}, None),
    "said to be an index": said(document(), OCI_INDEX),
    "says it is an index": said(document(mediaType=OCI_INDEX), OCI_MANIFEST),
    "both": said(document(manifests=[])),
    "both, as an index": said(document(mediaType=OCI_INDEX, manifests=[]), OCI_INDEX),
    "an index with fsLayers": said(
        {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [], "fsLayers": []}, OCI_INDEX
    ),
    "no config": said({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": []}),
    "no layers": said({k: v for k, v in document().items() if k != "layers"}),
    "layers that are none": said(document(layers=[5])),
    "10,000 layers": said(document(layers=[EMPTY.as_json()] * 10_000)),
    "10 MB": said(document(annotations={"a": "x" * 10_000_000})),
    "a digest of another kind": said(document(layers=[{**EMPTY.as_json(), "digest": "sha512:00"}])),
    "a path for a digest": said(document(layers=[{**EMPTY.as_json(), "digest": "../../etc"}])),
    "a negative size": said(document(layers=[{**EMPTY.as_json(), "size": -1}])),
    "a huge size": said(document(layers=[{**EMPTY.as_json(), "size": 1 << 62}])),
    "true for a size": said(document(layers=[{**EMPTY.as_json(), "size": True}])),
    "annotations that are none": said(document(annotations={"a": 5})),
    "a subject that is none": said(document(subject=5)),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_manifests(front: Proxy, opened: Open, name: str) -> None:
    repository = opened(front.name)
    front.rules = [Rule(GET, BAD[name])]
    with pytest.raises(RegistryError) as found:
        repository.manifest("latest")
    assert repository.name in str(found.value) or front.name in str(found.value)
    assert len(str(found.value)) < 300


@pytest.mark.parametrize("kind", [OCI_MANIFEST, DOCKER_MANIFEST])
def test_types_that_agree(front: Proxy, opened: Open, kind: str) -> None:
    body = document(mediaType=kind)
    for answer in (said(body, kind), said(body, None), said(body, f"{kind}; charset=utf-8")):
        front.rules = [Rule(GET, answer)]
        found = opened(front.name).manifest("latest")
        assert isinstance(found, Manifest)
        assert found.media_type == kind
    del body["mediaType"]
    front.rules = [Rule(GET, said(body, kind))]
    assert opened(front.name).manifest("latest").media_type == kind


def test_dockers_list(front: Proxy, opened: Open) -> None:
    entry = {**EMPTY.as_json(), "mediaType": DOCKER_MANIFEST, "platform": {"os": "linux"}}
    body = {"schemaVersion": 2, "mediaType": DOCKER_LIST, "manifests": [entry]}
    front.rules = [Rule(GET, said(body, DOCKER_LIST))]
    found = opened(front.name).manifest("latest")
    assert isinstance(found, Index)
    assert found.manifests[0].platform == {"os": "linux"}


def test_another_manifest_than_asked_for(front: Proxy, opened: Open) -> None:
    repository = opened(front.name)
    manifest = pushed_artifact(repository, KIND)
    digest = manifest.descriptor.digest
    front.rules = [Rule(GET, said(document()))]
    with pytest.raises(WrongContentError, match=f"manifest {digest[:19]}: .* another one"):
        repository.manifest(digest)
    lies = said(document())
    lies.headers.append(("Docker-Content-Digest", digest))
    front.rules = [Rule(GET, lies)]
    with pytest.raises(WrongContentError, match="manifest latest"):
        repository.manifest("latest")


def test_announced_as_something_else(front: Proxy, opened: Open) -> None:
    repository = opened(front.name)
    manifest = pushed_artifact(repository, KIND)
    repository.put_manifest(manifest)
    right = manifest.descriptor
    for wrong in (
        Descriptor(OCI_INDEX, right.digest, right.size),
        Descriptor(right.media_type, right.digest, right.size + 1),
    ):
        with pytest.raises(WrongContentError, match="size and type"):
            repository.described(wrong)


def test_a_tag_that_is_none(front: Proxy, opened: Open) -> None:
    repository = opened(front.name)
    with pytest.raises(ValueError, match="no tag"):
        repository.put_manifest(pushed_artifact(repository, KIND), "a/b")
