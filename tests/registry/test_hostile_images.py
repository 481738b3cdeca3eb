"""`cisfs pull` from a registry that lies: one clear error each, and nothing in the store."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cisfs.cli.main import main
from cisfs.errors import WrongContentError
from cisfs.layer import store
from cisfs.layer.opening import describe
from cisfs.layer.sealed_file import stored
from cisfs.registry import artifacts, attach, manifest
from cisfs.registry.artifacts import IDENTITY, KEYS_TYPE, LAYER_TYPE, LAYERS_ARTIFACT, keys_tag
from cisfs.registry.descriptor import Descriptor, digest_of
from cisfs.registry.documents import Json
from cisfs.registry.image import CONFIG_TYPE
from cisfs.registry.manifest import OCI_INDEX, OCI_MANIFEST
from cisfs.registry.ocicrypt.mediatypes import TAR
from tests.registry.harness.faults import Answer, Rule
from tests.registry.harness.modern import ModernRegistry
from tests.registry.harness.proxy import Proxy
from tests.registry.test_push_pull import here, push  # noqa: F401 - a fixture
from tests.unit import layers

APP, OTHER = "team/app", "team/other"
Document = dict[str, Any]


@dataclass(frozen=True)
class Site:
    """A registry with two images, each with a sealed layer, that does as it is told."""

    registry: ModernRegistry
    identity: str
    other: str

    @property
    def reference(self) -> str:
        return f"{self.registry.name}/{APP}:1"

    def put(self, content: bytes, media_type: str = OCI_MANIFEST, tag: str | None = None) -> str:
        """Have a manifest of any content."""
        digest = digest_of(content)
        self.registry.manifests[APP, digest] = (media_type, content)
        if tag is not None:
            self.registry.tags[APP, tag] = digest
        return digest

    def blob(self, content: bytes, media_type: str) -> Document:
        """Have a blob; returns what describes it."""
        described = Descriptor.of(content, media_type)
        self.registry.blobs[APP, described.digest] = content
        return described.as_json()

    def manifest(self, tag: str, repository: str = APP) -> Document:
        """What is under a tag."""
        digest = self.registry.tags[repository, tag]
        found: Document = json.loads(self.registry.manifests[repository, digest][1])
        return found

    def artifact(self, repository: str = APP) -> tuple[str, Document]:
        """What holds the sealed layers: its digest, and what it says."""
        for (name, digest), (_, content) in self.registry.manifests.items():
            found: Document = json.loads(content)
            if name == repository and found.get("artifactType") == LAYERS_ARTIFACT:
                return digest, found
        raise AssertionError("there is none")

    def lie(self, change: Callable[[Document], None]) -> None:
        """Change the artifact, and have all point to the new one."""
        old, document = self.artifact()
        change(document)
        del self.registry.manifests[APP, old]
        content = manifest.dump(document)
        digest = self.put(content)
        keys = self.manifest(keys_tag(self.identity))
        keys["subject"] |= {"digest": digest, "size": len(content)}
        self.put(manifest.dump(keys), tag=keys_tag(self.identity))


@pytest.fixture
def site(here: Path, modern: ModernRegistry) -> Site:  # noqa: F811 - the fixture
    layers.seal(here / "other.cis", layers.image(1 << 20, seed=1))
    assert push(f"{modern.name}/{APP}:1") == 0
    words = ["push", f"{modern.name}/{OTHER}:1", "--base", "oci:base:1", "--layer", "other.cis"]
    assert main(words) == 0
    identities = [str(describe(here / name)["identity"]) for name in ("private.cis", "other.cis")]
    return Site(modern, *identities)


Refused = Callable[..., None]


@pytest.fixture
def refused(site: Site, capsys: pytest.CaptureFixture[str]) -> Refused:
    """Pull in vain: with one line, and nothing in the store."""

    def run(said: str, code: int = 11) -> None:
        capsys.readouterr()
        assert main(["pull", site.reference]) == code
        lines = capsys.readouterr().err.splitlines()
        (error,) = [line for line in lines if line.startswith("cisfs: ")]
        assert said in error
        assert len(error) < 500
        assert [path for path in store.local().rglob("*") if not path.is_dir()] == []
        assert main(["verify", site.identity, "--key-file", "private.key"]) == 10

    return run


def test_otherwise_it_is_pulled(site: Site) -> None:
    assert main(["pull", site.reference]) == 0
    assert main(["verify", site.identity, "--key-file", "private.key"]) == 0


# ---- what is not what its digest says


def test_a_replaced_artifact(site: Site, refused: Refused) -> None:
    digest, document = site.artifact()
    document["annotations"] = {"replaced": "yes"}
    site.registry.manifests[APP, digest] = (OCI_MANIFEST, manifest.dump(document))
    refused("the registry sent", 22)


def test_a_replaced_layer(site: Site, refused: Refused) -> None:
    _, document = site.artifact()
    digest = document["layers"][0]["digest"]
    content = bytearray(site.registry.blobs[APP, digest])
    content[-1] ^= 1
    site.registry.blobs[APP, digest] = bytes(content)
    refused("other bytes than this digest names", 22)


# ---- what belongs to another


def other_parts(site: Site, identity: str) -> list[Document]:
    """The data of the other layer, said to be that of a layer."""
    _, document = site.artifact(OTHER)
    for each in document["layers"]:
        site.registry.blobs[APP, each["digest"]] = site.registry.blobs[OTHER, each["digest"]]
    return [{**each, "annotations": {IDENTITY: identity}} for each in document["layers"]]


def test_an_artifact_of_another_image(site: Site, refused: Refused) -> None:
    site.lie(lambda document: document.update(layers=other_parts(site, site.other)))
    refused("does not have the sealed layers that the image names", 22)


def test_another_layer_under_its_identity(site: Site, refused: Refused) -> None:
    site.lie(lambda document: document.update(layers=other_parts(site, site.identity)))
    refused(f"is not the layer {site.identity}", 22)


def test_an_artifact_that_the_image_does_not_have(site: Site, refused: Refused) -> None:
    """It holds the layer, and says that it belongs to something else."""
    other = site.registry.tags[OTHER, "1"]
    site.lie(lambda document: document["subject"].update(digest=other))
    refused("does not have the sealed layers that the image names", 22)


def test_key_slots_of_another_layer(site: Site, refused: Refused) -> None:
    keys = site.manifest(keys_tag(site.other), OTHER)
    site.put(manifest.dump(keys), tag=keys_tag(site.identity))
    refused("are those of another layer")


def test_key_slots_of_another_layer_under_its_identity(site: Site) -> None:
    """Only who has a key can tell, and does before anything is believed."""
    text = artifacts.keys_blob(stored(Path("other.cis"))[1])
    keys = site.manifest(keys_tag(site.identity))
    keys["layers"] = [site.blob(text, KEYS_TYPE)]
    site.put(manifest.dump(keys), tag=keys_tag(site.identity))
    assert main(["pull", site.reference]) == 0
    assert main(["verify", site.identity, "--key-file", "private.key"]) == 12


def test_older_key_slots(site: Site, capsys: pytest.CaptureFixture[str]) -> None:
    old = site.registry.tags[APP, keys_tag(site.identity)]
    add = ["key", "add", f"docker://{site.reference}", "-r", "ann.key.pub"]
    assert main([*add, "--key-file", "private.key"]) == 0
    assert main(["pull", site.reference]) == 0
    path = store.pulled(site.identity)
    before = path.read_bytes()
    site.registry.tags[APP, keys_tag(site.identity)] = old
    capsys.readouterr()
    assert main(["pull", site.reference]) == 22
    error = capsys.readouterr().err
    assert "older key slots" in error
    assert error.count("\n") == 1
    assert path.read_bytes() == before


# ---- what is no bare layer


def repacked(site: Site, change: Callable[[bytearray], None]) -> None:
    """Put other bytes in the place of the layer's, as one part, with the right digest."""
    _, document = site.artifact()
    parts = [site.registry.blobs[APP, each["digest"]] for each in document["layers"]]
    content = bytearray(b"".join(parts))
    change(content)
    part = {**site.blob(bytes(content), LAYER_TYPE), "annotations": {IDENTITY: site.identity}}
    site.lie(lambda document: document.update(layers=[part]))


def test_more_than_the_layer(site: Site, refused: Refused) -> None:
    repacked(site, lambda content: content.extend(bytes(4096)))
    refused("has another size than its header says", 22)


def test_less_than_the_layer(site: Site, refused: Refused) -> None:
    repacked(site, lambda content: content.__delitem__(slice(100, None)))
    refused("is not in parts as one is")


def test_key_slots_among_the_data(site: Site, refused: Refused) -> None:
    repacked(site, lambda content: content.__setitem__(slice(5000, 5003), b"abc"))
    refused("has key slots of its own", 22)


def test_another_kind_of_blob(site: Site, refused: Refused) -> None:
    more = site.blob(b"more", "application/octet-stream")
    site.lie(lambda document: document["layers"].append({**more, "annotations": {}}))
    refused("holds something else, too")


@pytest.mark.parametrize("junk", ["malformed", "deleted", "replaced"])
def test_what_else_refers_to_the_image(site: Site, modern_front: Proxy, junk: str) -> None:
    """Anybody who may push can have anything do so, and what was deleted may still be listed."""
    digest, document = site.artifact()
    layers: list[Json] = [{**each, "annotations": {}} for each in document["layers"]]
    first = site.put(manifest.dump({**document, "layers": layers}))
    # They are listed in the order in which they came.
    site.registry.manifests[APP, digest] = site.registry.manifests.pop((APP, digest))
    answers = {
        "deleted": Answer(404),
        "replaced": Answer(200, [("Content-Type", OCI_MANIFEST)], b"{}"),
    }
    if junk in answers:
        modern_front.rules.append(Rule(f"GET .*/manifests/{first}", answers[junk]))
    assert main(["pull", f"{modern_front.name}/{APP}:1"]) == 0
    assert len(modern_front.requests(f"GET .*/manifests/{first}")) == 1


def test_more_than_could_ever_be_downloaded(site: Site, refused: Refused) -> None:
    """The header says how much there is, before anything else is asked for."""
    digest = site.artifact()[1]["layers"][-1]["digest"]
    more = {"mediaType": LAYER_TYPE, "digest": digest, "size": 1 << 50}
    more["annotations"] = {IDENTITY: site.identity}
    site.lie(lambda document: document["layers"].append(more))
    refused("has another size than its header says", 22)
    with pytest.raises(WrongContentError, match="another size than its header says"):
        attach.resolve(f"{site.registry.name}/{APP}@{site.identity}")
    assert [path for path in store.local().rglob("*") if not path.is_dir()] == []


# ---- too much, and the wrong kind


def test_a_manifest_of_ten_megabytes(site: Site, refused: Refused) -> None:
    document = {**site.manifest("1"), "padding": "x" * (10 << 20)}
    site.put(manifest.dump(document), tag="1")
    refused("sends more than 4194304 bytes", 22)


def test_ten_thousand_layers(site: Site, refused: Refused) -> None:
    document = site.manifest("1")
    document["layers"] = document["layers"][:1] * 10_000
    site.put(manifest.dump(document), tag="1")
    refused("10000 layers, more than 1024", 22)


def test_ten_thousand_sealed_layers(site: Site, refused: Refused) -> None:
    def change(document: Document) -> None:
        parts = [dict(document["layers"][0]) for _ in range(10_000)]
        document["layers"] = [
            {**each, "annotations": {IDENTITY: f"sha256:{number:064x}"}}
            for number, each in enumerate(parts)
        ]

    site.lie(change)
    refused("10000 layers, more than 1024", 22)


def test_ten_thousand_names_of_sealed_layers(site: Site, refused: Refused) -> None:
    named = ",".join(f"{site.registry.name}/{APP}@sha256:{n:064x}" for n in range(10_000))
    name_layers(site, named)
    refused("does not have the sealed layers that the image names", 22)


def name_layers(site: Site, named: str) -> None:
    """Have the image name these."""
    config = manifest.dump({"config": {"Env": [f"CISFS_LAYERS={named}"]}})
    document = {**site.manifest("1"), "config": site.blob(config, CONFIG_TYPE)}
    site.put(manifest.dump(document), tag="1")


@pytest.mark.parametrize("named", ["../../etc/passwd", "/etc/x", "a@sha256:0", "a@sha256:../../x"])
def test_a_path_in_the_place_of_an_identity(named: str, site: Site, refused: Refused) -> None:
    name_layers(site, named)
    refused("names sealed layers that are none of a registry's")


def test_an_image_and_an_index_at_once(site: Site, refused: Refused) -> None:
    site.put(manifest.dump({**site.manifest("1"), "manifests": []}), tag="1")
    refused("at once an image manifest and an index", 22)


def test_an_image_that_is_called_an_index(site: Site, refused: Refused) -> None:
    site.put(manifest.dump(site.manifest("1")), OCI_INDEX, tag="1")
    refused("of another type than the registry says", 22)


def index(*described: Document) -> bytes:
    """An index of these for every machine."""
    listed: list[Json] = []
    for machine in ("amd64", "arm64"):
        platform: Json = {"os": "linux", "architecture": machine}
        listed += [{**each, "platform": platform} for each in described]
    return manifest.dump({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": listed})


def test_an_index_in_an_index(site: Site, refused: Refused) -> None:
    inner = index(Descriptor.of(b"{}", OCI_MANIFEST).as_json())
    site.put(inner, OCI_INDEX)
    site.put(index(Descriptor.of(inner, OCI_INDEX).as_json()), OCI_INDEX, tag="1")
    refused("there is no image for linux")


def test_an_index_that_is_listed_as_an_image(site: Site, refused: Refused) -> None:
    inner = index()
    site.put(inner, OCI_INDEX)
    site.put(index(Descriptor.of(inner, OCI_MANIFEST).as_json()), OCI_INDEX, tag="1")
    refused("not of the size and type that it was announced with", 22)


def test_an_index_in_the_place_of_key_slots(site: Site, refused: Refused) -> None:
    site.put(index(), OCI_INDEX, tag=keys_tag(site.identity))
    refused("what should hold the key slots is another kind of artifact")


def test_an_image_in_the_place_of_key_slots(site: Site, refused: Refused) -> None:
    site.put(manifest.dump(site.manifest("1")), tag=keys_tag(site.identity))
    refused("what should hold the key slots is another kind of artifact")


def test_an_artifact_in_the_place_of_an_image(site: Site, refused: Refused) -> None:
    site.registry.tags[APP, "1"] = site.registry.tags[APP, keys_tag(site.identity)]
    refused("has no sealed layers", 2)


def test_an_image_that_others_encrypted(site: Site, refused: Refused) -> None:
    document = site.manifest("1")
    config = site.blob(b'{"architecture":"amd64","os":"linux"}', document["config"]["mediaType"])
    layers: list[Json] = [dict(document["layers"][0], mediaType=f"{TAR}+gzip+encrypted")]
    site.put(manifest.dump({**document, "config": config, "layers": layers}), tag="1")
    refused(f"cisfs seal docker://{site.reference} --top N", 2)
