"""An image in a layout, where it is to be divided."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cisfs.errors import UsageError
from cisfs.registry.descriptor import Descriptor
from cisfs.registry.layout import Layout
from cisfs.registry.manifest import build_manifest
from cisfs.registry.ocicrypt import mediatypes
from cisfs.runtime.images.origin import Origin, from_layout

OCI = "application/vnd.oci.image.layer"
DOCKER = "application/vnd.docker.image.rootfs"


def opened(directory: Path, media_type: str) -> Origin:
    """An image with one layer, which says that it is of that type."""
    layout = Layout.create(directory)
    layer = layout.put(b"a tar", media_type)
    config = json.dumps({"rootfs": {"diff_ids": [layer.digest]}}).encode()
    made = build_manifest(config=layout.put(config, mediatypes.CONFIG), layers=[layer])
    layout.add(layout.put_manifest(made), "x")
    return from_layout(directory, "x", ("linux", "amd64"))


@pytest.mark.parametrize(
    ("said", "stored"),
    [
        (f"{DOCKER}.diff.tar", f"{OCI}.v1.tar"),
        (f"{DOCKER}.diff.tar.gzip", f"{OCI}.v1.tar+gzip"),
        (f"{DOCKER}.diff.tar.zstd", f"{OCI}.v1.tar+zstd"),
        (f"{DOCKER}.foreign.diff.tar.gzip", f"{OCI}.nondistributable.v1.tar+gzip"),
        (f"{OCI}.v1.tar+zstd", f"{OCI}.v1.tar+zstd"),
        ("application/x-other", "application/x-other"),
    ],
)
def test_layers_are_stored_under_names_of_oci(tmp_path: Path, said: str, stored: str) -> None:
    with opened(tmp_path / "image", said) as origin:
        made = origin.layers[0].store(Layout.create(tmp_path / "public"))
    assert made == Descriptor.of(b"a tar", stored)


def test_an_encrypted_layer_takes_a_key(tmp_path: Path) -> None:
    with (
        opened(tmp_path / "image", f"{OCI}.v1.tar+encrypted") as origin,
        pytest.raises(UsageError, match="it is encrypted: give a key"),
    ):
        origin.layers[0].open(1 << 20, tmp_path)
