"""What containerd says of a layer on descriptor 3, as its own code would spell it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from cisfs.errors import FormatError, UsageError
from cisfs.format.config import b64
from cisfs.registry.ocicrypt.payload import TYPE, Payload, parse, receive

LAYER = {
    "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
    "digest": f"sha256:{'a' * 64}",
    "size": 5,
    "annotations": {"org.opencontainers.image.enc.pubopts": "e30="},
}


def varint(value: int) -> bytes:
    low, high = value & 0x7F, value >> 7
    return bytes([low | 0x80]) + varint(high) if high else bytes([low])


def any_of(document: object, kind: str = TYPE, more: bytes = b"") -> bytes:
    """An Any, as protobuf has it."""
    value = json.dumps(document).encode()
    url = kind.encode()
    return b"\x0a" + varint(len(url)) + url + more + b"\x12" + varint(len(value)) + value


def payload(parameters: Mapping[str, object] | None = None) -> bytes:
    return any_of({"DecryptConfig": {"Parameters": parameters}, "Descriptor": LAYER})


def test_a_payload_of_the_cri_plugin() -> None:
    found = parse(payload())
    assert found.layer.as_json() == LAYER
    assert found.keys == ()
    assert parse(any_of({"Descriptor": LAYER}, f"types.containerd.io/{TYPE}")) == found


def test_private_keys_in_it_each_with_its_password() -> None:
    keys, passwords = [b64(b"first"), b64(b"two")], [b64(b"words")]
    found = parse(payload({"privkeys": keys, "privkeys-passwords": passwords}))
    assert found.keys == ((b"first", b"words"), (b"two", b""))
    assert "first" not in repr(found)
    unprotected = parse(payload({"privkeys": keys, "privkeys-passwords": [None, ""]}))
    assert unprotected.keys == ((b"first", b""), (b"two", b""))
    assert parse(payload({"privkeys": None})).keys == ()


def test_fields_that_are_not_known_are_passed_over() -> None:
    more = b"\x1a\x02ab" + b"\x20\x96\x01" + b"\x29" + bytes(8) + b"\x35" + bytes(4)
    assert parse(any_of({"Descriptor": LAYER}, more=more)).layer.size == 5


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "not of type io.containerd.ocicrypt"),
        (any_of({}, "io.containerd.other"), "not of type"),
        (any_of({}), "no descriptor"),
        (any_of([]), "no JSON object"),
        (any_of({"Descriptor": LAYER | {"size": -1}}), "no size"),
        (any_of({"Descriptor": LAYER | {"digest": "sha1:00"}}), "not of sha256"),
        (payload()[:-1], "cut short"),
        (b"\x0a", "cut short"),
        (b"\xff" * 11, "without end"),
        (b"\x0b", "no protobuf"),
        (payload({"privkeys": "AA=="}), "privkeys are not a list"),
        (payload({"privkeys": [5]}), "one of the payload's privkeys is not text"),
        (payload({"privkeys": ["%"]}), "one of the payload's privkeys is not base64"),
    ],
)
def test_payloads_that_are_none(data: bytes, words: str) -> None:
    with pytest.raises(FormatError, match=words):
        parse(data)


def test_it_is_read_to_its_end_from_a_pipe_and_from_nothing_else(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.write(write, payload())
    os.close(write)
    assert isinstance(receive(read), Payload)
    os.close(read)
    with (tmp_path / "it").open("w+b") as file, pytest.raises(UsageError, match="no payload on de"):
        receive(file.fileno())
    with pytest.raises(UsageError, match="no payload on descriptor"):
        receive(read)
