"""The artifacts of sealed layers in registries, as strangers may have made them."""

from __future__ import annotations

import pytest

from cisfs.errors import FormatError
from cisfs.format.slotarea import MAX_TEXT, SlotText
from cisfs.registry import artifacts
from cisfs.registry.artifacts import PushedLayer, layers_in, parse_keys
from cisfs.registry.descriptor import EMPTY

IDENTITY = f"sha256:{'1' * 64}"
DIGEST = f"sha256:{'2' * 64}"


def held(*sizes: int) -> PushedLayer:
    return PushedLayer(IDENTITY, tuple(artifacts.part(DIGEST, size, IDENTITY) for size in sizes))


@pytest.mark.parametrize("sizes", [[4096], [16 << 20, 1], [1 << 20] * 256])
def test_parts_as_they_are(sizes: list[int]) -> None:
    layer = held(*sizes)
    assert layers_in(artifacts.layers_artifact([layer], EMPTY)) == [layer]


@pytest.mark.parametrize("sizes", [[0], [4095], [10, 1 << 20], [4096, 0, 1], [1 << 20] * 257])
def test_parts_that_are_none(sizes: list[int]) -> None:
    """The header is read from the first, before anything is known of the layer."""
    with pytest.raises(FormatError, match="not in parts as one is"):
        layers_in(artifacts.layers_artifact([held(*sizes)], EMPTY))


@pytest.mark.parametrize("more", [0, 1])
def test_key_slots_that_a_layer_has_room_for(more: int) -> None:
    def spelled(length: int) -> bytes:
        return SlotText(({"type": "x", "wrapped": "A" * length},)).spelled()

    data = spelled(MAX_TEXT - len(spelled(0)) + more)
    assert len(data) == MAX_TEXT + more
    if more:
        with pytest.raises(FormatError, match=f"key slots of {len(data)} bytes"):
            parse_keys(data)
    else:
        parse_keys(data).pack()
