"""Blobs and manifests to send: the same bytes for the same seed.

Pure.
"""

from __future__ import annotations

import random

from cisfs.registry.descriptor import EMPTY, EMPTY_JSON, Descriptor
from cisfs.registry.manifest import Manifest, build_manifest
from cisfs.registry.repository import Repository

TYPE = "application/vnd.tests.blob"
MIB = 1 << 20


def blob(size: int, seed: int = 1) -> tuple[Descriptor, bytes]:
    """Bytes and what describes them."""
    content = random.Random(seed).randbytes(size)
    return Descriptor.of(content, TYPE), content


def pushed_blob(repository: Repository, size: int, seed: int = 1) -> tuple[Descriptor, bytes]:
    """The same, there already."""
    descriptor, content = blob(size, seed)
    repository.upload_bytes(descriptor, content)
    return descriptor, content


def pushed_artifact(
    repository: Repository, kind: str, subject: Descriptor | None = None, note: str = ""
) -> Manifest:
    """A manifest of one layer, there but for itself."""
    repository.upload_bytes(EMPTY, EMPTY_JSON)
    layer, _ = pushed_blob(repository, 100)
    return build_manifest(
        config=EMPTY,
        layers=[layer],
        artifact_type=kind,
        subject=subject,
        annotations={"note": note} if note else None,
    )
