"""OCI layouts of one layer, encrypted as ocicrypt does it; only the JWE packets are ours to make.

https://github.com/containers/ocicrypt, spec/spec.go and blockcipher/blockcipher_aes_ctr.go.  Knows
nothing of cisfs.  Stateless; safe anywhere.
"""

from __future__ import annotations

import gzip
import hashlib
import hmac
import io
import json
import os
import secrets
import tarfile
from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

LAYER = "application/vnd.oci.image.layer.v1.tar+gzip"
ENCRYPTED = LAYER + "+encrypted"
KEYS = "org.opencontainers.image.enc.keys.jwe"
PUBLIC_OPTIONS = "org.opencontainers.image.enc.pubopts"
_PREFIX = "application/vnd.oci.image."


@dataclass(frozen=True)
class Layer:
    """A blob, as the manifest has it."""

    media_type: str
    blob: bytes
    annotations: Mapping[str, str]


@dataclass(frozen=True)
class Encrypted:
    """A layer's ciphertext, what anyone may know of it, and what is for the recipients."""

    blob: bytes
    public: bytes
    private: bytes


def plain_layer() -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w", format=tarfile.PAX_FORMAT) as tar:
        entry = tarfile.TarInfo("etc/motd")
        entry.size = 100_000
        tar.addfile(entry, io.BytesIO(secrets.token_bytes(entry.size)))
    return gzip.compress(content.getvalue(), mtime=0)


def write_layout(directory: Path, plain: bytes, layer: Layer) -> None:
    """Write an image of one layer, whose unencrypted blob is `plain`, under the name `it`."""
    blobs = directory / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def add(kind: str, blob: bytes, **more: object) -> dict[str, object]:
        digest = hashlib.sha256(blob).hexdigest()
        (blobs / digest).write_bytes(blob)
        return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(blob), **more}

    config = {
        "architecture": "arm64" if os.uname().machine == "aarch64" else "amd64",
        "os": "linux",
        "rootfs": {
            "type": "layers",
            "diff_ids": [f"sha256:{hashlib.sha256(gzip.decompress(plain)).hexdigest()}"],
        },
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": _PREFIX + "manifest.v1+json",
        "config": add(_PREFIX + "config.v1+json", json.dumps(config).encode()),
        "layers": [add(layer.media_type, layer.blob, annotations=dict(layer.annotations))],
    }
    named = {"annotations": {"org.opencontainers.image.ref.name": "it"}}
    index = {
        "schemaVersion": 2,
        "manifests": [add(_PREFIX + "manifest.v1+json", json.dumps(manifest).encode(), **named)],
    }
    (directory / "index.json").write_text(json.dumps(index))
    (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


def read_layout(directory: Path) -> Layer:
    """Return the only layer of the only image."""
    (manifest,) = json.loads((directory / "index.json").read_text())["manifests"]
    (layer,) = json.loads(_blob(directory, manifest))["layers"]
    return Layer(layer["mediaType"], _blob(directory, layer), layer.get("annotations", {}))


def encrypt_blob(plain: bytes) -> Encrypted:
    key, nonce = secrets.token_bytes(32), secrets.token_bytes(16)
    blob = _ctr(key, nonce, plain)
    public = {
        "cipher": "AES_256_CTR_HMAC_SHA256",
        "hmac": _b64(hmac.digest(key, blob, hashlib.sha256)),
        "cipheroptions": {},
    }
    private = {
        "symkey": _b64(key),
        "digest": f"sha256:{hashlib.sha256(plain).hexdigest()}",
        "cipheroptions": {"nonce": _b64(nonce)},
    }
    return Encrypted(blob, json.dumps(public).encode(), json.dumps(private).encode())


def decrypt_blob(encrypted: Encrypted) -> bytes:
    public, private = json.loads(encrypted.public), json.loads(encrypted.private)
    assert public["cipher"] == "AES_256_CTR_HMAC_SHA256"
    key, nonce = b64decode(private["symkey"]), b64decode(private["cipheroptions"]["nonce"])
    assert hmac.digest(key, encrypted.blob, hashlib.sha256) == b64decode(public["hmac"])
    plain = _ctr(key, nonce, encrypted.blob)
    assert private["digest"] == f"sha256:{hashlib.sha256(plain).hexdigest()}"
    return plain


def _ctr(key: bytes, nonce: bytes, data: bytes) -> bytes:
    return Cipher(algorithms.AES256(key), modes.CTR(nonce)).encryptor().update(data)


def _blob(directory: Path, descriptor: Mapping[str, Any]) -> bytes:
    return (directory / "blobs" / str(descriptor["digest"]).replace(":", "/")).read_bytes()


def _b64(data: bytes) -> str:
    return b64encode(data).decode("ascii")
