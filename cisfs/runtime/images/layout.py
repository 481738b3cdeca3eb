"""Reading the one image of an OCI layout that skopeo has just written.

Checks digests, and looks nowhere else; does not know where the image came from.  Safe anywhere.
Source: OCI image-spec 1.0, image-layout.md and manifest.md.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path

from cisfs.errors import EngineError

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_LIMIT = 8 << 20  # bytes of a manifest or a configuration


@dataclass(frozen=True, slots=True)
class Found:
    """The digest of the manifest, and the bytes of the configuration."""

    digest: str
    config: bytes


def read(layout: Path, reference: str) -> Found:
    """Return the only image of a layout.  Raises EngineError, which names `reference`."""
    try:
        index = json.loads((layout / "index.json").read_bytes())
        (entry,) = index["manifests"]
        digest = entry["digest"]
        manifest = json.loads(_blob(layout, digest))
        return Found(digest, _blob(layout, manifest["config"]["digest"]))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise EngineError(f"image {reference}: not a well-formed image ({error})") from None


def _blob(layout: Path, digest: str) -> bytes:
    if not _DIGEST.fullmatch(digest):
        raise ValueError(f"{digest!r} is no SHA-256 digest")
    path = layout / "blobs/sha256" / digest.removeprefix("sha256:")
    if path.stat().st_size > _LIMIT:
        raise ValueError("a manifest or configuration of more than 8 MiB")
    data = path.read_bytes()
    if f"sha256:{hashlib.sha256(data).hexdigest()}" != digest:
        raise ValueError(f"the content of {digest} has another digest")
    return data
