"""A layer is bound to another base: the same image and keys, another header and identity."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cisfs.errors import FormatError, UsageError, WrongKeyError
from cisfs.format.sealed import LayerHeader, base_of, check_base
from cisfs.format.signatures import Signature
from cisfs.keys.credentials import RawKey
from cisfs.layer import pulled, slotarea
from cisfs.layer.rebase import rebase
from cisfs.layer.rotation import rotate
from cisfs.layer.sealed_file import stored
from cisfs.layer.sealed_verify import verify_sealed
from cisfs.registry.pull import renew_slots
from tests.unit import layers
from tests.unit.vaults import KEY, same

IMAGE = layers.image(20 * 4096)
BELOW = [f"sha256:{'1' * 64}", f"sha256:{'2' * 64}"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    place = tmp_path / "layer.cis"
    layers.seal(place, IMAGE)
    return place


def test_nothing_but_header_and_signatures_changes(path: Path) -> None:
    before = path.read_bytes()
    path.chmod(0o640)
    fd = os.open(path, os.O_RDWR)
    signed = (Signature(bytes(32), bytes(64)),)
    slotarea.update(fd, lambda text: replace(text, signatures=signed))
    os.close(fd)
    identity, lost = rebase(path, KEY, BELOW)
    after = path.read_bytes()
    assert lost == 1
    assert after[8:10] == b"\3\0"
    assert after[:8] + after[10:80] == before[:8] + before[10:80]
    assert after[80:112] == base_of(BELOW)
    assert after[4096:] == before[4096:]
    assert path.stat().st_mode & 0o777 == 0o640
    with layers.opened(path) as layer:
        assert layer.identity == identity == LayerHeader.parse(after).identity
        assert same(layer.reader().read(0, len(IMAGE)), IMAGE)
        assert list(verify_sealed(layer)) == []
        check_base(layer.header, BELOW)


@pytest.mark.parametrize(
    "change", [lambda path: rebase(path, KEY, BELOW), lambda path: rotate(path, KEY, KEY)]
)
def test_what_was_pulled_keeps_its_identity(path: Path, change: Callable[[Path], object]) -> None:
    """The store knows it by that: the next pull would give it the key slots of another layer."""
    place = pulled.directory_of(path.parent, stored(path)[0].identity) / pulled.LAYER
    place.parent.mkdir(parents=True)
    path.rename(place)
    path.symlink_to(place)
    before = place.read_bytes()
    for each in (place, path):
        with pytest.raises(UsageError, match=f"^{place} was pulled.*copy it out first"):
            change(each)
    assert place.read_bytes() == before
    assert list(place.parent.iterdir()) == [place]


def test_key_slots_are_not_put_into_another_layer(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    text = slotarea.read(fd).text
    os.close(fd)
    place = pulled.directory_of(path.parent, f"sha256:{'1' * 64}") / pulled.LAYER
    place.parent.mkdir(parents=True)
    path.rename(place)
    with pytest.raises(FormatError, match="is another layer than its directory is for"):
        renew_slots(place, replace(text, revision=7))
    with layers.opened(place):
        pass


def test_a_rotation_keeps_the_binding(path: Path) -> None:
    rebase(path, KEY, BELOW)
    rotate(path, KEY, KEY)
    with layers.opened(path) as layer:
        check_base(layer.header, BELOW)


def test_it_can_be_bound_to_nothing_again(path: Path) -> None:
    before = path.read_bytes()
    bound, _ = rebase(path, KEY, [])
    assert rebase(path, KEY, []) == (bound, 0)
    rebase(path, KEY, None)
    assert path.read_bytes() == before


def test_a_layer_that_is_open_stays_as_it_was(path: Path) -> None:
    with layers.opened(path) as layer:
        rebase(path, KEY, BELOW)
        assert same(layer.reader().read(0, len(IMAGE)), IMAGE)


def test_who_cannot_open_it_changes_nothing(path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(WrongKeyError):
        rebase(path, RawKey(bytes(32)), BELOW)
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_what_a_symlink_leads_to_is_bound(path: Path) -> None:
    link = path.parent / "link.cis"
    link.symlink_to(path.name)
    rebase(link, KEY, BELOW)
    assert link.is_symlink()
    assert path.read_bytes()[80:112] == base_of(BELOW)
