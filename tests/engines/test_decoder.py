"""Encrypted images in containerd: its CRI plugin has cisfs-decoder open their layers."""

from __future__ import annotations

import io
import json
import secrets
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from cisfs.keys.jwe import JweRecipient
from cisfs.keys.keypairs import PrivateKey
from cisfs.keys.pkcs8 import private_pem
from cisfs.registry import manifest as forms
from cisfs.registry.descriptor import digest_of
from cisfs.registry.layout import Layout
from cisfs.registry.manifest import Manifest
from cisfs.registry.ocicrypt import mediatypes
from cisfs.registry.ocicrypt.images import Encrypting, encrypt_image
from tests.engines import daemons
from tests.engines.cri import Kubelet
from tests.engines.machine import Machine

pytestmark = [pytest.mark.root, pytest.mark.fuse]


@dataclass(frozen=True)
class Site:
    """A machine with a registry, an encrypted image there and the key to it."""

    machine: Machine
    image: str
    canary: str
    key: PrivateKey

    def give(self, key: PrivateKey, mode: int = 0o600) -> None:
        """Put a private key where the decoder looks."""
        directory = self.machine.outside(daemons.IMAGE_KEYS)
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(mode=0o700, parents=True)
        path = directory / "key.pem"
        path.touch(mode)
        path.write_bytes(private_pem(key.reveal()))
        path.chmod(mode)


@pytest.fixture
def site(machine: Machine, containerd: str) -> Iterator[Site]:
    assert containerd
    key, canary = PrivateKey(ec.generate_private_key(ec.SECP256R1())), secrets.token_hex(24)
    place = machine.memory / "images"
    try:
        with daemons.registry(machine) as address:
            image = f"{address}/encrypted:1"
            source = _with_secret(machine.memory / "busybox.tar", place / "plain", canary)
            _encrypted(source, place / "encrypted", key)
            options = ["--quiet", "--dest-tls-verify=false"]
            machine.must(
                "skopeo", "copy", *options, f"oci:{place}/encrypted:it", f"docker://{image}"
            )
            yield Site(machine, image, canary, key)
    finally:
        shutil.rmtree(place, ignore_errors=True)
        shutil.rmtree(machine.outside(daemons.IMAGE_KEYS), ignore_errors=True)


def _with_secret(archive: Path, path: Path, canary: str) -> Layout:
    """Add a layer with a file /secret to an image."""
    path.mkdir(parents=True)
    copy = ["skopeo", "copy", "--quiet", f"docker-archive:{archive}", f"oci:{path}:it"]
    subprocess.run(copy, check=True, capture_output=True)
    layout = Layout.open(path)
    below = layout.manifest(layout.find("it"))
    assert isinstance(below, Manifest)
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.PAX_FORMAT) as tar:
        entry = tarfile.TarInfo("secret")
        entry.size = len(canary)
        tar.addfile(entry, io.BytesIO(canary.encode()))
    config = json.loads(layout.read(below.config))
    config["rootfs"]["diff_ids"].append(digest_of(content.getvalue()))
    config.pop("history", None)
    made = forms.build_manifest(
        config=layout.put(json.dumps(config).encode(), mediatypes.CONFIG),
        layers=[*below.layers, layout.put(content.getvalue(), mediatypes.TAR)],
    )
    layout.add(layout.put_manifest(made), "it")
    return layout


def _encrypted(source: Layout, path: Path, key: PrivateKey) -> None:
    target = Layout.create(path)
    how = Encrypting([JweRecipient(key.public)])  # all layers: one is a gzip, one is not
    target.add(encrypt_image(source, source.find("it"), target, how), "it")


def test_a_pod_of_an_encrypted_image(kubelet: Kubelet, site: Site) -> None:
    site.give(site.key)
    with (
        kubelet.image(site.image),
        kubelet.pod({}) as pod,
        pod.container(site.image, ["sleep", "1000"]) as container,
    ):
        assert container.exec("cat", "/secret").out.decode() == site.canary


def test_no_image_without_its_key(kubelet: Kubelet, site: Site) -> None:
    """containerd 1.6 seldom says why, and that an empty layer has a wrong digest instead."""
    another = PrivateKey(ec.generate_private_key(ec.SECP256R1()))
    for key, mode in ((None, 0), (another, 0o600), (site.key, 0o644)):
        if key is not None:
            site.give(key, mode)
        with (
            pytest.raises(grpc.RpcError, match=r"failed to pull and unpack image"),
            kubelet.image(site.image),
        ):
            pass
    site.give(site.key)
    with kubelet.image(site.image):
        pass
