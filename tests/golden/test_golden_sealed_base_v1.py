"""The layer in tests/golden/sealed-base-v1 is bound to what lies below it, for ever."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from cisfs.errors import BaseMismatchError
from cisfs.format.sealed import LayerHeader, check_base
from cisfs.keys.credentials import RawKey
from cisfs.layer.opening import describe, open_layer
from cisfs.layer.sealed import SealedLayer

LAYER = Path(__file__).parent / "sealed-base-v1" / "layer.cis"
EXPECTED = json.loads((LAYER.parent / "expected.json").read_text("ascii"))
KEY = RawKey(bytes(range(50, 82)))


def test_its_image_is_what_it_was() -> None:
    layer = open_layer(LAYER, KEY)
    assert isinstance(layer, SealedLayer)
    try:
        image = bytes(layer.reader().read(0, layer.image_size))
    finally:
        layer.close()
    assert hashlib.sha256(image).hexdigest() == EXPECTED["image sha256"]
    assert layer.identity == describe(LAYER)["identity"] == EXPECTED["identity"]


def test_it_goes_on_its_base_and_on_no_other() -> None:
    header = LayerHeader.parse(LAYER.read_bytes())
    assert header.base.hex() == EXPECTED["base"]
    assert describe(LAYER)["base"] == f"sha256:{EXPECTED['base']}"
    check_base(header, EXPECTED["below"])
    with pytest.raises(BaseMismatchError):
        check_base(header, EXPECTED["below"][:1])


def test_layers_of_before_go_on_everything() -> None:
    check_base(LayerHeader.parse((LAYER.parents[1] / "sealed-v1/layer.cis").read_bytes()), [])
