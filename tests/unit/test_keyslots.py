"""Key slots added and removed: what opens before and after, and at every write on the way."""

from __future__ import annotations

import fcntl
import os
import shutil
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cisfs.crypto.keys import KEY_SIZE, SecretKey
from cisfs.errors import (
    BusyError,
    CisfsError,
    IntegrityError,
    NotAVaultError,
    UsageError,
    WrongKeyError,
)
from cisfs.format.config import SlotFields, b64, from_b64
from cisfs.format.slotarea import MAX_TEXT, SlotText
from cisfs.keys.credentials import Identities, Passphrase, RawKey
from cisfs.keys.slots import Slots, slot_id
from cisfs.layer import keyslots, opening, sealed, slotarea, vault_file, vault_rotation
from cisfs.layer import vault as vaults_of_cisfs
from cisfs.layer.rebase import rebase
from cisfs.layer.renaming import renameat2
from cisfs.layer.rotation import rotate
from cisfs.layer.sealed_file import stored
from cisfs.layer.sealing import StoredImage, seal_image
from tests.unit import layers, vaults
from tests.unit.vaults import KEY

pytestmark = pytest.mark.slow

OTHER = RawKey(b"o" * KEY_SIZE)
THIRD = RawKey(b"t" * KEY_SIZE)
SLOTS_END = 131072


class Friend:
    """A recipient and its identity whose wrapping is to keep the packet under a name."""

    type = "friend"

    def __init__(self, name: str) -> None:
        self.name = name

    def wrap(self, packet: bytes) -> dict[str, str | int]:
        return {"recipient": self.name, "wrapped": b64(packet)}

    def suits(self, slot: SlotFields) -> bool:
        return slot["type"] == self.type

    def unwrap(self, slot: SlotFields) -> bytes:
        if slot["recipient"] != self.name:
            raise WrongKeyError("for another")
        return from_b64(slot["wrapped"], "packet")


@pytest.fixture(params=["sealed", "vault"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A layer that KEY opens."""
    if request.param == "vault":
        place = tmp_path / "vault"
        vaults.make(place)
        return place
    place = tmp_path / "layer.cis"
    layers.seal(place, layers.image(8192))
    return place


def opens(path: Path, *offered: RawKey | Passphrase | Friend) -> bool:
    try:
        opening.open_layer(path, Identities(offered)).close()
    except WrongKeyError:
        return False
    return True


def test_what_was_added_opens_and_what_was_removed_does_not(path: Path) -> None:
    words, ann, ben = Passphrase(b"words"), Friend("ann"), Friend("ben")
    added = keyslots.add(path, KEY, [OTHER, words, ann, ben])
    everybody: list[RawKey | Passphrase | Friend] = [KEY, OTHER, words, ann, ben]
    assert keyslots.slots(path)[1:] == tuple(added)
    assert all(opens(path, each) for each in everybody)
    held = keyslots.slots(path)
    for slot, gone in zip(held[:-1], everybody, strict=False):
        assert keyslots.remove(path, Identities((ben,)), [slot_id(slot)]) == [slot]
        assert not opens(path, gone)
        assert opens(path, ben)
    assert keyslots.slots(path) == held[-1:]


def test_the_last_one_stays(path: Path) -> None:
    (one,) = keyslots.slots(path)
    keyslots.add(path, KEY, OTHER)
    both = [slot_id(slot) for slot in keyslots.slots(path)]
    with pytest.raises(UsageError, match=r"^nobody could open .* add another one first$"):
        keyslots.remove(path, KEY, both)
    keyslots.remove(path, KEY, both[:1])
    with pytest.raises(UsageError, match="nobody could open"):
        keyslots.remove(path, OTHER, both[1:])
    assert slot_id(one) == both[0]
    assert opens(path, OTHER)


@pytest.mark.parametrize(
    ("wanted", "why"),
    [
        ("abc", "give at least 4 digits of its id"),
        ("0000000000zz", "no such key slot; list them with: cisfs key list"),
    ],
)
def test_a_slot_that_is_not_named_well_is_not_removed(path: Path, wanted: str, why: str) -> None:
    keyslots.add(path, KEY, OTHER)
    with pytest.raises(UsageError, match=why):
        keyslots.remove(path, KEY, [wanted])
    assert opens(path, KEY)
    assert opens(path, OTHER)


def test_who_cannot_open_it_changes_nothing(path: Path) -> None:
    before = keyslots.slots(path)
    with pytest.raises(WrongKeyError):
        keyslots.add(path, OTHER, THIRD)
    with pytest.raises(WrongKeyError):
        keyslots.remove(path, OTHER, [slot_id(before[0])])
    assert keyslots.slots(path) == before


def test_an_opened_layer_is_no_obstacle_and_does_not_notice(path: Path) -> None:
    opened = opening.open_layer(path, KEY, read_only=False)
    try:
        keyslots.add(path, KEY, OTHER)
        keyslots.remove(path, OTHER, [slot_id(keyslots.slots(path)[0])])
    finally:
        opened.close()
    assert opens(path, OTHER)
    assert not opens(path, KEY)


def test_nothing_but_the_slots_changes(path: Path) -> None:
    before = snapshot(path)
    (slot,) = keyslots.slots(path)
    keyslots.add(path, KEY, [Friend("ann"), OTHER])
    assert snapshot(path) == before
    keyslots.remove(path, OTHER, [slot_id(each) for each in keyslots.slots(path)[:2]])
    assert snapshot(path) == before
    stored = b"".join(each.read_bytes() for each in files(path))
    assert str(slot["wrapped"]).encode() not in stored  # also not in the other copy


def files(path: Path) -> list[Path]:
    return sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]


def snapshot(path: Path) -> list[bytes]:
    """Everything but the key slots."""
    if path.is_dir():
        return [each.read_bytes() for each in files(path) if each.name != "vault.json"]
    data = path.read_bytes()
    return [data[:4096], data[65536:]]


def test_more_than_there_is_room_for(path: Path) -> None:
    few = 250 if path.is_dir() else 30
    large = Friend("n" * (10 if path.is_dir() else MAX_TEXT // 40))
    keyslots.add(path, KEY, [large] * few)
    with pytest.raises(UsageError, match=r"there is (no )?room"):
        keyslots.add(path, KEY, [large] * 20)
    assert len(keyslots.slots(path)) == few + 1


LARGE = Friend("n" * 20_000)


def test_more_than_there_is_room_for_at_once(path: Path, tmp_path: Path) -> None:
    """Neither made nor rotated for: nobody could open it."""
    many = [LARGE] * 100
    for attempt in (
        lambda: rotate(path, KEY, [KEY, *many]),
        lambda: keyslots.add(path, KEY, many),
        lambda: make(tmp_path / "new", path.is_dir(), many),
    ):
        with pytest.raises(UsageError, match=r"no room: .*; remove some or name fewer recipients"):
            attempt()
        assert opens(path, KEY)
        assert {each.name for each in tmp_path.iterdir()} <= {path.name, "new"}
    make(tmp_path / "new", path.is_dir(), [KEY])
    assert opens(tmp_path / "new", KEY)


def make(path: Path, is_vault: bool, recipients: Sequence[RawKey | Friend]) -> None:
    if is_vault:
        vaults_of_cisfs.create(path, recipients)
        return
    with layers.in_memory(bytes(8192)) as fd:
        seal_image(StoredImage(fd, 8192), path, recipients)


def test_more_than_there_is_room_for_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "layer.cis"
    layers.seal(path, layers.image(8192))
    header, text = stored(path)
    change = keyslots.adding("elsewhere", [LARGE] * 4, [])
    with pytest.raises(UsageError, match="there is no room"):
        sealed.changed_text("elsewhere", header, text, KEY, change)


def test_a_signature_that_there_is_no_room_for(tmp_path: Path) -> None:
    path = tmp_path / "layer.cis"
    large = Friend("n" * (MAX_TEXT - 400))
    with layers.in_memory(bytes(8192)) as fd:
        seal_image(StoredImage(fd, 8192), path, large)
        path.unlink()
        key = Ed25519PrivateKey.generate()
        with pytest.raises(UsageError, match="there is no room"):
            seal_image(StoredImage(fd, 8192), path, large, signing_key=key)
    assert not path.exists()


# -- who cannot open it may not add anybody ------------------------------------------------------


def test_slots_put_in_by_somebody_else_are_refused(tmp_path: Path) -> None:
    """Or a rotation would wrap the new key for a recipient that nobody with the key chose."""
    path = tmp_path / "layer.cis"
    layers.seal(path, layers.image(8192))
    forged: SlotFields = {"type": "friend", "recipient": "eve", "wrapped": ""}
    keyslots.add(path, KEY, OTHER)
    text = SlotText.parse(path.read_bytes()[4096:65536])
    for _ in range(2):
        text = SlotText.parse(path.read_bytes()[4096:65536])
        for mac in (text.mac, b"", bytes(32)):
            put(path, replace(text, slots=(*text.slots, forged), mac=mac))
            for attempt in attempts(path):
                with pytest.raises(IntegrityError, match="key slots were altered by someone"):
                    attempt()
        put(path, text)
        keyslots.add(path, KEY, Friend("ann"))
    text = SlotText.parse(path.read_bytes()[4096:65536])
    put(path, replace(text, mac=b""))
    with pytest.raises(IntegrityError):
        keyslots.add(path, KEY, OTHER)
    put(path, SlotText(text.slots[:1]))  # whoever can write can remove
    assert opens(path, KEY)


def test_slots_put_in_while_others_are_added_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "layer.cis"
    layers.seal(path, layers.image(8192))
    text = SlotText.parse(path.read_bytes()[4096:65536])
    forged = replace(text, slots=(*text.slots, {"type": "friend", "recipient": "eve"}))

    def change(_master: SecretKey, _identifier: bytes) -> Callable[[Slots], Slots]:
        put(path, forged)
        return lambda found: found

    with pytest.raises(IntegrityError, match="key slots were altered by someone"):
        sealed.change_slots(path, KEY, change)


def attempts(path: Path) -> Iterator[Callable[[], object]]:
    yield lambda: opening.open_layer(path, KEY)
    yield lambda: keyslots.add(path, KEY, OTHER)
    yield lambda: keyslots.remove(path, KEY, ["0000"])
    yield lambda: opening.master_key(path, KEY)


def put(path: Path, text: SlotText) -> None:
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(text.pack())


# -- every instant -------------------------------------------------------------------------------


def test_it_opens_after_every_write(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after a part of one, and the change can be made from there."""
    keyslots.add(path, KEY, OTHER)
    first, second = (slot_id(slot) for slot in keyslots.slots(path))

    def change(place: Path) -> None:
        keyslots.add(place, KEY, THIRD)
        keyslots.remove(place, KEY, [second])

    seen = 0
    for stop in range(100):
        place = tmp_path / f"copy{stop}"
        (shutil.copytree if path.is_dir() else shutil.copy)(path, place)
        with monkeypatch.context() as patched:
            faulty = Faulty(patched, stop)
            try:
                change(place)
                break
            except Stopped:
                seen += 1
        for torn in range(2):
            if torn:
                faulty.do_part()
            assert opens(place, KEY)
            ids = [slot_id(slot) for slot in keyslots.slots(place)]
            assert first in ids
            assert (second in ids) == opens(place, OTHER)
        if not opens(place, THIRD):
            keyslots.add(place, KEY, THIRD)
        if opens(place, OTHER):
            keyslots.remove(place, KEY, [second])
        assert not opens(place, OTHER)
        assert opens(place, THIRD)
        assert opens(place, KEY)
        with pytest.raises(UsageError):
            keyslots.remove(place, KEY, ["0000000000zz"])
        if not path.is_dir():
            assert not any(place.read_bytes()[65536:SLOTS_END])
    assert seen >= (6 if path.is_dir() else 10)


class Stopped(Exception):
    """What the process was killed with."""


class Faulty:
    """The system calls that change something, until the Nth of them, which does not happen."""

    def __init__(self, patched: pytest.MonkeyPatch, stop: int) -> None:
        self.left = stop
        self.part: Callable[[], object] = lambda: None
        self._really_pwrite = os.pwrite
        for name in ("pwrite", "rename", "unlink", "fsync", "fdatasync"):
            patched.setattr(os, name, self._counted(getattr(os, name)))
        really_open = os.open
        patched.setattr(
            os,
            "open",
            lambda *words, **more: (
                self._counted(really_open)(*words, **more)
                if words[1] & os.O_CREAT
                else really_open(*words, **more)
            ),
        )

    def _counted(self, call: Callable[..., object]) -> Callable[..., object]:
        def counted(*words: object, **more: object) -> object:
            if not self.left:
                if call is self._really_pwrite:
                    fd, data, offset = words
                    assert isinstance(fd, int)
                    assert isinstance(offset, int)
                    again = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY)
                    part = bytes(data)[:200]  # type: ignore[call-overload]  # less than a slot
                    self.part = partial(self._write_part, again, part, offset)
                raise Stopped
            self.left -= 1
            return call(*words, **more)

        return counted

    def _write_part(self, fd: int, part: bytes, offset: int) -> None:
        self._really_pwrite(fd, part, offset)
        os.close(fd)

    def do_part(self) -> None:
        """Do a part of the write that was not done."""
        self.part()


@pytest.mark.parametrize("room", range(5))
def test_a_disk_that_is_full_does_no_harm(
    room: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A layer that was copied may have holes where its key slots are going to be changed."""
    path = tmp_path / "layer.cis"
    layers.seal(path, layers.image(8192))
    writes, real = 0, os.pwrite

    def full(fd: int, data: bytes, offset: int) -> int:
        nonlocal writes
        writes += 1
        if writes > 20:
            raise AssertionError("it is tried for ever")
        return real(fd, data, offset) if writes <= room else 0

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="No space left"):
            keyslots.add(path, KEY, OTHER)
    assert opens(path, KEY)
    assert opens(path, OTHER) == (room >= 2)
    keyslots.add(path, KEY, THIRD)
    assert all(opens(path, each) for each in (KEY, THIRD))


def test_two_who_change_it_at_once_lose_nothing(path: Path) -> None:
    keys = [RawKey(bytes([number]) * KEY_SIZE) for number in range(8)]
    children = []
    for key in keys:
        pid = os.fork()
        if pid == 0:
            while True:
                try:
                    keyslots.add(path, KEY, key)
                except BusyError:
                    continue
                except CisfsError:
                    os._exit(1)
                os._exit(0)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0] * 8
    assert all(opens(path, key) for key in [KEY, *keys])


def test_a_change_is_never_lost_to_what_takes_the_place(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old one was opened, and is changed no more once another is there, as by a rotation."""

    def replacing(real: Callable[..., Any]) -> Callable[..., Any]:
        def replaced(*words: Any) -> object:
            path.rename(path.with_name("old"))
            copy(path.with_name("old"), path)
            return real(*words)

        return replaced

    copy: Callable[..., object] = shutil.copytree if path.is_dir() else shutil.copy
    module: Any = vault_file if path.is_dir() else slotarea
    name = "changing" if path.is_dir() else "update"
    before = keyslots.slots(path)
    with monkeypatch.context() as patch:
        patch.setattr(module, name, replacing(getattr(module, name)))
        with pytest.raises(BusyError, match=f"^{path} was replaced by another .* just now; try"):
            keyslots.add(path, KEY, OTHER)
    assert keyslots.slots(path) == keyslots.slots(path.with_name("old")) == before
    keyslots.add(path, KEY, OTHER)


def test_a_change_of_what_is_removed_meanwhile(path: Path) -> None:
    def change(_master: SecretKey, _identifier: bytes) -> Callable[[Slots], Slots]:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
        return lambda found: found

    module = vaults_of_cisfs if path.is_dir() else sealed
    with pytest.raises((BusyError, NotAVaultError), match=f"{path} "):
        module.change_slots(path, KEY, change)


def test_nobody_changes_slots_while_another_takes_the_place(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[bool] = []

    def refused(real: Callable[..., Any]) -> Callable[..., Any]:
        def tries(*words: Any, **named: Any) -> object:
            if os.fsencode(path.name) in words:
                assert not may_change(path)
                tried.append(True)
            return real(*words, **named)

        return tries

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", refused(os.rename))
        patch.setattr(vault_rotation, "renameat2", refused(renameat2))
        rotate(path, KEY, KEY)
        assert tried == [True]
        if not path.is_dir():
            rebase(path, KEY, [])
            assert tried == [True] * 2
    assert may_change(path)


def may_change(path: Path) -> bool:
    """Tell whether the lock that a change takes is free."""
    fd = os.open(path / "vault.json" if path.is_dir() else path, os.O_RDWR)
    try:
        if path.is_dir():
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        else:
            lock = struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 4096, SLOTS_END - 4096, 0)
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, lock)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True


def test_a_vault_of_a_command_that_was_killed_verifies(tmp_path: Path) -> None:
    path = tmp_path / "vault"
    vaults.make(path)
    (path / "vault.json.new").write_bytes(b"half of i")
    keyslots.add(path, KEY, OTHER)
    assert not (path / "vault.json.new").exists()
