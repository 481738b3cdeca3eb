"""Images in OCI layouts, made of busybox and of what a test wants in them.

Knows no engine; the same content gives the same bytes.  Stateless; safe anywhere.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
ARCHITECTURE = "arm64" if os.uname().machine == "aarch64" else "amd64"
ACCOUNTS = {
    "etc/passwd": "root:x:0:0::/root:/bin/sh\napp:x:1234:2345::/home/app:/bin/sh\n",
    "etc/group": "root:x:0:\napp:x:2345:\n",
}


@dataclass
class Tree:
    """The content of one layer: text of files by name; a name that ends in a slash is a directory.

    Owners and modes are what they usually are.
    """

    files: dict[str, str] = field(default_factory=dict)
    busybox: bool = False

    def tar(self) -> bytes:
        content = io.BytesIO()
        with tarfile.open(fileobj=content, mode="w", format=tarfile.PAX_FORMAT) as tar:
            if self.busybox:
                _add_busybox(tar)
            for name, text in self.files.items():
                _add(tar, name, text.encode(), 0o644)
        return content.getvalue()


def base(**files: str) -> Tree:
    """A layer that can run commands."""
    return Tree({**ACCOUNTS, **files}, busybox=True)


def _add(tar: tarfile.TarFile, name: str, content: bytes, mode: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    if name.endswith("/"):
        entry.type, entry.mode = tarfile.DIRTYPE, 0o755
    tar.addfile(entry, io.BytesIO(content))


def _add_busybox(tar: tarfile.TarFile) -> None:
    for name in ("bin", "etc", "home", "home/app", "root", "tmp", "var", "var/tmp"):
        entry = tarfile.TarInfo(name)
        entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if name.endswith("tmp") else 0o755
        if name == "home/app":
            entry.uid, entry.gid = 1234, 2345
        tar.addfile(entry)
    _add(tar, "bin/busybox", Path("/bin/busybox").read_bytes(), 0o755)
    listed = subprocess.run(["/bin/busybox", "--list"], capture_output=True, check=True, text=True)
    for name in sorted(set(listed.stdout.split()) - {"busybox"}):
        entry = tarfile.TarInfo(f"bin/{name}")
        entry.type, entry.linkname = tarfile.SYMTYPE, "busybox"
        tar.addfile(entry)


def write_layout(
    layout: Path,
    tag: str,
    trees: Sequence[Tree],
    config: Mapping[str, Any] | None = None,
    architecture: str = ARCHITECTURE,
) -> str:
    """Write or extend a layout; return the manifest's digest."""
    (layout / "blobs/sha256").mkdir(parents=True, exist_ok=True)
    tars = [tree.tar() for tree in trees]
    document = {
        "architecture": architecture,
        "os": "linux",
        "config": {"Env": ["PATH=/bin"], "Cmd": ["/bin/sh"], **(config or {})},
        "rootfs": {"type": "layers", "diff_ids": [_digest(tar) for tar in tars]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": _blob(layout, CONFIG, json.dumps(document).encode()),
        "layers": [_blob(layout, LAYER, tar) for tar in tars],
    }
    entry = _blob(layout, MANIFEST, json.dumps(manifest).encode())
    _list(layout, {**entry, "annotations": {"org.opencontainers.image.ref.name": tag}})
    return str(entry["digest"])


def _list(layout: Path, entry: dict[str, Any]) -> None:
    (layout / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    index = layout / "index.json"
    others = json.loads(index.read_text())["manifests"] if index.exists() else []
    manifests = [one for one in others if one["annotations"] != entry["annotations"]]
    index.write_text(json.dumps({"schemaVersion": 2, "manifests": [*manifests, entry]}))


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _blob(layout: Path, media_type: str, data: bytes) -> dict[str, Any]:
    digest = _digest(data)
    (layout / "blobs/sha256" / digest.removeprefix("sha256:")).write_bytes(data)
    return {"mediaType": media_type, "digest": digest, "size": len(data)}
