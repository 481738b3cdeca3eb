"""Rotating a sealed layer: the same image under new keys, whatever happens on the way."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from cisfs.crypto.keys import SecretKey
from cisfs.errors import (
    BusyError,
    CisfsError,
    IntegrityError,
    NotAVaultError,
    UsageError,
    WrongKeyError,
)
from cisfs.format.config import SlotFields
from cisfs.format.rotation import LayerRecord
from cisfs.format.slotarea import SlotText
from cisfs.keys.credentials import Identities, MasterKey, Passphrase, RawKey, Recipients
from cisfs.keys.slots import slot_id
from cisfs.layer import keyslots, partial, sealed, sealed_rotation, slotarea
from cisfs.layer.opening import is_sealed
from cisfs.layer.partial import claimed_file, partial_file
from cisfs.layer.rotation import rotate
from cisfs.layer.rotation_request import Request, Rotated
from cisfs.layer.sealed_rotation import _Making
from tests.unit import layers
from tests.unit.test_forked import no_child_is_left
from tests.unit.vaults import KEY, flip, same

pytestmark = pytest.mark.slow

MIB = 1 << 20
SIZE = 5 * MIB + 20480
IMAGE = layers.image(SIZE)
OTHER = RawKey(b"another key file of 32 bytes ..!")


@pytest.fixture(autouse=True)
def nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(sealed_rotation, "CHECKPOINT", MIB)
    before = os.listdir("/proc/self/fd")
    yield
    assert no_child_is_left()
    assert os.listdir("/proc/self/fd") == before


@pytest.fixture
def path(memory_path: Path) -> Path:
    layers.seal(memory_path / "layer.cis", IMAGE)
    return memory_path / "layer.cis"


def image_of(path: Path, key: RawKey = KEY) -> bytes:
    with layers.opened(path, key) as layer:
        return bytes(layer.reader().read(0, layer.image_size))


class Stop(BaseException):
    """Ends a rotation as ^C does."""


def interrupted(path: Path, at: int, recipients: Recipients = KEY) -> None:
    """Rotate with one worker, and stop when `at` bytes are done."""

    def stop(done: int, _total: int) -> None:
        if done >= at:
            raise Stop

    with pytest.raises(Stop):
        rotate(path, KEY, recipients, workers=1, progress=stop)


def is_rotated(path: Path, before: bytes, done: Rotated, key: RawKey = KEY) -> None:
    """It has the same image under other keys, and nothing lies beside it."""
    assert same(image_of(path, key), IMAGE)
    stored = path.read_bytes()
    assert len(stored) == len(before)
    assert stored[16:32].hex() == done.key_id != before[16:32].hex()
    assert sealed.describe(path)["identity"] == done.identity
    places = range(131072, 131072 + SIZE, 4096)  # a block of each unit
    assert not {stored[at : at + 16] for at in places} & {before[at : at + 16] for at in places}
    assert [each.name for each in path.parent.iterdir()] == [path.name]


# -- what comes out ------------------------------------------------------------------------


@pytest.mark.parametrize("unit_size", [4096, 65536, MIB])
@pytest.mark.parametrize("size", [4096, MIB, MIB + 4096, SIZE])
def test_the_image_is_the_same(memory_path: Path, unit_size: int, size: int) -> None:
    path = memory_path / "layer.cis"
    before = layers.seal(path, IMAGE[:size], unit_size=unit_size)
    said: list[tuple[int, int]] = []
    done = rotate(path, KEY, KEY, progress=lambda *each: said.append(each))
    assert not done.continued
    assert done.identity != before
    assert same(image_of(path), IMAGE[:size])
    assert sealed.describe(path)["unit_size"] == unit_size
    assert said[-1] == (size, size)


def test_only_the_new_recipients_open_it(path: Path) -> None:
    before = path.read_bytes()
    old = sealed.master_key(path, KEY)
    done = rotate(path, KEY, OTHER)
    is_rotated(path, before, done, OTHER)
    with pytest.raises(WrongKeyError, match="wrong key file"):
        image_of(path)
    with pytest.raises(WrongKeyError, match="stale"):
        sealed.SealedLayer.open(path, MasterKey(old))


def test_the_recipients_may_depend_on_the_old_slots(path: Path) -> None:
    def chosen(slots: Sequence[SlotFields]) -> Recipients:
        assert [slot["type"] for slot in slots] == ["key-file"]
        return [OTHER, KEY]

    rotate(path, KEY, chosen)
    assert same(image_of(path), IMAGE)
    assert same(image_of(path, OTHER), IMAGE)


def test_an_unlocked_key_will_do(path: Path) -> None:
    rotate(path, MasterKey(sealed.master_key(path, KEY)), KEY)
    assert same(image_of(path), IMAGE)


def test_mode_and_owner_are_kept(path: Path) -> None:
    path.chmod(0o640)
    if os.geteuid() == 0:
        os.chown(path, 12345, 54321)
    before = path.stat()
    rotate(path, KEY, KEY)
    after = path.stat()
    assert after.st_ino != before.st_ino
    assert (after.st_mode, after.st_uid, after.st_gid) == (
        before.st_mode,
        before.st_uid,
        before.st_gid,
    )


def test_a_layer_that_is_open_stays_readable(path: Path) -> None:
    with layers.opened(path) as layer:
        rotate(path, KEY, KEY)
        assert same(layer.reader().read(0, SIZE), IMAGE)


def test_a_symlink_stays_one(path: Path) -> None:
    link = path.parent / "link"
    link.symlink_to(path.name)
    before = path.read_bytes()
    rotate(link, KEY, KEY)
    assert link.is_symlink()
    assert path.read_bytes() != before
    assert same(image_of(link), IMAGE)


def test_a_name_of_any_length_will_do(memory_path: Path) -> None:
    for name in ("n" * 255, "n" * 254, "\N{SNOWMAN}" * 85):
        layers.seal(memory_path / name, IMAGE[:4096])
        rotate(memory_path / name, KEY, KEY)
    assert len(list(memory_path.iterdir())) == 3
    assert partial_file(memory_path / ("n" * 255)) != partial_file(memory_path / ("n" * 254))


def test_scratch_keys_are_told_before_anything_changes(path: Path) -> None:
    with layers.opened(path) as layer:
        old = layer.scratch_key()
    told: list[tuple[SecretKey, SecretKey]] = []

    def refuse(*keys: SecretKey) -> None:
        told.append((keys[0], keys[1]))
        assert same(image_of(path), IMAGE)
        raise CisfsError("not now")

    before = path.read_bytes()
    with pytest.raises(CisfsError, match="not now"):
        rotate(path, KEY, KEY, switching=refuse)
    assert path.read_bytes() == before
    after: list[bytes] = []

    def switched(*keys: SecretKey) -> None:
        assert told[-1] == keys
        after.append(sealed.identifier(path))

    done = rotate(
        path,
        KEY,
        KEY,
        switching=lambda *keys: told.append((keys[0], keys[1])),
        switched=switched,
    )
    assert done.continued
    with layers.opened(path) as layer:
        assert told == [(old, layer.scratch_key())] * 2
        assert after == [layer.header.layer_id]


# -- interrupted ---------------------------------------------------------------------------


def test_an_unfinished_one_is_no_layer(path: Path) -> None:
    before = path.read_bytes()
    interrupted(path, 2 * MIB)
    begun = partial_file(path)
    assert begun.name == ".layer.cis.rotating"
    assert stat.S_IMODE(begun.stat().st_mode) == 0o600
    assert not is_sealed(begun)
    with pytest.raises(NotAVaultError):
        sealed.SealedLayer.open(begun, KEY)
    assert path.read_bytes() == before


@pytest.mark.parametrize("at", [1, 2, 3, 4, 5, 6])
def test_it_goes_on_where_it_was_interrupted(path: Path, at: int) -> None:
    before = path.read_bytes()
    interrupted(path, min(at * MIB, SIZE))
    begun = partial_file(path).read_bytes()
    said: list[int] = []
    done = rotate(path, KEY, KEY, progress=lambda done, _: said.append(done), workers=1)
    assert done.continued
    is_rotated(path, before, done)
    stored = path.read_bytes()
    assert stored[4096:131072] == begun[4096:131072]  # the slots
    length = min(at * MIB, SIZE)
    assert same(stored[131072 : 131072 + length], begun[131072 : 131072 + length])


def test_what_is_done_is_not_read_from_the_old_one_again(path: Path) -> None:
    interrupted(path, 3 * MIB)
    flip(path, 131072 + 100)
    assert rotate(path, KEY, KEY).continued
    assert same(image_of(path), IMAGE)


def test_it_is_interrupted_again_and_again(path: Path) -> None:
    before = path.read_bytes()
    for at in range(1, 6):
        interrupted(path, at * MIB)
    done = rotate(path, KEY, KEY)
    assert done.continued
    is_rotated(path, before, done)


def killed(path: Path, at: int) -> None:
    """Rotate in a child, which kills itself when it has been told for the `at`th time."""
    child = os.fork()
    if child == 0:
        count = 0

        def die(*_: object) -> None:
            nonlocal count
            count += 1
            if count == at:
                os.kill(os.getpid(), signal.SIGKILL)

        try:
            rotate(path, KEY, KEY, workers=1, progress=die, switching=die)
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)


@pytest.mark.parametrize("at", range(1, 8))
def test_it_goes_on_after_a_kill(path: Path, at: int) -> None:
    before = path.read_bytes()
    killed(path, at)
    assert path.read_bytes() == before
    done = rotate(path, KEY, KEY)
    assert done.continued  # a record is written before it is said
    is_rotated(path, before, done)


def test_who_opens_only_the_new_one_by_a_secret_may_go_on(path: Path) -> None:
    interrupted(path, 3 * MIB, OTHER)
    assert rotate(path, KEY, OTHER).continued
    assert same(image_of(path, OTHER), IMAGE)


def test_a_passphrase_is_asked_for_once(memory_path: Path) -> None:
    path, words = memory_path / "layer.cis", Passphrase(b"correct horse")
    layers.seal(path, IMAGE, key=words)
    asked: list[bool] = []

    def ask() -> Passphrase:
        asked.append(True)
        return words

    with pytest.raises(Stop):
        rotate(path, Identities((), ask), KEY, progress=_stop)
    assert rotate(path, Identities((), ask), KEY).continued
    assert len(asked) == 2
    assert same(image_of(path), IMAGE)


def _stop(done: int, _total: int) -> None:
    if done >= 2 * MIB:
        raise Stop


# -- what is not gone on with --------------------------------------------------------------


def test_other_recipients_get_a_new_key(path: Path) -> None:
    before = path.read_bytes()
    interrupted(path, 3 * MIB, [KEY, OTHER])
    done = rotate(path, KEY, KEY)
    assert not done.continued
    is_rotated(path, before, done)
    with pytest.raises(WrongKeyError):
        image_of(path, OTHER)


def test_who_was_dropped_cannot_hide_that_they_had_a_slot(path: Path) -> None:
    interrupted(path, 3 * MIB, [KEY, OTHER])
    with partial_file(path).open("r+b") as file:
        slots = slotarea.read(file.fileno()).text.slots
        file.seek(4096)
        file.write(SlotText(slots[:1]).pack())
    assert not rotate(path, KEY, KEY).continued
    assert same(image_of(path), IMAGE)


def test_one_more_recipient_gets_a_slot(path: Path) -> None:
    interrupted(path, 3 * MIB)
    assert not rotate(path, KEY, [KEY, OTHER]).continued
    assert same(image_of(path, OTHER), IMAGE)


def test_one_of_another_layer_of_that_name_is_begun_anew(path: Path) -> None:
    interrupted(path, 3 * MIB)
    layers.seal(path, IMAGE[16:] + bytes(16), force=True)
    assert not rotate(path, KEY, KEY).continued
    assert same(image_of(path), IMAGE[16:] + bytes(16))


def test_one_that_was_made_without_the_old_key_is_begun_anew(path: Path) -> None:
    """Whoever knows a recipient's public key can make slots that it opens, of a key of theirs."""
    with layers.opened(path) as layer, claimed_file(path) as claim:
        forged = _Making(layer, SecretKey(b"f" * 32), claim)
        forged.begin(KEY)
        with pytest.raises(Stop):
            forged.run(_request(_stop))
        key_id = forged.layer_id.hex()
    done = rotate(path, KEY, KEY)
    assert not done.continued
    assert done.key_id != key_id
    assert same(image_of(path), IMAGE)


def _request(progress: Callable[[int, int], None]) -> Request:
    return Request(KEY, KEY, 1, progress, lambda *_: None, lambda *_: None)


TREE = 131072 + SIZE
ALTERED = {
    "version": 8,
    "layer id": 16,
    "source": 32,
    "slots' hash": 64,
    "bytes done": 98,
    "reserved": 2000,
    "code": 4070,
    "slots": 5000,
    "after the slots": 100_000,
    "a unit": 131072 + 40_000,
    "the last unit done": 131072 + 3 * MIB - 1,
    "a hash": TREE + 33,
    "the last hash": TREE + 32 * 3 * 256 - 1,
}


@pytest.mark.parametrize(
    ("what", "both"),
    [(what, both) for what, at in ALTERED.items() for both in [False, True][: 1 + (at < 4096)]],
)
def test_what_was_altered_does_not_get_into_the_result(path: Path, what: str, both: bool) -> None:
    before = path.read_bytes()
    interrupted(path, 3 * MIB)
    at, records = ALTERED[what], [0, len(before)] if both else [latest(path)]
    for record in records if at < 4096 else [0]:
        flip(partial_file(path), record + at)
    done = rotate(path, KEY, KEY)
    from_the_one_before = (at < 4096 and not both) or what.startswith("the last")
    assert done.continued == from_the_one_before
    is_rotated(path, before, done)


def test_a_torn_record_costs_no_more_than_one_step(path: Path) -> None:
    """A record that was half written is not believed; the one before it is."""
    interrupted(path, 3 * MIB)
    with partial_file(path).open("r+b") as file:
        file.seek(latest(path) + 512)
        file.write(b"\1" * 512)
    flip(path, 131072 + 2 * MIB - 1)  # what is not read again
    assert rotate(path, KEY, KEY).continued
    assert same(image_of(path), IMAGE)


def latest(path: Path) -> int:
    """Where the record lies that was written last."""
    stored = partial_file(path).read_bytes()
    return max(
        (0, len(stored) - 4096),
        key=lambda at: LayerRecord.parse(stored[at : at + 4096]).done,
    )


def test_an_older_state_is_gone_on_with(path: Path) -> None:
    """It is authentic: putting it back costs time, and nothing else."""
    before = path.read_bytes()
    interrupted(path, 2 * MIB)
    shutil.copyfile(partial_file(path), path.parent / "copy")
    interrupted(path, 4 * MIB)
    with partial_file(path).open("r+b") as file:
        file.write((path.parent / "copy").read_bytes())
    (path.parent / "copy").unlink()
    done = rotate(path, KEY, KEY)
    assert done.continued
    is_rotated(path, before, done)


# -- what goes wrong -----------------------------------------------------------------------


def test_damage_in_the_old_one_ends_it(path: Path) -> None:
    flip(path, 131072 + 4 * MIB + 5)
    before = path.read_bytes()
    for _ in range(2):
        with pytest.raises(IntegrityError, match=r"layer.cis: unit 1024 was altered"):
            rotate(path, KEY, KEY, workers=2)
        assert path.read_bytes() == before


def test_two_do_not_work_on_one_layer(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partial, "PATIENCE", 0.1)
    refused: list[str] = []

    def once_more(*_: object) -> None:
        with pytest.raises(BusyError) as caught:
            rotate(path, KEY, KEY)
        refused.append(str(caught.value))

    before = path.read_bytes()
    done = rotate(path, KEY, KEY, progress=once_more, switching=once_more)
    is_rotated(path, before, done)
    assert set(refused) == {f"{path} is being rotated by another cisfs command"}


def test_a_layer_that_is_replaced_meanwhile_is_left_alone(path: Path) -> None:
    def replace(*_: object) -> None:
        layers.seal(path, IMAGE[:4096], force=True)

    with pytest.raises(CisfsError, match=r"layer.cis was changed while it was rotated"):
        rotate(path, KEY, KEY, switching=replace)
    assert same(image_of(path), IMAGE[:4096])


def test_keys_that_are_changed_meanwhile_are_not_lost(path: Path) -> None:
    def add(*_: object) -> None:
        keyslots.add(path, KEY, OTHER)

    with pytest.raises(CisfsError, match="was changed while it was rotated"):
        rotate(path, KEY, KEY, switching=add)
    assert same(image_of(path, OTHER), IMAGE)
    rotate(path, OTHER, [KEY, OTHER])
    assert same(image_of(path, OTHER), IMAGE)


def test_what_is_done_is_kept_when_it_cannot_take_the_place(path: Path) -> None:
    added: list[SlotFields] = []

    def add(*_: object) -> None:
        added[:] = keyslots.add(path, KEY, OTHER)

    with pytest.raises(CisfsError, match="was changed while it was rotated"):
        rotate(path, KEY, KEY, switching=add)
    keyslots.remove(path, KEY, [slot_id(added[0])])
    before = path.read_bytes()
    with path.open("r+b") as file:  # so that reading the image again would fail
        file.seek(131072)
        file.write(bytes(MIB))
    done = rotate(path, KEY, KEY)
    assert done.continued
    is_rotated(path, before, done)


@pytest.mark.parametrize("what", ["directory", "symlink", "fifo", "hard link"])
def test_what_is_in_the_way_is_left_alone(path: Path, what: str) -> None:
    there, precious = partial_file(path), path.parent / "precious"
    precious.write_text("precious")
    match what:
        case "directory":
            there.mkdir()
        case "symlink":
            there.symlink_to(precious)
        case "fifo":
            os.mkfifo(there)
        case _:
            there.hardlink_to(precious)
    with pytest.raises(UsageError, match=f"^{there} is in the way"):
        rotate(path, KEY, KEY)
    assert precious.read_text() == "precious"
    assert there.exists()


def test_a_full_disk_is_said_in_one_line(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel's own calls fail here, as they do on a full disk."""
    before, real = path.read_bytes(), os.pwrite

    def full(fd: int, data: bytes, offset: int) -> int:
        if offset >= 131072 + 2 * MIB and offset < 131072 + SIZE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(CisfsError, match=r"^no space left to rotate .* and remove ") as caught:
            rotate(path, KEY, KEY, workers=1)
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before
    done = rotate(path, KEY, KEY)
    assert done.continued
    is_rotated(path, before, done)


def test_a_disk_that_is_full_at_once_keeps_nothing(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(
            CisfsError, match=r"^no space left to rotate [^;]*; make room and rotate it again$"
        ):
            rotate(path, KEY, KEY)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_a_wrong_key_makes_nothing(path: Path) -> None:
    with pytest.raises(WrongKeyError):
        rotate(path, OTHER, KEY)
    with pytest.raises(ValueError, match="no recipient"):
        rotate(path, KEY, [])
    assert list(path.parent.iterdir()) == [path]
