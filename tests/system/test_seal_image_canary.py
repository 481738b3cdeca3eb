"""Nothing of the layers that are sealed gets to a disk in plain, wherever the image comes from.

As in `tests.system.test_seal_canary`, whose disk and search these are: output, HOME, TMPDIR, /tmp
and /var/tmp are on it, and where the image comes from is not.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import subprocess
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from cisfs.registry.layout import Layout
from cisfs.registry.manifest import build_manifest
from tests.registry.harness.debian import debian_registry
from tests.system import oci
from tests.system.test_seal_canary import (  # noqa: F401 - a fixture
    Disk,
    disk,
    remove_place_of_checkout,
    run_sandboxed,
)

pytestmark = [pytest.mark.root, pytest.mark.fuse]

KINDS = ["docker-archive", "docker-archive.gz", "oci", "registry"]


def archive(path: Path, *layers: bytes) -> None:
    """Write what `docker save` would."""
    ids = [f"sha256:{hashlib.sha256(each).hexdigest()}" for each in layers]
    config = {"os": "linux", "architecture": oci.ARCHITECTURE, "rootfs": {"diff_ids": ids}}
    names = [f"{number}/layer.tar" for number in range(len(layers))]
    entry = {"Config": "config.json", "RepoTags": ["app:1"], "Layers": names}
    files = dict(zip(names, layers, strict=True))
    files["config.json"] = json.dumps(config).encode()
    files["manifest.json"] = json.dumps([entry]).encode()
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))


@contextmanager
def source(disk: Disk, kind: str) -> Iterator[str]:  # noqa: F811
    """An image whose top layer is the source."""
    site = disk.site
    path = site.base / "image.tar"
    public = oci.Tree({"public": "x"}).tar()
    archive(path, public, site.tar(site.source).read_bytes())
    with ExitStack() as undo:
        if kind == "docker-archive":
            yield f"docker-archive:{path}"
        elif kind == "docker-archive.gz":
            packed = site.base / "image.tar.gz"
            packed.write_bytes(gzip.compress(path.read_bytes()))
            yield f"docker-archive:{packed}:app:1"
        else:
            layout = site.base / "layout"
            store(layout, public, site.tar(site.source).read_bytes())
            if kind == "oci":
                yield f"oci:{layout}"
                return
            registry = undo.enter_context(debian_registry(site.base / "registry"))
            copy(f"oci:{layout}:app", f"docker://{registry.name}/app:1")
            yield f"docker://{registry.name}/app:1"


def store(path: Path, *layers: bytes) -> None:
    """Write a layout with an image of layers that are not compressed, which would hide what is in
    them from the search.
    """
    layout = Layout.create(path)
    ids = [f"sha256:{hashlib.sha256(each).hexdigest()}" for each in layers]
    config = {"os": "linux", "architecture": oci.ARCHITECTURE, "rootfs": {"diff_ids": ids}}
    made = build_manifest(
        config=layout.put(json.dumps(config).encode(), oci.CONFIG),
        layers=[layout.put(each, oci.LAYER) for each in layers],
    )
    layout.add(layout.put_manifest(made), "app")


def copy(source: str, target: str) -> None:
    words = ["skopeo", "--insecure-policy", "copy", "--quiet", "--preserve-digests"]
    subprocess.run([*words, "--dest-tls-verify=false", source, target], check=True)


@pytest.mark.parametrize("kind", KINDS)
def test_a_divided_image_leaves_nothing_plaintext(disk: Disk, kind: str) -> None:  # noqa: F811
    site = disk.site
    public = site.out / "public"
    with source(disk, kind) as image:
        words = site.seal_words(image, "--top", "1", "--public", f"oci:{public}:app")
        ended = run_sandboxed(disk, site.words(words))
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert not disk.finds()
    remove_place_of_checkout(disk)
    assert disk.canary in site.image().read_bytes()  # so that it was there to be found
    assert (public / "index.json").exists()
    site.judge({f"mount {site.base / 'ext4'}", f"file {public}"})


@pytest.mark.parametrize("kind", ["docker-archive.gz", "registry"])
def test_a_seal_of_an_image_that_fails_leaves_nothing(disk: Disk, kind: str) -> None:  # noqa: F811
    site = disk.site
    (site.source / ".wh.").touch()  # which no layer may have
    with source(disk, kind) as image:
        words = site.seal_words(image, "--top", "1", "--public", f"oci:{site.out / 'public'}:app")
        ended = run_sandboxed(disk, site.words(words))
    assert ended.returncode == 2
    assert b"is no proper whiteout" in ended.stderr
    remove_place_of_checkout(disk)
    assert not disk.finds()
    site.judge({f"mount {site.base / 'ext4'}"})
