"""The layer in tests/golden/sealed-v1 stands for those that users have: it must open, for ever."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from cisfs.keys.credentials import Credential, Passphrase, RawKey
from cisfs.layer.opening import describe, open_layer
from cisfs.layer.sealed import SealedLayer
from cisfs.layer.sealed_verify import verify_sealed

LAYER = Path(__file__).parent / "sealed-v1" / "layer.cis"
EXPECTED = json.loads((LAYER.parent / "expected.json").read_text("ascii"))
KEY = RawKey(bytes(range(50, 82)))
PASSPHRASE = Passphrase(b"golden passphrase, not a secret")
EROFS_MAGIC = 0xE0F5E1E2


@pytest.mark.parametrize("credential", [KEY, PASSPHRASE], ids=["key file", "passphrase"])
def test_its_image_is_what_it_was(credential: Credential) -> None:
    layer = open_layer(LAYER, credential)
    assert isinstance(layer, SealedLayer)
    try:
        image = bytes(layer.reader().read(0, layer.image_size))
        assert list(verify_sealed(layer)) == []
        assert layer.identity == EXPECTED["identity"]
    finally:
        layer.close()
    assert len(image) == EXPECTED["image size"]
    assert hashlib.sha256(image).hexdigest() == EXPECTED["image sha256"]
    assert int.from_bytes(image[1024:1028], "little") == EROFS_MAGIC


def test_it_says_what_it_is() -> None:
    said = describe(LAYER)
    cost = {"kdf": "argon2id", "iterations": 1, "lanes": 1, "memory_kib": 64}
    assert (said["type"], said["version"], said["unit_size"]) == ("sealed layer", 1, 16384)
    assert said["identity"] == EXPECTED["identity"]
    assert said["slots"] == [
        {"id": "5e1612b79e39", "type": "key-file"},
        {"id": "32261c25d662", "type": "passphrase", **cost},
    ]
