"""For whom the next key is wrapped: only for those whom somebody with the key has put there."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from cisfs.errors import IntegrityError, UsageError
from cisfs.format.config import SlotFields
from cisfs.keys.provider import ProviderRecipient
from cisfs.keys.rewrapping import recipients_of
from cisfs.layer import slotarea
from tests.unit import layers
from tests.unit.vaults import KEY

FORGED: SlotFields = {"type": "provider:shared", "wrapped": "eA=="}


@pytest.fixture
def layer(tmp_path: Path) -> Path:
    path = tmp_path / "layer.cis"
    layers.seal(path, layers.image(layers.UNIT))
    return path


def put_in(path: Path, slot: SlotFields) -> None:
    """What anybody can do who can write to the file."""
    fd = os.open(path, os.O_RDWR)
    try:
        slotarea.update(fd, lambda text: replace(text, slots=(*text.slots, slot)))
    finally:
        os.close(fd)


@pytest.mark.parametrize("parameters", ["", "of another tenant"])
def test_a_slot_with_a_recipient_needs_the_code_of_somebody_with_the_key(
    layer: Path, parameters: str
) -> None:
    put_in(layer, {**FORGED, "recipient": parameters})
    with pytest.raises(IntegrityError, match="key slots were altered"), layers.opened(layer):
        pass


def test_a_slot_that_is_lost_is_named_in_letters() -> None:
    with pytest.raises(UsageError) as caught:
        recipients_of([{**FORGED, "type": "\x1b[2J\ud800"}], [], bytes(16))
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("kind", ["provider:shared", "jwe", "age", "pkcs11", "unheard-of"])
def test_a_slot_without_one_is_wrapped_for_nobody(layer: Path, kind: str) -> None:
    """Such slots need no code."""
    put_in(layer, {**FORGED, "type": kind})
    lost = pytest.raises(UsageError, match="can only be made again by who knows their secret")
    with layers.opened(layer) as opened, lost:
        recipients_of(opened.slots, [KEY], opened.header.layer_id)


def test_a_provider_may_have_no_parameters() -> None:
    slots = [{**FORGED, "recipient": ""}]
    assert recipients_of(slots, [], bytes(16)) == [ProviderRecipient("shared", "")]
