"""What we push skopeo copies, and what it pushes we read: with TLS and a password."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cisfs.registry.descriptor import Descriptor, digest_of
from cisfs.registry.layout import Layout
from cisfs.registry.manifest import OCI_MANIFEST, Manifest, build_manifest
from cisfs.runtime.images import tools
from tests.registry.conftest import Open
from tests.registry.content import blob
from tests.registry.harness.certificates import Authority
from tests.registry.harness.debian import DebianRegistry, debian_registry
from tests.registry.test_login import log_in

LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
CONFIG = "application/vnd.oci.image.config.v1+json"


@pytest.fixture
def registry(tmp_path: Path, authority: Authority, nobody: Path) -> Iterator[DebianRegistry]:
    certificate = authority.issue("private", "127.0.0.1")
    with debian_registry(tmp_path / "registry", password=True, tls=certificate) as made:
        log_in(nobody, made.name)
        yield made


def skopeo(authority: Authority, home: Path, *words: str) -> None:
    certificates = home / "certificates"
    certificates.mkdir(exist_ok=True)
    shutil.copy(authority.file, certificates)
    options = ["--authfile", str(home / "docker/config.json")]
    options += [f"--{side}-cert-dir={certificates}" for side in ("src", "dest")]
    done = subprocess.run(
        ["skopeo", "--insecure-policy", "copy", "--quiet", *options, *words],
        env={"PATH": "/usr/bin:/bin", "HOME": str(home)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_there_and_back(
    registry: DebianRegistry, authority: Authority, opened: Open, tmp_path: Path
) -> None:
    ours = opened(registry.name, "team/ours", ca_file=authority.file)
    layer, content = blob(300_000)
    layer = Descriptor(LAYER, layer.digest, layer.size)
    ids = {"type": "layers", "diff_ids": [digest_of(b"unpacked")]}
    config = json.dumps({"architecture": "amd64", "os": "linux", "rootfs": ids}).encode()
    described = Descriptor.of(config, CONFIG)
    ours.upload_bytes(layer, content)
    ours.upload_bytes(described, config)
    pushed = build_manifest(config=described, layers=[layer])
    ours.put_manifest(pushed, "1.0")

    copy = tmp_path / "copy"
    skopeo(authority, tmp_path, f"docker://{registry.name}/team/ours:1.0", f"dir:{copy}")
    assert (copy / "manifest.json").read_bytes() == pushed.body
    assert (copy / layer.digest.removeprefix("sha256:")).read_bytes() == content

    skopeo(authority, tmp_path, f"dir:{copy}", f"docker://{registry.name}/team/theirs:2.0")
    theirs = opened(registry.name, "team/theirs", ca_file=authority.file)
    found = theirs.manifest("2.0")
    assert isinstance(found, Manifest)
    assert found.media_type == OCI_MANIFEST
    assert theirs.read_blob(found.config, 10_000) == config
    assert theirs.read_blob(found.layers[0], 300_000) == content


def test_without_tls_on_this_machine(debian: DebianRegistry, opened: Open, tmp_path: Path) -> None:
    """As our own connections, those of skopeo are let do without it here."""
    ours = opened(debian.name, "team/plain")
    config = b'{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":[]}}'
    described = Descriptor.of(config, CONFIG)
    ours.upload_bytes(described, config)
    pushed = build_manifest(config=described, layers=[])
    ours.put_manifest(pushed, "1")
    source = f"docker://{debian.name}/team/plain:1"
    assert tools.digest(source) == pushed.descriptor.digest
    assert tools.config(source) == config
    for target in ("copied", "delivered"):
        (tmp_path / target).mkdir()
    tools.copy(source, tmp_path / "copied", "it")
    tools.deliver(source, f"oci:{tmp_path / 'delivered'}:it", plain=False)
    for target in ("copied", "delivered"):
        layout = Layout.open(tmp_path / target)
        assert layout.manifest(layout.find("it")).body == pushed.body
