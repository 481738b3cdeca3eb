"""Any bytes for a sealed layer give its image or one of our errors, nothing else."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cisfs.errors import CisfsError
from cisfs.format.config import b64
from cisfs.format.rotation import LayerRecord, VaultRecord
from cisfs.format.sealed import LayerHeader
from cisfs.format.sealed_geometry import SLOTS_SIZE
from cisfs.format.slotarea import MARK, SlotAreas, SlotText
from cisfs.layer import opening
from cisfs.layer.sealed import SealedLayer
from tests.fuzz.test_parsers import JSON, MANY, SLOTS, Parser, value_or_our_error
from tests.unit import layers
from tests.unit.vaults import KEY, same

HEADER = LayerHeader(65536, 5 * 4096, bytes(range(16)), b"r" * 32, b"m" * 32)
LAYER_RECORD = LayerRecord(b"i" * 16, b"s" * 32, b"h" * 32, 1 << 20, b"m" * 32)
VAULT_RECORD = VaultRecord(b"i" * 16, b"s" * 16, b"m" * 32, b"n" * 32)
SLOT = {"type": "key-file", "salt": b64(bytes(16)), "wrapped": b64(bytes(60))}

PARSERS: dict[str, Parser] = {
    "header": (LayerHeader.parse, HEADER.pack()),
    "key slots": (SlotText.parse, SlotText((SLOT,)).pack()),
    "both copies": (SlotAreas.parse, 2 * SlotText((SLOT,)).pack() + MARK),
    "rotation of a layer": (LayerRecord.parse, LAYER_RECORD.pack()),
    "rotation of a vault": (VaultRecord.parse, VAULT_RECORD.pack()),
}


@MANY
@given(fields=st.binary(min_size=80, max_size=80), intact=st.integers(8, 48))
def test_any_fields_of_a_header(fields: bytes, intact: int) -> None:
    """With the bytes that must be zero; what is taken is packed to the same again."""
    data = HEADER.pack()[:intact] + fields[intact:]
    data = data.ljust(4096, b"\0")

    def parse() -> None:
        header = LayerHeader.parse(data)
        assert header.pack() == data
        assert header.geometry.stored_size > 131072

    value_or_our_error(parse)


def parse_text(text: bytes, length: int | None = None) -> None:
    """Parse a text of key slots, with a checksum that fits."""
    start = struct.pack("<8sI52x", b"CISFSKS\0", len(text) if length is None else length)
    area = (start + text).ljust(SLOTS_SIZE, b"\0")[:SLOTS_SIZE]
    area = area[:32] + hashlib.sha256(area).digest() + area[64:]
    value_or_our_error(lambda: SlotText.parse(area))


def spelled(document: object) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode("ascii")


@MANY
@given(text=st.binary(max_size=200), length=st.one_of(st.none(), st.integers(0, 2**32 - 1)))
def test_any_text_of_key_slots(text: bytes, length: int | None) -> None:
    parse_text(text, length)


@MANY
@given(document=st.one_of(JSON, st.fixed_dictionaries({"slots": JSON}), st.lists(SLOTS)))
def test_any_structure_of_key_slots(document: object) -> None:
    parse_text(spelled(document))
    parse_text(spelled({"slots": document}))


@pytest.fixture(scope="module")
def image() -> bytes:
    return layers.image(5 * 4096)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, image: bytes) -> bytes:
    path = tmp_path_factory.mktemp("fuzz") / "layer.cis"
    layers.seal(path, image)
    return path.read_bytes()


@contextmanager
def stored(data: bytes) -> Iterator[Path]:
    fd = os.memfd_create("layer")
    try:
        os.pwrite(fd, data, 0)
        yield Path(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def read_or_our_error(path: Path) -> bytes | None:
    try:
        layer = SealedLayer.open(path, KEY)
    except CisfsError:
        return None
    try:
        return bytes(layer.reader().read(0, layer.image_size))
    except CisfsError:
        return None
    finally:
        layer.close()


@MANY
@given(start=st.sampled_from([b"", b"CISFSSL\0", HEADER.pack()]), data=st.binary(max_size=300))
def test_any_file(start: bytes, data: bytes) -> None:
    with stored(start + data) as path:
        assert opening.is_sealed(path) == (start + data).startswith(b"CISFSSL\0")
        assert read_or_our_error(path) is None
        value_or_our_error(lambda: opening.describe(path))
        value_or_our_error(lambda: opening.open_layer(path, KEY))


@MANY
@given(data=st.data())
def test_altered_layers_are_what_they_were_or_refused(
    whole: bytes, image: bytes, data: st.DataObject
) -> None:
    altered = bytearray(whole)
    places = st.one_of(
        st.integers(0, len(whole)), st.integers(131072, len(whole)), st.integers(0, 80)
    )
    for _ in range(data.draw(st.integers(1, 3))):
        at, new = data.draw(places), data.draw(st.binary(max_size=40))
        length = data.draw(st.one_of(st.just(len(new)), st.integers(0, 40)))
        altered[at : at + length] = new
    with stored(bytes(altered)) as path:
        got = read_or_our_error(path)
    assert got is None or same(got, image)
    assert got is None or bytes(altered) == whole
