"""`cisfs seal` of images that skopeo encrypted: their layers are decrypted on the way, or refused.

Needs root, runc, skopeo and FUSE.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from cisfs.errors import FormatError, IntegrityError, UsageError, WrongKeyError
from cisfs.registry.layout import Layout
from cisfs.registry.manifest import Manifest, dump
from cisfs.registry.ocicrypt.layers import is_encrypted
from tests.system import oci
from tests.system.test_ocicrypt import encryption, must
from tests.system.test_ocicrypt_keys import Pair, keys
from tests.system.test_run_images import Images
from tests.system.test_seal_image import images, key_of, seal, shown

__all__ = ["images", "keys"]

pytestmark = [
    pytest.mark.root,
    pytest.mark.fuse,
    pytest.mark.skipif(shutil.which("skopeo") is None, reason="needs skopeo"),
]

CANARY = "canary-of-an-encrypted-layer"


def encrypted(images: Images, recipients: list[Pair], *layers: int) -> tuple[str, str]:
    """An image whose topmost layers are secret; returns its name, and what it shows in clear."""
    trees = [
        oci.base(**{"data/gone": "x", "data/kept": "y"}),
        oci.Tree({"data/.wh.gone": "", "data/one": CANARY}),
        oci.Tree({"data/two": CANARY}),
    ]
    whole = images.image("whole", *trees)
    target = f"oci:{images.directory}/encrypted:it"
    options = [f"--encrypt-layer={each}" for each in layers]
    must("--insecure-policy", *encryption(recipients, *options), whole, target)
    return target, shown(images, whole)


@pytest.mark.parametrize(("who", "layers"), [("rsa", (1, 2)), ("p384", ()), ("keygen", (-1,))])
def test_what_was_encrypted_is_sealed_and_shows_the_same(
    images: Images, keys: dict[str, Pair], who: str, layers: tuple[int, ...]
) -> None:
    source, wanted = encrypted(images, [keys["rsa"], keys["p384"], keys["keygen"]], *layers)
    top = 2 if len(layers) != 1 else 1
    if not layers:  # the base too, which a key opens where it runs
        top = 3
    layer, public = seal(images, source, "--top", str(top), "-i", keys[who].private)
    assert shown(images, public, "--layer", layer) == wanted
    assert CANARY.encode() not in layer.read_bytes()


def refused(images: Images, source: str, *options: str | Path) -> tuple[int, str]:
    """Fail to seal, leaving nothing; returns the exit code and the message."""
    layer = images.directory / "app.cis"
    done = images.cisfs("seal", "--key-file", key_of(images), source, "-o", layer, *options)
    assert not layer.exists()
    assert not layer.with_suffix(".public").exists()
    assert done.stderr.count("\n") == 1
    return done.returncode, done.stderr


def test_without_the_right_key_nothing_is_made(images: Images, keys: dict[str, Pair]) -> None:
    source, _ = encrypted(images, [keys["rsa"]], -1)
    top = ("--top", "1")
    code, said = refused(images, source, *top)
    assert (code, "give a key that opens it, with -i" in said) == (UsageError.exit_code, True)
    code, said = refused(images, source, *top, "-i", keys["stranger"].private)
    assert (code, "no key opens the layer; tried: " in said) == (WrongKeyError.exit_code, True)


@pytest.mark.parametrize("how", ["ciphertext", "options"])
def test_an_altered_layer_is_not_sealed(images: Images, keys: dict[str, Pair], how: str) -> None:
    source, _ = encrypted(images, [keys["rsa"]], -1)
    layout = Layout.open(images.directory / "encrypted")
    described = layout.find("it")
    manifest = layout.manifest(described)
    assert isinstance(manifest, Manifest)
    last = manifest.layers[-1]
    assert is_encrypted(last)
    document = json.loads(manifest.body)
    changed = document["layers"][-1]
    if how == "ciphertext":
        blob = layout.read(last)
        changed["digest"] = layout.put(blob[:-1] + bytes([blob[-1] ^ 1]), last.media_type).digest
    else:
        del changed["annotations"]["org.opencontainers.image.enc.pubopts"]
    layout.add(layout.put(dump(document), manifest.media_type), "it")
    code, said = refused(images, source, "--top", "1", "-i", keys["rsa"].private)
    error, words = {
        "ciphertext": (IntegrityError, "its HMAC does not match"),
        "options": (FormatError, "no public options: its annotations were lost"),
    }[how]
    assert (code, words in said) == (error.exit_code, True), said
