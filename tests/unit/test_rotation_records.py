"""What an unfinished rotation says of itself: the bytes, and what is refused."""

from __future__ import annotations

import struct
from dataclasses import replace

import pytest

from cisfs.errors import FormatError, UnsupportedVersionError
from cisfs.format.rotation import LayerRecord, VaultRecord
from cisfs.format.sealed import MAGIC

LAYER = LayerRecord(b"i" * 16, b"s" * 32, b"h" * 32, 3 << 20, b"m" * 32)
VAULT = VaultRecord(b"i" * 16, b"s" * 16, b"m" * 32, b"n" * 32)


def test_the_bytes_are_those_of_the_format() -> None:
    """docs/FORMAT.md, section 14: an unfinished rotation is gone on with by later versions."""
    start = b"CISFSRL\0" + struct.pack("<H", 1) + bytes(6) + b"i" * 16 + b"s" * 32 + b"h" * 32
    packed = start + struct.pack("<Q", 3 << 20)
    assert LAYER.pack() == packed.ljust(4064, b"\0") + b"m" * 32
    start = b"CISFSRV\0" + struct.pack("<H", 1) + bytes(6) + b"i" * 16 + b"s" * 16
    assert VAULT.pack() == start + b"m" * 32 + b"n" * 32
    assert not LAYER.pack().startswith(MAGIC)


def test_they_are_read_back() -> None:
    layer, vault = LayerRecord.parse(LAYER.pack()), VaultRecord.parse(VAULT.pack())
    assert (layer, layer.mac) == (LAYER, LAYER.mac)
    assert (vault, vault.mac, vault.new_mac) == (VAULT, VAULT.mac, VAULT.new_mac)


@pytest.mark.parametrize("record", [LAYER, VAULT], ids=["layer", "vault"])
def test_what_is_no_record_is_refused(record: LayerRecord | VaultRecord) -> None:
    data = record.pack()
    for altered, words in [
        (data[:-1], "bytes"),
        (data + b"\0", "bytes"),
        (b"", "bytes"),
        (b"C" + data, "bytes"),
        (b"X" + data[1:], "bad magic"),
        (data[:12] + b"\1" + data[13:], "reserved bytes"),
    ]:
        with pytest.raises(FormatError, match=words):
            type(record).parse(altered)
    with pytest.raises(UnsupportedVersionError, match="version 2"):
        type(record).parse(data[:8] + b"\2" + data[9:])
    with pytest.raises(FormatError, match="reserved bytes"):
        LayerRecord.parse(LAYER.pack()[:2000] + b"\1" + LAYER.pack()[2001:])


def test_each_field_is_covered_by_the_code() -> None:
    others = [
        replace(LAYER, layer_id=bytes(16)),
        replace(LAYER, source=bytes(32)),
        replace(LAYER, slots=bytes(32)),
        replace(LAYER, done=4 << 20),
    ]
    assert len({each.body() for each in [LAYER, *others]}) == 5
    vaults = [VAULT, replace(VAULT, vault_id=bytes(16)), replace(VAULT, source=bytes(16))]
    assert len({each.body() for each in vaults}) == 3
