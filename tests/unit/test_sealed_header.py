"""Header, key slots and reserved area of a sealed layer: round trips, and each refusal's words."""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import replace

import pytest

from cisfs.errors import (
    BaseMismatchError,
    CisfsError,
    FormatError,
    NotAVaultError,
    UnsupportedVersionError,
)
from cisfs.format.config import SlotFields, b64
from cisfs.format.sealed import LayerHeader, base_of, check_base
from cisfs.format.sealed_geometry import MAX_IMAGE_SIZE, SLOTS_SIZE
from cisfs.format.signatures import Signature
from cisfs.format.slotarea import AREAS_SIZE, MAX_TEXT, SlotAreas, SlotText

HEADER = LayerHeader(65536, 5 * 4096, bytes(range(16)), b"r" * 32, b"m" * 32)
PACKED = HEADER.pack()
SLOT: SlotFields = {"type": "key-file", "salt": b64(bytes(16)), "wrapped": b64(bytes(60))}
SLOTS = SlotText((SLOT,)).pack()


def patched(data: bytes, offset: int, new: bytes) -> bytes:
    return data[:offset] + new + data[offset + len(new) :]


# -- the header ----------------------------------------------------------------------------


@pytest.mark.parametrize("log2", range(12, 21))
@pytest.mark.parametrize("size", [4096, 1 << 40, MAX_IMAGE_SIZE])
def test_headers_round_trip(log2: int, size: int) -> None:
    header = replace(HEADER, unit_size=1 << log2, image_size=size, base=bytes(range(32)))
    packed = header.pack()
    assert len(packed) == 4096
    assert LayerHeader.parse(packed) == LayerHeader.parse(packed + b"more") == header
    assert LayerHeader.parse(packed).mac == header.mac
    assert LayerHeader.parse(packed).pack() == packed
    assert header.body() == packed[:4064]
    assert (header.geometry.unit_size, header.geometry.image_size) == (1 << log2, size)


def test_the_fields_lie_where_the_format_says() -> None:
    assert PACKED[:16] == b"CISFSSL\0" + b"\1\0" + b"\20" + b"\1" + bytes(4)
    assert PACKED[16:48] == bytes(range(16)) + (5 * 4096).to_bytes(8, "little") + bytes(8)
    assert PACKED[48:80] == b"r" * 32
    assert PACKED[80:] == bytes(3984) + b"m" * 32
    assert replace(HEADER, base=b"b" * 32).pack()[80:] == b"b" * 32 + bytes(3952) + b"m" * 32


def test_the_identity_is_the_digest_of_the_whole_header() -> None:
    assert HEADER.identity == "sha256:" + hashlib.sha256(PACKED).hexdigest()
    others = [
        replace(HEADER, unit_size=4096),
        replace(HEADER, image_size=4096),
        replace(HEADER, layer_id=bytes(16)),
        replace(HEADER, root=bytes(32)),
        replace(HEADER, mac=bytes(32)),
        replace(HEADER, base=b"b" * 32),
    ]
    assert len({HEADER.identity, *(each.identity for each in others)}) == 7


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        (b"", NotAVaultError, "it does not begin as one does"),
        (PACKED[:7], NotAVaultError, "it does not begin as one does"),
        (patched(PACKED, 7, b"\1"), NotAVaultError, "it does not begin as one does"),
        (PACKED[:8], FormatError, "layer header truncated to 8 bytes"),
        (PACKED[:4095], FormatError, "layer header truncated to 4095 bytes"),
        (patched(PACKED, 8, b"\2"), UnsupportedVersionError, "layer header has version 2; .* upgr"),
        (patched(PACKED, 8, b"\0"), UnsupportedVersionError, "layer header has version 0; .* upgr"),
        (patched(PACKED, 9, b"\1")[:10], UnsupportedVersionError, "layer header has version 257"),
        (patched(PACKED, 10, b"\13"), FormatError, r"layer header damaged: unit size 2\*\*11"),
        (patched(PACKED, 10, b"\25"), FormatError, r"layer header damaged: unit size 2\*\*21"),
        (patched(PACKED, 10, b"\377"), FormatError, r"layer header damaged: unit size 2\*\*255"),
        (patched(PACKED, 8, b"\3"), FormatError, "layer header damaged: it has no base"),
        (patched(PACKED, 80, b"b" * 32), FormatError, "layer header damaged: reserved bytes"),
        (patched(PACKED, 11, b"\0"), FormatError, "layer header damaged: unknown kind of image 0"),
        (patched(PACKED, 11, b"\2"), FormatError, "layer header damaged: unknown kind of image 2"),
        (patched(PACKED, 12, b"\1"), FormatError, "layer header damaged: reserved bytes are not"),
        (patched(PACKED, 15, b"\1"), FormatError, "layer header damaged: reserved bytes are not"),
        (patched(PACKED, 40, b"\1"), FormatError, "layer header damaged: reserved bytes are not"),
        (patched(PACKED, 112, b"\1"), FormatError, "layer header damaged: reserved bytes are not"),
        (patched(PACKED, 4063, b"\1"), FormatError, "layer header damaged: reserved bytes are not"),
        (patched(PACKED, 32, bytes(8)), FormatError, "layer header damaged: image size 0 is not"),
        (patched(PACKED, 32, b"\1"), FormatError, "layer header damaged: image size 20481 is not"),
        (patched(PACKED, 39, b"\2"), FormatError, "layer header damaged: image size 14411518807"),
    ],
)
def test_bad_headers_are_refused(data: bytes, error: type[CisfsError], words: str) -> None:
    with pytest.raises(CisfsError, match=f"^{words}") as caught:
        LayerHeader.parse(data)
    assert type(caught.value) is error


def test_a_layer_goes_on_the_base_that_it_is_bound_to() -> None:
    below = [f"sha256:{'a' * 64}", f"sha256:{'b' * 64}"]
    text = '["' + '","'.join(below) + '"]'
    assert base_of(below) == hashlib.sha256(text.encode()).digest()
    bound = replace(HEADER, base=base_of(below))
    check_base(bound, below)
    for other in ([], below[:1], below[::-1], [*below, below[0]]):
        with pytest.raises(BaseMismatchError, match=f"^layer {bound.identity} was sealed to go on"):
            check_base(bound, other)
        check_base(HEADER, other)
    with pytest.raises(BaseMismatchError):
        check_base(replace(HEADER, base=base_of([])), below)


# -- the key slots -------------------------------------------------------------------------


def area(text: bytes, *, length: int | None = None, reserved: bytes = bytes(20)) -> bytes:
    """Key slots with a checksum that fits, whatever is in them."""
    start = struct.pack(
        "<8sI20s32x", b"CISFSKS\0", len(text) if length is None else length, reserved
    )
    data = (start + text).ljust(SLOTS_SIZE, b"\0")
    return patched(data, 32, hashlib.sha256(data).digest())


def spelled(slots: object) -> bytes:
    return json.dumps({"slots": slots}, sort_keys=True, separators=(",", ":")).encode()


def test_key_slots_round_trip() -> None:
    other: SlotFields = {"type": "tpm2", "blob": "\N{SNOWMAN}", "number": -1}
    for slots in ([SLOT], [SLOT, other], [SLOT] * 256):
        packed = SlotText(tuple(slots)).pack()
        assert len(packed) == SLOTS_SIZE
        assert SlotText.parse(packed).slots == tuple(slots)
        assert packed == area(spelled(slots))


def test_more_key_slots_than_there_is_room_for_are_the_callers_mistake() -> None:
    room = MAX_TEXT - len(spelled([{"type": ""}]))
    assert SlotText.parse(SlotText(({"type": "x" * room},)).pack()).slots
    with pytest.raises(ValueError, match=r"^key slots of 61377 bytes; a layer has room for 61376$"):
        SlotText(({"type": "x" * (room + 1)},)).pack()


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (SLOTS[:-1], "key slots truncated to 61439 bytes"),
        (b"", "key slots truncated to 0 bytes"),
        (patched(SLOTS, 0, b"X"), "key slots damaged: bad magic"),
        (patched(SLOTS, 8, b"\0"), "key slots damaged: the checksum does not match"),
        (patched(SLOTS, 32, b"12"), "key slots damaged: the checksum does not match"),
        (patched(SLOTS, 100, b"~"), "key slots damaged: the checksum does not match"),
        (patched(SLOTS, -1 + SLOTS_SIZE, b"~"), "key slots damaged: the checksum does not match"),
        (area(spelled([SLOT]), reserved=b"\1" * 20), "key slots damaged: reserved bytes are not"),
        (area(b"", length=61377), "key slots damaged: a text of 61377 bytes"),
        (area(b"", length=2**32 - 1), "key slots damaged: a text of 4294967295 bytes"),
        (area(spelled([SLOT]), length=1), "key slots damaged: padding is not zero"),
        (area(spelled([SLOT]) + b"\0"), "key slots damaged: it is not valid JSON"),
        (area(b""), "key slots damaged: it is not valid JSON"),
        (area(b'{"slots":1,"slots":2}'), "key slots damaged: it is not valid JSON .a field stands"),
        (area(b"[" * 60000), "key slots damaged: it is not valid JSON"),
        (area(b"[]"), "key slots damaged: it is not a JSON object"),
        (area(b" " + spelled([SLOT])), "key slots damaged: it is not in canonical form"),
        (
            area(b'{"slots":[{"type":"\xc3\xa4"}]}'),
            "key slots damaged: it is not in canonical form",
        ),
        (area(b"{}"), "key slots damaged: it has other fields than slots, mac, signatures and"),
        (
            area(b'{"more":1,"slots":[]}'),
            "key slots damaged: it has other fields than slots, mac, signatures and",
        ),
        (area(spelled([])), "key slots damaged: slots is not a list of 1 to 256 key slots"),
        (
            area(spelled([{"type": "x"}] * 257)),
            "key slots damaged: slots is not a list of 1 to 256",
        ),
        (
            area(b'{"mac":"AAAA","slots":[{"type":"x"}]}'),
            "key slots damaged: mac has 3 bytes instead of 32",
        ),
        (area(b'{"revision":0,"slots":[{"type":"x"}]}'), "key slots damaged: revision is not a"),
        (area(b'{"revision":true,"slots":[{"type":"x"}]}'), "key slots damaged: revision is not"),
        (area(b'{"mac":1,"slots":[{"type":"x"}]}'), "key slots damaged: mac is not text"),
        (area(b'{"mac":"","slots":[{"type":"x"}]}'), "key slots damaged: mac has 0 bytes"),
        (
            area(b'{"signatures":[],"slots":[{"type":"x"}]}'),
            "key slots damaged: signatures is not a list of 1 to 64 signatures",
        ),
        (
            area(b'{"signatures":[{"signer":""}],"slots":[{"type":"x"}]}'),
            "key slots damaged: a signature is not an object with signer and",
        ),
        (
            area(b'{"signatures":[{"signature":1,"signer":"!"}],"slots":[{"type":"x"}]}'),
            "key slots damaged: a signer is not base64",
        ),
        (area(spelled([{}])), "key slots damaged: a key slot is not an object with a type"),
        (area(spelled([{"type": "x", "y": []}])), "key slots damaged: a key slot has a field that"),
    ],
)
def test_bad_key_slots_are_refused(data: bytes, words: str) -> None:
    with pytest.raises(FormatError, match=f"^{words}") as caught:
        SlotText.parse(data)
    assert type(caught.value) is FormatError


def test_what_goes_with_the_slots_round_trips() -> None:
    first, *_ = signatures = tuple(Signature(bytes([at]) * 32, bytes(64)) for at in range(64))
    for text in (
        SlotText((SLOT,), b"m" * 32),
        SlotText((SLOT,), b"", signatures),
        SlotText((SLOT, SLOT), b"m" * 32, (first,), 3),
    ):
        assert SlotText.parse(text.pack()) == text


# -- two copies of them ----------------------------------------------------------------------

OTHER = SlotText(({"type": "other"},))
NOTHING, UNMARKED = bytes(SLOTS_SIZE), bytes(4096)
MARK = b"CISFSKC\0".ljust(4096, b"\0")


def test_under_the_mark_the_second_copy_counts_if_it_is_whole() -> None:
    one, other = SlotText((SLOT,)), OTHER.pack()
    assert SlotAreas.parse(SLOTS + NOTHING + UNMARKED) == SlotAreas(one)
    assert SlotAreas.parse(SLOTS + NOTHING + MARK) == SlotAreas(one, is_marked=True)
    assert SlotAreas.parse(SLOTS + other + MARK) == SlotAreas(OTHER, is_marked=True)
    assert SlotAreas.parse(NOTHING + other + MARK) == SlotAreas(OTHER, is_marked=True)
    for torn in (patched(other, 0, b"X"), patched(other, 4096, b"X"), patched(NOTHING, 5, b"X")):
        assert SlotAreas.parse(SLOTS + torn + MARK) == SlotAreas(one, is_marked=True)


def test_without_a_whole_copy_it_is_said_what_is_wrong_with_the_first() -> None:
    torn = patched(SLOTS, 100, b"~")
    for second in (NOTHING, torn, patched(NOTHING, 9, b"~")):
        with pytest.raises(FormatError, match=r"^key slots damaged: the checksum does not match$"):
            SlotAreas.parse(torn + second + MARK)


def test_without_the_mark_everything_behind_the_first_copy_is_zeros() -> None:
    assert len(SLOTS + NOTHING + UNMARKED) == AREAS_SIZE
    good = SLOTS + NOTHING + UNMARKED
    with pytest.raises(FormatError, match=r"^key slots truncated to 61439 bytes$"):
        SlotAreas.parse(good[:61439])
    with pytest.raises(FormatError, match=r"^reserved area truncated to 65535 bytes$"):
        SlotAreas.parse(good[:-1])
    for bad in (
        patched(good, SLOTS_SIZE, b"\1"),
        patched(good, AREAS_SIZE - 1, b"\1"),
        patched(SLOTS + NOTHING + MARK, AREAS_SIZE - 1, b"\1"),
        SLOTS + OTHER.pack() + UNMARKED,
    ):
        with pytest.raises(FormatError, match=r"^reserved area damaged: it is not zero$"):
            SlotAreas.parse(bad)
