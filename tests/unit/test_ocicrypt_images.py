"""Images with chosen layers encrypted: what changes, what does not, and what is refused."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import secrets
from collections.abc import Sequence
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from cisfs.errors import FormatError, UsageError
from cisfs.keys.credentials import RawKey
from cisfs.keys.jwe import JweIdentity, JweRecipient
from cisfs.keys.keypairs import PrivateKey
from cisfs.registry import manifest as forms
from cisfs.registry.descriptor import Descriptor
from cisfs.registry.documents import Json
from cisfs.registry.layout import Layout
from cisfs.registry.manifest import Manifest
from cisfs.registry.ocicrypt import mediatypes, packets
from cisfs.registry.ocicrypt.images import Encrypting, encrypt_image
from cisfs.registry.ocicrypt.layers import decrypt_layer, is_encrypted
from cisfs.registry.ocicrypt.options import PrivateOptions

GZIP = f"{mediatypes.TAR}+gzip"
KEYS = [PrivateKey(ec.generate_private_key(ec.SECP256R1())) for _ in range(2)]
IDENTITIES = [JweIdentity(key, "it") for key in KEYS]
FOR_ALL = [JweRecipient(key.public) for key in KEYS]
BLOBS = [gzip.compress(secrets.token_bytes(size)) for size in (100, 2 << 20, 300)]


def image(
    layout: Layout,
    blobs: Sequence[bytes] = BLOBS,
    media_type: str = GZIP,
    more: dict[str, Json] | None = None,
) -> Descriptor:
    """Add an image with layers of one type; `more` goes into each one's descriptor."""
    config = layout.put(b'{"rootfs":{"type":"layers","diff_ids":[]}}', mediatypes.CONFIG)
    layers = [{**layout.put(blob, media_type).as_json(), **(more or {})} for blob in blobs]
    return manifest(layout, config.as_json(), layers)


def manifest(layout: Layout, config: Json, layers: list[dict[str, Json]]) -> Descriptor:
    document: dict[str, Json] = {
        "schemaVersion": 2,
        "mediaType": forms.OCI_MANIFEST,
        "config": config,
        "layers": [*layers],
        "annotations": {"org.example": "kept"},
        "x-more": "kept",
    }
    return layout.put(forms.dump(document), forms.OCI_MANIFEST)


@pytest.fixture
def source(tmp_path: Path) -> Layout:
    return Layout.create(tmp_path / "source")


@pytest.fixture
def target(tmp_path: Path) -> Layout:
    return Layout.create(tmp_path / "target")


def encrypt(
    source: Layout, made: Descriptor, target: Layout, chosen: Sequence[int] | None = None
) -> Manifest:
    written = target.manifest(encrypt_image(source, made, target, Encrypting(FOR_ALL, chosen)))
    assert isinstance(written, Manifest)
    return written


def opened(layout: Layout, layer: Descriptor, identity: JweIdentity) -> bytes:
    fd = layout.open_blob(layer)
    try:
        with decrypt_layer(layer, fd, [identity]) as found:
            return b"".join(found.pieces())
    finally:
        os.close(fd)


def everything(layout: Layout) -> bytes:
    return b"".join(path.read_bytes() for path in layout.path.rglob("*") if path.is_file())


@pytest.mark.parametrize("chosen", [None, [0, 1, 2], [1], [-1], [0, -3, 2]])
def test_the_chosen_layers_and_no_others(
    source: Layout, target: Layout, chosen: list[int] | None
) -> None:
    made = image(source)
    written = encrypt(source, made, target, chosen)
    numbers = {number % 3 for number in (range(3) if chosen is None else chosen)}
    for number, layer in enumerate(written.layers):
        assert is_encrypted(layer) == (number in numbers)
        if number not in numbers:
            assert target.read(layer) == BLOBS[number]
            continue
        assert layer.media_type == f"{GZIP}+encrypted"
        assert not target.has(Descriptor.of(BLOBS[number], GZIP).digest)
        assert BLOBS[number][20:80] not in everything(target)
        for identity in IDENTITIES:
            assert opened(target, layer, identity) == BLOBS[number]


def test_all_else_stays_as_it_was(source: Layout, target: Layout) -> None:
    made = image(source, more={"annotations": {"org.example.layer": "kept"}, "x-more": "kept"})
    written = encrypt(source, made, target, [0])
    before, after = json.loads(source.read(made)), json.loads(written.body)
    assert {**after, "layers": 0} == {**before, "layers": 0}
    assert after["layers"][1:] == before["layers"][1:]
    first = after["layers"][0]
    names = set(first.pop("annotations"))
    assert names == {"org.example.layer", packets.PUBLIC_OPTIONS, f"{packets.PREFIX}keys.jwe"}
    assert set(first) == {"mediaType", "digest", "size", "x-more"}
    assert target.read(written.config) == source.read(written.config)


def test_a_descriptor_does_not_give_away_what_is_encrypted(source: Layout, target: Layout) -> None:
    """Neither as data in it, nor by where else it is (OCI image-spec, descriptor.md)."""
    data = "aGVsbG8gd29ybGQsIHRoaXMgaXMgY2xlYXI="
    made = image(source, more={"data": data, "urls": ["https://example.org/clear"]})
    written = encrypt(source, made, target)
    assert data.encode() not in written.body
    assert b"example.org" not in written.body


def test_each_layer_and_each_time_has_a_key_of_its_own(source: Layout, tmp_path: Path) -> None:
    made = image(source, [BLOBS[0], BLOBS[0]])
    targets = [Layout.create(tmp_path / str(number)) for number in range(2)]
    layers = [layer for each in targets for layer in encrypt(source, made, each).layers]
    found = [
        PrivateOptions.parse(packets.unwrap(each.annotations, IDENTITIES[:1])) for each in layers
    ]
    assert len({each.key.reveal() for each in found}) == 4
    assert len({each.nonce for each in found}) == 4
    assert len({each.digest for each in layers}) == 4


def test_an_image_of_docker_becomes_one_of_oci(source: Layout, target: Layout) -> None:
    docker = "application/vnd.docker.image.rootfs.diff.tar.gzip"
    config = source.put(b"{}", "application/vnd.docker.container.image.v1+json")
    layers = [source.put(blob, docker).as_json() for blob in BLOBS]
    document: dict[str, Json] = {
        "schemaVersion": 2,
        "mediaType": forms.DOCKER_MANIFEST,
        "config": config.as_json(),
        "layers": [*layers],
    }
    made = source.put(forms.dump(document), forms.DOCKER_MANIFEST)
    written = encrypt(source, made, target, [2])
    assert written.media_type == forms.OCI_MANIFEST
    assert written.config.media_type == mediatypes.CONFIG
    assert [each.media_type for each in written.layers] == [GZIP, GZIP, f"{GZIP}+encrypted"]
    assert opened(target, written.layers[2], IDENTITIES[0]) == BLOBS[2]


FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"


def test_a_layer_that_is_elsewhere_stays_there(source: Layout, target: Layout) -> None:
    config = source.put(b"{}", mediatypes.CONFIG).as_json()
    foreign = Descriptor.of(b"elsewhere", FOREIGN).as_json() | {"urls": ["https://example.org/"]}
    layers = [foreign, source.put(BLOBS[0], GZIP).as_json()]
    made = manifest(source, config, layers)
    written = encrypt(source, made, target, [1])
    assert json.loads(written.body)["layers"][0]["urls"] == ["https://example.org/"]
    with pytest.raises(UsageError, match="layer 0 cannot be encrypted: it is a foreign layer"):
        encrypt_image(source, made, target, Encrypting(FOR_ALL))


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ([], "no layer was chosen"),
        ([3], "no layer 3 among the image's 3"),
        ([0, -4], "no layer -4 among"),
    ],
)
def test_layers_that_are_not_there(
    source: Layout, target: Layout, chosen: list[int], words: str
) -> None:
    refused(source, image(source), target, chosen, words)


def test_a_layer_that_would_stay_in_clear_beside_itself(source: Layout, target: Layout) -> None:
    made = image(source, [BLOBS[0], BLOBS[1], BLOBS[0]])
    refused(source, made, target, [2], "layer 2 is also in the image where it was not chosen")
    encrypt(source, made, target, [0, 2])


def test_a_layer_that_is_in_clear_in_the_target(source: Layout, target: Layout) -> None:
    target.put(BLOBS[1], GZIP)
    made = image(source)
    refused(source, made, target, [1], "has layer 1 in clear: write to a new directory")
    refused(source, made, source, [1], "has layer 1 in clear")
    encrypt(source, made, target, [0])


def test_what_is_encrypted_already_or_no_layer(source: Layout, target: Layout) -> None:
    written = encrypt(source, image(source), target)
    again = target.put_manifest(written)
    refused(target, again, source, None, "layer 0 cannot be encrypted: it is encrypted already")
    strange = image(source, media_type="application/vnd.in-toto+json")
    refused(source, strange, target, [0], "is no layer that ocicrypt has an encrypted type for")
    index = source.put_manifest(forms.build_index([strange.as_json()]))
    refused(source, index, target, None, "is of several platforms")


def test_nobody_to_encrypt_for(source: Layout, target: Layout) -> None:
    made = image(source)
    before = everything(target)
    for recipients in ([], [RawKey(bytes(32))]):
        with pytest.raises(UsageError):
            encrypt_image(source, made, target, Encrypting(recipients, [2]))
    assert everything(target) == before


def test_a_layer_that_is_damaged_is_not_passed_on(source: Layout, target: Layout) -> None:
    made = image(source)
    path = source.blob_path(Descriptor.of(BLOBS[1], GZIP).digest)
    path.write_bytes(BLOBS[1][:-1] + b"x")
    with pytest.raises(FormatError, match="another content than its name says"):
        encrypt(source, made, target)
    assert len(target.entries()) == 0
    names = {path.name for path in (target.path / "blobs/sha256").iterdir()}
    assert len(names) == 1  # the layer before it, encrypted
    assert hashlib.sha256(BLOBS[0]).hexdigest() not in names


def test_progress_is_in_bytes_of_layers(source: Layout, target: Layout) -> None:
    seen: list[int] = []
    made = image(source)
    encrypt_image(source, made, target, Encrypting(FOR_ALL, [1], seen.append))
    assert seen == sorted(seen)
    assert seen[-1] >= sum(map(len, BLOBS))
    assert len(seen) > 4


def refused(
    source: Layout, made: Descriptor, target: Layout, chosen: Sequence[int] | None, words: str
) -> None:
    before = everything(target)
    with pytest.raises(UsageError, match=words):
        encrypt_image(source, made, target, Encrypting(FOR_ALL, chosen))
    assert everything(target) == before
