"""Encrypted images: skopeo opens what is encrypted here, and what it encrypts is opened here."""

from __future__ import annotations

import gzip
import hashlib
import io
import itertools
import json
import os
import secrets
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from cisfs.errors import IntegrityError, WrongKeyError
from cisfs.keys import spelling
from cisfs.keys.credentials import Credential
from cisfs.keys.wrapping import Identity
from cisfs.registry import manifest as forms
from cisfs.registry.descriptor import Descriptor
from cisfs.registry.layout import Layout
from cisfs.registry.manifest import Manifest
from cisfs.registry.ocicrypt import mediatypes, packets
from cisfs.registry.ocicrypt.images import Encrypting, encrypt_image
from cisfs.registry.ocicrypt.layers import decrypt_layer, is_encrypted
from tests.registry.harness.debian import PROGRAM, debian_registry
from tests.system.test_ocicrypt_keys import Pair, keys, skopeo

__all__ = ["keys"]

pytestmark = [
    pytest.mark.skipif(shutil.which("skopeo") is None, reason="needs skopeo"),
    pytest.mark.skipif(shutil.which("zstd") is None, reason="needs zstd"),
]

NAME = "it"
CLEAR = [0, 1]  # of three layers, the topmost is to be secret
SECRET = 2


def zstd(data: bytes) -> bytes:
    return subprocess.run(["zstd", "-qc"], input=data, stdout=subprocess.PIPE, check=True).stdout


PACKED: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "plain": (mediatypes.TAR, bytes),
    "gzip": (f"{mediatypes.TAR}+gzip", gzip.compress),
    "zstd": (f"{mediatypes.TAR}+zstd", zstd),
}
RECIPIENTS = [("rsa",), ("p384",), ("rsa", "keygen")]
EACH = pytest.mark.parametrize("recipients", RECIPIENTS, ids=" and ".join)
PACKINGS = pytest.mark.parametrize("packing", PACKED)


@dataclass(frozen=True)
class Image:
    """An image in a layout, and its layers' blobs and tars."""

    layout: Layout
    manifest: Descriptor
    blobs: list[bytes]
    tars: list[bytes]

    @property
    def name(self) -> str:
        return f"oci:{self.layout.path}:{NAME}"


def tar(name: str, size: int) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.PAX_FORMAT) as made:
        entry = tarfile.TarInfo(name)
        entry.size = size
        made.addfile(entry, io.BytesIO(secrets.token_bytes(size // 2) + bytes(size - size // 2)))
    return content.getvalue()


def image(path: Path, packing: str) -> Image:
    """Three layers, of one and two MiB and a bit."""
    layout = Layout.create(path)
    media_type, pack = PACKED[packing]
    tars = [tar(f"etc/{number}", (number << 20) + 4321) for number in range(3)]
    blobs = [pack(each) for each in tars]
    config = {
        "architecture": "arm64" if os.uname().machine == "aarch64" else "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [digest(each) for each in tars]},
    }
    made = forms.build_manifest(
        config=layout.put(json.dumps(config).encode(), mediatypes.CONFIG),
        layers=[layout.put(each, media_type) for each in blobs],
    )
    described = layout.put_manifest(made)
    layout.add(described, NAME)
    return Image(layout, described, blobs, tars)


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def layers(layout: Path) -> tuple[Layout, tuple[Descriptor, ...]]:
    opened = Layout.open(layout)
    manifest = opened.manifest(opened.find(NAME))
    assert isinstance(manifest, Manifest)
    return opened, manifest.layers


def decrypted(layout: Layout, layer: Descriptor, key: Pair) -> bytes:
    offered: list[Identity | Credential] = [*spelling.identities(str(key.private))]
    fd = layout.open_blob(layer)
    try:
        with decrypt_layer(layer, fd, offered) as found:
            assert found.media_type == layer.media_type.removesuffix("+encrypted")
            return b"".join(found.pieces())
    finally:
        os.close(fd)


def must(*words: str | Path) -> None:
    done = skopeo(*words)
    assert done.returncode == 0, done.stderr


def encryption(recipients: Sequence[Pair], *more: str) -> list[str]:
    return [*more, *(f"--encryption-key=jwe:{each.public}" for each in recipients)]


def encrypted_here(made: Image, target: Path, recipients: Sequence[Pair]) -> Layout:
    layout = Layout.create(target)
    found = [one for each in recipients for one in spelling.recipients(f"jwe:{each.public}")]
    described = encrypt_image(made.layout, made.manifest, layout, Encrypting(found, [SECRET]))
    layout.add(described, NAME)
    return layout


@EACH
@PACKINGS
def test_skopeo_encrypts(
    tmp_path: Path, keys: dict[str, Pair], packing: str, recipients: tuple[str, ...]
) -> None:
    made, target = image(tmp_path / "source", packing), tmp_path / "encrypted"
    options = encryption([keys[each] for each in recipients], "--encrypt-layer=-1")
    must(*options, "--dest-oci-accept-uncompressed-layers", made.name, f"oci:{target}:{NAME}")
    layout, found = layers(target)
    assert [is_encrypted(each) for each in found] == [False, False, True]
    for each in recipients:
        assert decrypted(layout, found[SECRET], keys[each]) == made.blobs[SECRET]
    with pytest.raises(WrongKeyError):
        decrypted(layout, found[SECRET], keys["stranger"])


@EACH
@PACKINGS
def test_skopeo_decrypts(
    tmp_path: Path, keys: dict[str, Pair], packing: str, recipients: tuple[str, ...]
) -> None:
    made, target = image(tmp_path / "source", packing), tmp_path / "encrypted"
    layout = encrypted_here(made, target, [keys[each] for each in recipients])
    assert [is_encrypted(each) for each in layers(target)[1]] == [False, False, True]
    source, opened = f"oci:{layout.path}:{NAME}", tmp_path / "opened"
    accept = "--dest-oci-accept-uncompressed-layers"
    for each in recipients:
        must(f"--decryption-key={keys[each].private}", accept, source, f"oci:{opened}:{NAME}")
        theirs, found = layers(opened)
        assert [theirs.read(each) for each in found] == made.blobs
        assert [each.media_type for each in found] == [PACKED[packing][0]] * 3
        assert not any(name.startswith(packets.PREFIX) for name in found[SECRET].annotations)
        shutil.rmtree(opened)
    refused = skopeo(f"--decryption-key={keys['stranger'].private}", source, f"oci:{opened}:{NAME}")
    assert refused.returncode != 0


@pytest.mark.parametrize("how", ["gzip", "zstd"])
def test_skopeo_compresses_and_encrypts(tmp_path: Path, keys: dict[str, Pair], how: str) -> None:
    """It wraps the digest of what it began with."""
    made, target = image(tmp_path / "source", "plain"), tmp_path / "encrypted"
    options = encryption([keys["rsa"]], f"--dest-compress-format={how}")
    must(*options, made.name, f"oci:{target}:{NAME}")
    layout, found = layers(target)
    unpack = {"gzip": ["gzip", "-dc"], "zstd": ["zstd", "-dcq"]}[how]
    for layer, content in zip(found, made.tars, strict=True):
        plain = decrypted(layout, layer, keys["rsa"])
        assert layer.media_type == PACKED[how][0] + "+encrypted"
        assert subprocess.run(unpack, input=plain, stdout=subprocess.PIPE, check=True).stdout == (
            content
        )


def test_an_image_of_docker(tmp_path: Path, keys: dict[str, Pair]) -> None:
    made = image(tmp_path / "source", "gzip")
    archive = f"docker-archive:{tmp_path}/archive.tar"
    must(made.name, f"{archive}:example.org/it:1")
    target = tmp_path / "encrypted"
    must(*encryption([keys["p384"]]), archive, f"oci:{target}:{NAME}")
    layout, found = layers(target)
    plain = [decrypted(layout, layer, keys["p384"]) for layer in found]
    assert [gzip.decompress(each) for each in plain] == made.tars


def test_of_several_layers_each_is_taken_for_itself(tmp_path: Path, keys: dict[str, Pair]) -> None:
    """The packets of one layer do not open another, and its ciphertext is none of the other's."""
    made, target = image(tmp_path / "source", "gzip"), tmp_path / "encrypted"
    must(*encryption([keys["rsa"]]), made.name, f"oci:{target}:{NAME}")
    layout, found = layers(target)
    for layer, other in itertools.pairwise(found):
        mixed = Descriptor(layer.media_type, layer.digest, layer.size, other.annotations)
        with pytest.raises(IntegrityError, match="HMAC does not match"):
            decrypted(layout, mixed, keys["rsa"])


@pytest.mark.skipif(shutil.which(PROGRAM) is None, reason="needs docker-registry")
def test_through_a_registry(tmp_path: Path, keys: dict[str, Pair]) -> None:
    made = image(tmp_path / "source", "zstd")
    encrypted_here(made, tmp_path / "encrypted", [keys["rsa"], keys["keygen"]])
    canaries = [made.blobs[SECRET][at : at + 64] for at in (100, 70_000)]
    with debian_registry(tmp_path / "registry") as running:
        remote = f"docker://{running.name}/it:1"
        must("--dest-tls-verify=false", f"oci:{tmp_path}/encrypted:{NAME}", remote)
        key = f"--decryption-key={keys['keygen'].private}"
        must("--src-tls-verify=false", key, remote, f"oci:{tmp_path}/opened:{NAME}")
        theirs, found = layers(tmp_path / "opened")
        assert [theirs.read(each) for each in found] == made.blobs
        again = f"docker://{running.name}/again:1"
        options = encryption([keys["p384"]], "--dest-tls-verify=false", "--encrypt-layer=-1")
        must(*options, made.name, again)
        must("--src-tls-verify=false", again, f"oci:{tmp_path}/pulled:{NAME}")
        ours, pulled = layers(tmp_path / "pulled")
        assert decrypted(ours, pulled[SECRET], keys["p384"]) == made.blobs[SECRET]
        stored = [path for path in running.storage.rglob("*") if path.is_file()]
    assert any(made.blobs[0] == path.read_bytes() for path in stored)
    assert not any(canary in path.read_bytes() for canary in canaries for path in stored)
