"""A layer is bound to another base: the same image and keys, another header and identity."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from cisfs.errors import WrongKeyError
from cisfs.format.sealed import LayerHeader, base_of, check_base
from cisfs.format.signatures import Signature
from cisfs.keys.credentials import RawKey
from cisfs.layer import slotarea
from cisfs.layer.rebase import rebase
from cisfs.layer.rotation import rotate
from cisfs.layer.sealed_verify import verify_sealed
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
