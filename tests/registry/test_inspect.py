"""`cisfs inspect --remote`: what anyone can see of an image, and what is wrong with it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from cisfs.cli.main import main
from cisfs.format.sealed_geometry import HEADER_SIZE, UNITS_OFFSET
from cisfs.keys.jwe import JweRecipient
from cisfs.keys.keypairs import PrivateKey
from cisfs.layer.opening import describe
from cisfs.registry.documents import Json
from cisfs.registry.layout import Layout
from cisfs.registry.manifest import Manifest, build_manifest, dump
from cisfs.registry.ocicrypt import mediatypes, packets
from cisfs.registry.ocicrypt.images import Encrypting, encrypt_image
from cisfs.registry.repository import Repository
from tests.registry.conftest import Open
from tests.registry.harness.faults import Fault, Rule, Seen
from tests.registry.harness.proxy import Proxy
from tests.registry.test_push_pull import here, push  # noqa: F401 - a fixture

pytestmark = pytest.mark.usefixtures("here")

MIB = 1 << 20

Inspect = Callable[..., Any]


@pytest.fixture
def inspect(capsys: pytest.CaptureFixture[str]) -> Inspect:
    """Inspect an image; returns the document."""

    def run(reference: str, code: int = 0) -> Any:  # noqa: ANN401 - JSON
        capsys.readouterr()
        assert main(["inspect", "--remote", reference, "--json"]) == code
        return json.loads(capsys.readouterr().out)

    return run


def test_a_sealed_layer(front: Proxy, inspect: Inspect) -> None:
    words = ["keygen", "--signing", "-o", "publisher.key"]
    assert main(words) == 0
    assert main(["sign", "private.cis", "--key", "publisher.key", "--embed"]) == 0
    reference = f"{front.name}/seen/app:1"
    assert push(reference) == 0
    front.forget()
    said = inspect(reference)
    local = describe(Path("private.cis"))
    (sealed,) = said["sealed"]
    for name in ("identity", "slots", "signatures", "unit_size", "image_size", "version"):
        assert sealed[name] == local[name]
    assert sealed["size"] == local["stored_size"]
    samples = {"count": 8, "size": 8 * 4096, "vouched_for": True, "look_random": True}
    assert sealed["samples"] == samples
    assert len(said["public"]["layers"]) == 2
    assert said["encrypted"] == []
    assert front.sent < 200_000  # of 8 MiB


def test_in_words(front: Proxy, capsys: pytest.CaptureFixture[str]) -> None:
    reference = f"{front.name}/words/app:1"
    assert push(reference) == 0
    add = ["key", "add", f"docker://{reference}", "-r", "ann.key.pub", "--key-file", "private.key"]
    assert main(add) == 0
    capsys.readouterr()
    assert main(["inspect", f"docker://{reference}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"image {reference}, sha256:")
    assert lines[1] == "public: 2 layers, 600K"
    assert lines[4] == "sealed: 1 layer, 8.2M"
    assert lines[5] == f"  {describe(Path('private.cis'))['identity']}, 8.2M"
    assert lines[6] == "    opened by: key-file"
    assert lines[7].startswith("    opened by: jwe P-256 key ")
    assert lines[8:] == [
        "    signed by nobody",
        "    8 samples, 32.0K, are what the identity vouches for and look like ciphertext",
    ]


def base_with(*variables: str) -> Layout:
    """The base, with these variables and no other."""
    layout = Layout.open(Path("base"))
    manifest = layout.manifest(layout.find("1"))
    assert isinstance(manifest, Manifest)
    config = json.loads(layout.read(manifest.config))
    config["config"]["Env"] = list(variables)
    described = layout.put(dump(config), mediatypes.CONFIG)
    made = build_manifest(config=described, layers=manifest.layers)
    layout.add(layout.put_manifest(made), "1")
    return layout


def test_secrets_in_the_configuration_are_named(front: Proxy, inspect: Inspect) -> None:
    base_with("API_TOKEN=not to be told")
    reference = f"{front.name}/suspects/app:1"
    assert push(reference) == 0
    said = inspect(reference)
    assert [(s["where"], s["name"]) for s in said["public"]["suspects"]] == [("Env", "API_TOKEN")]
    assert "not to be told" not in json.dumps(said)


def test_an_image_without_anything_sealed(front: Proxy, opened: Open, inspect: Inspect) -> None:
    upload(opened(front.name, "plain/app"), base_with(), "1")
    said = inspect(f"{front.name}/plain/app:1")
    assert (len(said["public"]["layers"]), said["sealed"], said["encrypted"]) == (2, [], [])


def upload(repository: Repository, layout: Layout, name: str) -> Manifest:
    """What skopeo would do."""
    manifest = layout.manifest(layout.find(name))
    assert isinstance(manifest, Manifest)
    for blob in (manifest.config, *manifest.layers):
        repository.upload_bytes(blob, layout.read(blob, MIB))
    repository.put_manifest(manifest, name)
    return manifest


def encrypted(source: Layout) -> Layout:
    """The base's upper layer encrypted for two."""
    target = Layout.create(Path("encrypted"))
    keys = [PrivateKey(ec.generate_private_key(ec.SECP256R1())).public for _ in range(2)]
    how = Encrypting([JweRecipient(key) for key in keys], [1])
    target.add(encrypt_image(source, source.find("1"), target, how), "1")
    return target


def test_a_layer_that_ocicrypt_encrypted(front: Proxy, opened: Open, inspect: Inspect) -> None:
    layout = encrypted(base_with())
    upload(opened(front.name, "ocicrypt/app"), layout, "1")
    said = inspect(f"{front.name}/ocicrypt/app:1")
    (layer,) = said["encrypted"]
    assert layer["recipients"] == {"jwe": 2}
    samples = layer["samples"]
    assert (samples["vouched_for"], samples["look_random"]) == (False, True)
    assert len(said["public"]["layers"]) == 1


def test_one_that_only_says_so(
    front: Proxy, opened: Open, inspect: Inspect, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its type and annotations are those of an encrypted layer; it is a tar."""
    layout = encrypted(base_with())
    found = layout.manifest(layout.find("1"))
    assert isinstance(found, Manifest)
    tar = layout.put(b"plain\0\0\0" * 9999, found.layers[1].media_type)
    annotations: dict[str, Json] = {**found.layers[1].annotations}
    document = json.loads(found.body)
    document["layers"][1] = {**tar.as_json(), "annotations": annotations}
    layout.add(layout.put(dump(document), found.media_type), "2")
    upload(opened(front.name, "liar/app"), layout, "2")
    reference = f"{front.name}/liar/app:2"
    (layer,) = inspect(reference, 16)["encrypted"]
    assert layer["samples"]["look_random"] is False
    capsys.readouterr()
    assert main(["inspect", "--remote", reference]) == 16
    said = capsys.readouterr()
    assert "do NOT look like ciphertext" in said.out
    assert said.err == f"cisfs: {reference}: no ciphertext: {tar.digest}\n"


def test_annotations_that_make_no_sense(front: Proxy, opened: Open) -> None:
    layout = encrypted(base_with())
    found = layout.manifest(layout.find("1"))
    assert isinstance(found, Manifest)
    document = json.loads(found.body)
    document["layers"][1]["annotations"]["org.opencontainers.image.enc.keys.jwe"] = "%%%"
    layout.add(layout.put(dump(document), found.media_type), "2")
    upload(opened(front.name, "senseless/app"), layout, "2")
    assert main(["inspect", "--remote", f"{front.name}/senseless/app:2"]) == 11


def altering(start: int, stop: int) -> Callable[[Seen], Fault | None]:
    """Alter the answers to all who ask for bytes in a part of a blob."""

    def decide(seen: Seen) -> Fault | None:
        asked = (seen.header("range") or "").removeprefix("bytes=").partition("-")[0]
        if asked and start <= int(asked) < stop:
            return Fault(alter=lambda piece: bytes([piece[0] ^ 1]) + piece[1:])
        return None

    return decide


@pytest.mark.parametrize(
    ("start", "stop", "said"),
    [
        (0, HEADER_SIZE, "is not the layer"),
        (UNITS_OFFSET, UNITS_OFFSET + 8 * MIB, "was altered"),
        (UNITS_OFFSET + 8 * MIB, 1 << 40, "hash tree was altered"),
    ],
)
def test_a_sealed_layer_that_is_another(
    start: int, stop: int, said: str, front: Proxy, capsys: pytest.CaptureFixture[str]
) -> None:
    reference = f"{front.name}/altered/app:1"
    assert push(reference) == 0
    front.rules.append(Rule("GET /v2/altered/app/blobs/", altering(start, stop)))
    capsys.readouterr()
    assert main(["inspect", "--remote", reference]) == 22
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_recipients_of_every_kind() -> None:
    one = os.urandom(20).hex()
    annotations = {
        "org.opencontainers.image.enc.keys.provider.vault": f"{one},{one}",
        "org.opencontainers.image.enc.keys.pgp": one,
        "org.opencontainers.image.enc.pubopts": one,
    }
    assert packets.recipients(annotations) == {"pgp": 1, "provider.vault": 2}
