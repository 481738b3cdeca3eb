"""The scratch that stays: an ordinary vault with one file, locked, that outlives its process."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path
from typing import cast

import pytest

from cisfs.crypto.keys import SecretKey
from cisfs.errors import (
    BusyError,
    FormatError,
    IntegrityError,
    NotAVaultError,
    UsageError,
    WrongKeyError,
)
from cisfs.format.scratch_geometry import MAX_UNIT_SIZE
from cisfs.keys.credentials import RawKey
from cisfs.layer import keyslots
from cisfs.layer.file import EncryptedFile
from cisfs.layer.opening import Layer
from cisfs.layer.scratch_persistent import NAME, UNIT_SIZE, PersistentImage
from cisfs.layer.vault import Vault
from cisfs.runtime.scratch import Kind, Scratch
from cisfs.runtime.store import close_scratches, hand_over_scratches, scratch_image
from tests.unit import vaults
from tests.unit.vaults import KEY, flip

SIZE, SMALL = 4 << 20, 1 << 20
Bytes = bytes | bytearray


def made(path: Path) -> PersistentImage:
    return PersistentImage.create(path / "scratch", KEY, SIZE)


def again(path: Path) -> PersistentImage:
    return PersistentImage.open(path / "scratch", KEY)


def put(image: PersistentImage, offset: int, data: Bytes) -> None:
    image.write(offset, memoryview(data))


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def abandoned(image: PersistentImage) -> None:
    """Leave an image as a killed process does."""
    image.abandon()


def stored(path: Path) -> Path:
    return vaults.only(path / "scratch")


def test_it_is_there_when_it_is_opened_again(tmp_path: Path) -> None:
    image = made(tmp_path)
    assert image.durable
    assert image.size == SIZE
    assert not any(image.read(0, SIZE))
    model = bytearray(SIZE)
    for seed, (at, size) in enumerate([(0, 1000), (70_000, 300_000), (UNIT_SIZE - 1, 2)]):
        put(image, at, noise(size, seed))
        model[at : at + size] = noise(size, seed)
    image.close()
    image = again(tmp_path)
    assert image.size == SIZE
    assert vaults.same(image.read(0, SIZE), model)
    image.close()


def test_it_is_a_vault_with_one_file(tmp_path: Path) -> None:
    image = made(tmp_path)
    put(image, 5, b"hello")
    image.close()
    with vaults.mounted(tmp_path / "scratch", read_only=True) as tree:
        assert vaults.listing(tree) == [NAME]
        assert vaults.fetch(tree, NAME) == (b"\0" * 5 + b"hello").ljust(SIZE, b"\0")
    assert vaults.findings(tmp_path / "scratch") == []


def test_the_size_is_whole_units(tmp_path: Path) -> None:
    image = PersistentImage.create(tmp_path / "scratch", KEY, SIZE + 1)
    assert image.size == SIZE + MAX_UNIT_SIZE
    image.close()


def test_a_process_that_is_killed_loses_nothing(tmp_path: Path) -> None:
    image = made(tmp_path)
    put(image, 0, noise(100_000))
    abandoned(image)
    image = again(tmp_path)
    assert image.read(0, 100_000) == noise(100_000)
    image.close()


def test_two_cannot_have_it(tmp_path: Path) -> None:
    image = made(tmp_path)
    with pytest.raises(BusyError):
        again(tmp_path)
    image.close()
    again(tmp_path).close()


def test_what_is_there_already_is_left_alone(tmp_path: Path) -> None:
    made(tmp_path).close()
    with pytest.raises(UsageError, match="not empty"):
        made(tmp_path)


def test_a_vault_without_a_scratch_is_refused(tmp_path: Path) -> None:
    vaults.make(tmp_path / "scratch")
    with pytest.raises(FormatError, match="there is no scratch in it"):
        again(tmp_path)
    with vaults.opened(tmp_path / "scratch"):
        pass  # and its lock was let go of
    with pytest.raises(NotAVaultError):
        PersistentImage.open(tmp_path / "nowhere", RawKey(bytes(32)))


def test_discarded_units_take_no_space(tmp_path: Path) -> None:
    image = made(tmp_path)
    put(image, 0, noise(1 << 20))
    image.sync()
    before = stored(tmp_path).stat().st_blocks * 512
    image.discard(10_000, 900_000)
    model = bytearray(noise(1 << 20))
    model[10_000:910_000] = bytes(900_000)
    image.sync()
    assert image.read(0, 1 << 20) == model
    assert stored(tmp_path).stat().st_blocks * 512 <= before - 750_000
    put(image, 500_000, b"again")
    model[500_000:500_005] = b"again"
    image.close()
    image = again(tmp_path)
    assert image.read(0, 1 << 20) == model
    image.close()
    assert vaults.findings(tmp_path / "scratch") == []


def test_an_altered_unit_is_an_error(tmp_path: Path) -> None:
    image = made(tmp_path)
    put(image, 0, noise(3 * UNIT_SIZE))
    image.close()
    flip(stored(tmp_path), 32 + UNIT_SIZE + 16 + 100)
    image = again(tmp_path)
    with pytest.raises(IntegrityError, match="/scratch: unit 1 "):
        image.read(UNIT_SIZE, 1)
    assert image.read(0, UNIT_SIZE) == noise(3 * UNIT_SIZE)[:UNIT_SIZE]
    image.close()


def test_a_destroyed_one_stays_on_the_disk(tmp_path: Path) -> None:
    image = made(tmp_path)
    put(image, 0, b"kept")
    image.destroy()
    with pytest.raises(OSError, match="destroyed") as caught:
        image.read(0, 4)
    assert caught.value.errno == errno.ESHUTDOWN
    put(image, 0, b"lost")
    image.discard(0, SIZE)
    image.sync()
    image.close()
    image = again(tmp_path)
    assert bytes(image.read(0, 4)) == b"kept"
    image.close()


def test_a_failure_to_open_lets_go_of_the_vault(tmp_path: Path) -> None:
    made(tmp_path).close()
    with stored(tmp_path).open("r+b") as file:
        file.truncate(100)
    with pytest.raises(IntegrityError, match="scratch: the end of the file"):
        again(tmp_path)
    Vault.open(tmp_path / "scratch", KEY).close()
    assert not any(
        str(tmp_path) in os.readlink(link)
        for link in Path("/proc/self/fd").iterdir()
        if link.is_symlink()
    )


OLD, NEW, THEIRS = (SecretKey(bytes([number]) * 32) for number in range(3))


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """One with a scratch of the layer that is rotated, one of another's, and what is none."""
    (tmp_path / "scratch").mkdir(0o700)
    for name, key in (("mine", OLD), ("theirs", THEIRS)):
        PersistentImage.create(tmp_path / "scratch" / name, RawKey(key.reveal()), SMALL).close()
    (tmp_path / "scratch/stray").touch()
    return tmp_path


def opens(path: Path, key: SecretKey) -> bool:
    try:
        PersistentImage.open(path, RawKey(key.reveal())).close()
    except WrongKeyError:
        return False
    return True


def test_scratches_follow_a_layer_that_is_rotated(store: Path) -> None:
    """But not those of other layers; and not twice, when a rotation is done in two goes."""
    mine, theirs = (store / "scratch" / name for name in ("mine", "theirs"))
    for _ in range(2):
        hand_over_scratches(store, OLD, NEW)
    assert opens(mine, OLD)  # what is rotated has not changed yet
    assert opens(mine, NEW)
    assert len(keyslots.slots(mine)) == 2
    for _ in range(2):
        close_scratches(store, OLD, NEW)
    assert not opens(mine, OLD)
    assert opens(mine, NEW)
    assert opens(theirs, THEIRS)
    assert not opens(theirs, NEW)
    for function in (hand_over_scratches, close_scratches):
        function(store / "nothing", OLD, NEW)


def test_whoever_else_opens_a_scratch_still_does(store: Path) -> None:
    mine = store / "scratch/mine"
    keyslots.add(mine, RawKey(OLD.reveal()), KEY)
    hand_over_scratches(store, OLD, NEW)
    close_scratches(store, OLD, NEW)
    PersistentImage.open(mine, KEY).close()
    assert len(keyslots.slots(mine)) == 2


def test_a_scratch_that_was_made_meanwhile_follows_too(store: Path) -> None:
    close_scratches(store, OLD, NEW)
    assert opens(store / "scratch/mine", NEW)
    assert not opens(store / "scratch/mine", OLD)


def test_a_damaged_scratch_is_in_nobodys_way(store: Path, caplog: pytest.LogCaptureFixture) -> None:
    broken = store / "scratch/broken"
    vaults.make(broken)
    flip(broken / "vault.json", 100)
    hand_over_scratches(store, OLD, NEW)
    assert opens(store / "scratch/mine", NEW)
    (said,) = caplog.messages
    assert said.startswith(f"scratch {broken} does not follow: {broken}/vault.json is damaged")
    close_scratches(store, OLD, NEW)
    assert not opens(store / "scratch/mine", OLD)
    assert caplog.messages == [said]


@pytest.mark.parametrize("error", [BusyError("busy"), OSError(errno.ENOSPC, "full")])
def test_a_slot_that_cannot_be_removed_now_is_named(
    store: Path,
    error: Exception,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is too late to fail then: the new layer is in its place."""

    def fail(*_: object) -> None:
        raise error

    hand_over_scratches(store, OLD, NEW)
    monkeypatch.setattr(keyslots, "remove", fail)
    close_scratches(store, OLD, NEW)
    (said,) = caplog.messages
    assert said.startswith(f"scratch {store}/scratch/mine may still be opened with the old key")


def test_an_image_that_does_not_fit_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as full:
        full.setattr(EncryptedFile, "truncate", fail)
        with pytest.raises(OSError, match="No space left"):
            made(tmp_path)
    assert not any(tmp_path.iterdir())
    made(tmp_path).close()


class Above:
    """A layer, as far as a scratch is concerned."""

    def scratch_key(self) -> SecretKey:
        return OLD


def test_a_scratch_keeps_its_size(store: Path) -> None:
    def found(size: int | None) -> int:
        layers = cast("list[Layer]", [Above()])
        image = scratch_image(Scratch(Kind.PERSISTENT, "mine", size), store, layers)
        image.close()
        return image.size

    assert found(None) == found(SMALL) == SMALL
    for other in (SMALL // 2, SMALL * 2):
        with pytest.raises(UsageError, match=f"scratch mine has a size already, {SMALL} bytes"):
            found(other)
    assert found(None) == SMALL  # it was closed
    holder = PersistentImage.open(store / "scratch/mine", RawKey(OLD.reveal()))
    with pytest.raises(BusyError, match="scratch/mine is in use, by another container"):
        found(None)
    holder.close()


def test_scratches_where_one_may_not_look_are_left_alone(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As those of root are for everybody else, who has layers of their own."""

    def refuse(_path: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "iterdir", refuse)
    for function in (hand_over_scratches, close_scratches):
        function(store, OLD, NEW)
