"""Opening, reading and describing sealed layers; the lock; each way in which it can go wrong."""

from __future__ import annotations

import fcntl
import json
import os
import random
import resource
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from cisfs.crypto.units import XtsCipher
from cisfs.errors import (
    BusyError,
    CisfsError,
    FormatError,
    IntegrityError,
    NotAVaultError,
    UnsupportedVersionError,
    WrongKeyError,
)
from cisfs.format.slotarea import SlotText
from cisfs.keys.credentials import Passphrase, RawKey
from cisfs.keys.slots import slot_id
from cisfs.layer import opening
from cisfs.layer.hashtree import HashTree
from cisfs.layer.sealed import SealedLayer, describe
from cisfs.layer.vault import Vault
from tests.unit import layers, sealed_terabyte, vaults
from tests.unit.layers import UNIT
from tests.unit.vaults import KEY, flip, same

UNITS = 300  # two levels of tree
IMAGE = layers.image(UNITS * UNIT)


@pytest.fixture
def path(memory_path: Path) -> Path:
    layers.seal(memory_path / "layer.cis", IMAGE)
    return memory_path / "layer.cis"


def put(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b", buffering=0) as file:
        file.seek(offset)
        file.write(data)


# -- reading -------------------------------------------------------------------------------


@pytest.mark.parametrize("unit_size", [4096, 16384, 65536, 1 << 20])
@pytest.mark.parametrize("kept", [0, 1, 32])
def test_any_range_reads_as_the_image(memory_path: Path, unit_size: int, kept: int) -> None:
    layers.seal(memory_path / "layer", IMAGE, unit_size=unit_size)
    numbers = random.Random(unit_size)
    edges = [0, 1, 4095, 4096, unit_size - 1, unit_size, unit_size + 1, len(IMAGE) - 1, len(IMAGE)]
    with layers.opened(memory_path / "layer") as layer:
        reader = layer.reader(kept_units=kept)
        for offset in [*edges, *(numbers.randrange(len(IMAGE)) for _ in range(20))]:
            for size in (0, 1, 4096, 5000, unit_size, 3 * unit_size + 7, 2 * len(IMAGE)):
                assert same(reader.read(offset, size), IMAGE[offset : offset + size])
        assert len(reader.read(len(IMAGE) + 1, 1)) == 0
        assert layer.image_size == len(IMAGE)
        with pytest.raises(ValueError, match="image offset -1"):
            reader.read(-1, 2)


def test_a_small_read_decrypts_its_unit_once(
    memory_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layers.seal(memory_path / "large", IMAGE, unit_size=65536)
    decrypted: list[int] = []
    real = XtsCipher.decrypt_into

    def counted(self: XtsCipher, unit: int, cipher: memoryview, out: memoryview) -> None:
        decrypted.append(unit)
        real(self, unit, cipher, out)

    monkeypatch.setattr(XtsCipher, "decrypt_into", counted)
    with layers.opened(memory_path / "large") as layer:
        reader = layer.reader(kept_units=2)
        for offset in (*range(0, 65536, 4096), 4096, 100):
            reader.read(offset, 4096)
        assert decrypted == [0]
        reader.read(8192 + 65536, 1 << 20)  # 1 MiB, not aligned
        assert decrypted == list(range(18))
        reader.read(8192 + 65536 + (1 << 20), 4096)  # goes on where it ended
        assert decrypted == list(range(18))
        reader.read(0, 1)  # the two kept ones are those at the ends of the large read
        assert decrypted == [*range(18), 0]
        reader.read(8192 + 65536 + (1 << 20), 65536)
        assert decrypted == [*range(18), 0, 18]


def test_a_large_read_does_not_push_the_kept_units_out(memory_path: Path) -> None:
    layers.seal(memory_path / "large", IMAGE, unit_size=65536)
    with layers.opened(memory_path / "large") as layer:
        reader = layer.reader(kept_units=1)
        reader.read(5, 5)
        reader.read(65536, 1 << 20)
        os.close(layer.fd)  # nothing is read from here on
        assert reader.read(1, 65535) == IMAGE[1:65536]
        layer.fd = os.dup(0)


def test_readers_of_forked_processes_are_independent(path: Path) -> None:
    with layers.opened(path) as layer:
        children = []
        for each in range(3):
            child = os.fork()
            if child == 0:
                try:
                    reader = layer.reader()
                    for unit in random.Random(each).sample(range(UNITS), 100):
                        at = unit * UNIT + each
                        assert same(reader.read(at, UNIT), IMAGE[at : at + UNIT])
                    os._exit(0)
                finally:
                    os._exit(1)
            children.append(child)
        assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]


def test_a_view_is_of_what_was_asked_for_and_no_more(path: Path) -> None:
    with layers.opened(path) as layer:
        assert layer.reader().read(10, 20).nbytes == 20
        assert layer.reader().read(len(IMAGE) - 7, 20).nbytes == 7


def test_a_layer_of_a_tebibyte_takes_no_more_memory_than_a_small_one(tmp_path: Path) -> None:
    content = layers.image(3 * sealed_terabyte.UNIT)
    geometry = sealed_terabyte.build(tmp_path / "huge.cis", KEY, content=content)
    last = geometry.unit_start(geometry.unit_count - 1)
    noise = sealed_terabyte.noise(geometry, geometry.unit_count - 1)
    before = resident()
    with layers.opened(tmp_path / "huge.cis") as layer:
        reader = layer.reader()
        assert same(reader.read(0, len(content)), content)
        assert same(reader.read(last, 1 << 20), noise)
        for unit in random.Random(0).sample(range(3, geometry.unit_count), 1500):
            reader.read(geometry.unit_start(unit), 1)
        assert resident() - before < 100 * 1000 * 1000
    for level in range(4):
        offset = geometry.block_offset(sum(geometry.level_blocks[:level]))
        flip(tmp_path / "huge.cis", offset + 5)
        with layers.opened(tmp_path / "huge.cis") as layer:
            words = f"units 0 to {min(128 ** (level + 1), geometry.unit_count) - 1} cannot be"
            with pytest.raises(IntegrityError, match=words):
                layer.reader().read(0, 1)
            if level < 3:
                assert same(layer.reader().read(last, 1 << 20), noise)


def resident() -> int:
    """Bytes of this process's memory that are in RAM."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_a_hash_tree_of_any_memory_answers_the_same(path: Path, kept: int) -> None:
    with layers.opened(path) as layer:
        roomy = HashTree(layer.fd, layer.geometry, layer.header.root)
        tight = HashTree(layer.fd, layer.geometry, layer.header.root, kept_blocks=kept)
        for unit in random.Random(kept).choices(range(UNITS), k=500):
            assert tight.unit_hash(unit) == roomy.unit_hash(unit)
        assert len(tight._kept) <= kept


# -- damage --------------------------------------------------------------------------------


def test_an_altered_unit_is_named_and_nothing_of_it_is_returned(path: Path) -> None:
    flip(path, 131072 + 7 * UNIT + 5)
    with layers.opened(path) as layer:
        reader = layer.reader()
        for offset, size in [
            (7 * UNIT, 1),
            (7 * UNIT + 100, 50),
            (0, len(IMAGE)),
            (6 * UNIT, 9000),
        ]:
            with pytest.raises(IntegrityError) as caught:
                reader.read(offset, size)
            assert str(caught.value) == (f"{path}: unit 7 was altered (image bytes 28672 to 32767)")
        assert same(reader.read(0, 7 * UNIT), IMAGE[: 7 * UNIT])
        assert same(reader.read(8 * UNIT, 1 << 30), IMAGE[8 * UNIT :])
        flip(path, 131072 + 7 * UNIT + 5)
        assert same(reader.read(0, len(IMAGE)), IMAGE)


def test_an_altered_block_of_the_tree_names_the_units_below_it(path: Path) -> None:
    with layers.opened(path) as layer:
        block, top = layer.geometry.block_offset(1), layer.geometry.block_offset(3)
    flip(path, block + 4000)
    with layers.opened(path) as layer:
        assert layers.damaged_units(layer, IMAGE) == set(range(128, 256))
        with pytest.raises(IntegrityError) as caught:
            layer.reader().read(0, len(IMAGE))
        assert str(caught.value) == (
            f"{path}: a block of the hash tree was altered: units 128 to 255 cannot be checked "
            "(image bytes 524288 to 1048575)"
        )
    flip(path, top)
    with (
        layers.opened(path) as layer,
        pytest.raises(IntegrityError, match="units 0 to 299 cannot be checked"),
    ):
        layer.reader().read(0, 1)


def test_a_layer_cut_off_while_it_is_open_is_damaged(path: Path) -> None:
    with layers.opened(path) as layer:
        reader = layer.reader()
        reader.read(0, 1)
        os.truncate(path, 131072 + 5 * UNIT + 100)
        assert same(reader.read(0, 5 * UNIT), IMAGE[: 5 * UNIT])
        for offset, size in [(5 * UNIT, 1), (4 * UNIT, 3 * UNIT)]:
            with pytest.raises(IntegrityError) as caught:
                reader.read(offset, size)
            assert str(caught.value) == (f"{path}: unit 5 was cut off (image bytes 20480 to 24575)")


def test_a_hash_tree_cut_off_while_it_is_open_is_damaged(path: Path) -> None:
    with layers.opened(path) as layer:
        os.truncate(path, layer.geometry.block_offset(1) + 5)
        with pytest.raises(IntegrityError, match="units 0 to 299 cannot be checked"):
            layer.reader().read(0, 1)


# -- opening -------------------------------------------------------------------------------


def refusal(path: Path, credential: RawKey | Passphrase = KEY) -> CisfsError:
    with pytest.raises(CisfsError) as caught:
        SealedLayer.open(path, credential)
    assert "\n" not in str(caught.value)
    return caught.value


def test_each_reason_to_refuse_is_an_error_of_its_own(path: Path) -> None:
    good = path.read_bytes()
    found = [refusal(path, RawKey(bytes(32)))]
    for offset, data in [(0, b"X"), (8, b"\2"), (12, b"\1"), (4096 + 100, b"~"), (70000, b"\1")]:
        put(path, offset, data)
        found.append(refusal(path))
        path.write_bytes(good)
    os.truncate(path, len(good) - 1)
    found.append(refusal(path))
    path.write_bytes(good + b"12")
    found.append(refusal(path))
    path.write_bytes(good)
    flip(path, 48)
    found.append(refusal(path))
    remedy = "; fetch it again or restore it from a backup"
    newer = "layer header has version 2; this cisfs reads version 1 or 3: upgrade cisfs"
    assert [(type(each), str(each)) for each in found] == [
        (WrongKeyError, "wrong key file"),
        (NotAVaultError, f"{path} is not a sealed layer: it does not begin as one does"),
        (UnsupportedVersionError, f"{path}: {newer}"),
        (FormatError, f"{path}: layer header damaged: reserved bytes are not zero{remedy}"),
        (FormatError, f"{path}: key slots damaged: the checksum does not match{remedy}"),
        (FormatError, f"{path}: reserved area damaged: it is not zero{remedy}"),
        (FormatError, f"{path}: cut off: it has 1376255 bytes instead of 1376256{remedy}"),
        (FormatError, f"{path}: 2 bytes were appended to it{remedy}"),
        (IntegrityError, f"{path}: its header was altered by someone without the key{remedy}"),
    ]


def test_a_key_is_asked_for_last(path: Path, memory_path: Path) -> None:
    def never() -> RawKey:
        pytest.fail("asked for a key")

    good = path.read_bytes()
    for offset in (0, 8, 12, 4096, 4200, 65536, 131071):
        flip(path, offset)
        with pytest.raises(CisfsError):
            SealedLayer.open(path, never)
        flip(path, offset)
    for size in (0, 5, 100, 4096, 5000, 100_000, 131072, len(good) - 1):
        os.truncate(path, size)
        with pytest.raises(CisfsError):
            SealedLayer.open(path, never)
        path.write_bytes(good)
    with pytest.raises(NotAVaultError):
        SealedLayer.open(memory_path / "gone", never)
    SealedLayer.open(path, lambda: KEY).close()


def test_a_damaged_slot_is_damage_and_not_a_wrong_key(path: Path) -> None:
    slots = SlotText.parse(path.read_bytes()[4096:65536]).slots
    put(path, 4096, SlotText(({**slots[0], "salt": "AAAA"},)).pack())
    error = refusal(path)
    assert type(error) is FormatError
    assert str(error).startswith(f"{path}: a key slot's salt has a wrong length; fetch it again")


def test_opening_reads_neither_units_nor_tree(path: Path) -> None:
    for offset in range(131072, path.stat().st_size, UNIT):
        flip(path, offset)
    with layers.opened(path) as layer:
        assert layers.damaged_units(layer, IMAGE) == set(range(UNITS))


def test_a_writer_of_key_slots_keeps_readers_out_and_the_other_way_round(path: Path) -> None:
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        error = refusal(path)
        assert isinstance(error, BusyError)
        assert str(error).startswith(f"layer {path} is being changed by another cisfs command; try")
        fcntl.flock(file, fcntl.LOCK_UN)
        with layers.opened(path) as one, layers.opened(path):
            with pytest.raises(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            kept = os.dup(one.fd)  # as a forked process keeps it
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(kept)
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_refused_opening_leaves_no_descriptor(path: Path, memory_path: Path) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    refusal(path, RawKey(bytes(32)))
    refusal(memory_path)
    flip(path, 0)
    refusal(path)
    assert sorted(os.listdir("/proc/self/fd")) == before


@pytest.fixture
def hung() -> Iterator[None]:
    """Make a hang a failure."""

    def fail(_number: int, _frame: object) -> None:
        pytest.fail("it hangs")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(2)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.usefixtures("hung")
def test_what_is_no_layer_is_said_to_be_none(memory_path: Path) -> None:
    (memory_path / "empty").touch()
    (memory_path / "text").write_text("not a layer\n" * 1000)
    os.mkfifo(memory_path / "fifo")
    (memory_path / "dangling").symlink_to("gone")
    for name, why in [
        ("empty", "it does not begin as one does"),
        ("text", "it does not begin as one does"),
        ("text/below", "Not a directory"),
        ("gone", "No such file or directory"),
        ("dangling", "No such file or directory"),
        ("fifo", "it is not a regular file"),
        (".", "it is not a regular file"),
    ]:
        where = memory_path / name
        for attempt in (lambda: SealedLayer.open(where, KEY), lambda: describe(where)):  # noqa: B023 - called at once
            with pytest.raises(NotAVaultError) as caught:
                attempt()
            assert str(caught.value) == f"{where} is not a sealed layer: {why}"


# -- what anyone may know, and which of the two it is ----------------------------------------


def test_describe_says_what_anyone_may_know(path: Path) -> None:
    said = describe(path)
    assert json.loads(json.dumps(said)) == said
    (slot,) = SlotText.parse(path.read_bytes()[4096:65536]).slots
    with layers.opened(path) as layer:
        assert said == {
            "type": "sealed layer",
            "path": str(path),
            "version": 1,
            "layer_id": path.read_bytes()[16:32].hex(),
            "identity": layer.identity,
            "content": "EROFS",
            "cipher": "AES-256-XTS",
            "hashes": "BLAKE3, 256 bits per unit",
            "unit_size": 4096,
            "image_size": len(IMAGE),
            "stored_size": path.stat().st_size,
            "base": None,
            "slots": [{"id": slot_id(slot), "type": "key-file"}],
            "signatures": [],
        }
    os.truncate(path, 200_000)
    with pytest.raises(FormatError, match="cut off: it has 200000 bytes instead of 1376256"):
        describe(path)


def test_a_layer_is_known_by_how_it_begins_or_is_called(path: Path, memory_path: Path) -> None:
    path.rename(memory_path / "layer")
    (memory_path / "damaged.cis").touch()
    (memory_path / "other").write_bytes(b"CISFSVF\0")
    (memory_path / "directory.cis").mkdir()
    (memory_path / "link").symlink_to("layer")
    taken = {each.name for each in memory_path.iterdir() if opening.is_sealed(each)}
    assert taken == {"layer", "damaged.cis", "link"}
    assert not opening.is_sealed(memory_path / "gone.cis")
    assert not opening.is_sealed(memory_path / "layer" / "below")


def test_vaults_and_layers_are_opened_and_described_as_what_they_are(
    path: Path, memory_path: Path
) -> None:
    vaults.make(memory_path / "vault")
    for where, kind, said in [
        (path, SealedLayer, "sealed layer"),
        (memory_path / "vault", Vault, "vault"),
    ]:
        opened = opening.open_layer(where, KEY)
        assert type(opened) is kind
        assert opening.describe(where)["type"] == said
        opened.close()
    vault = opening.open_layer(memory_path / "vault", KEY, read_only=False)
    assert isinstance(vault, Vault)
    assert not vault.read_only
    vault.close()


def test_what_is_neither_is_said_to_be_neither(memory_path: Path) -> None:
    (memory_path / "text").write_text("not a layer\n" * 1000)
    (memory_path / "directory").mkdir()
    neither = "is neither a vault nor a sealed layer"
    for name, words in [
        ("text", f"{neither}: it does not begin as a layer does, and it is no directory"),
        ("gone", f"{neither}: No such file or directory"),
        ("text/below", f"{neither}: Not a directory"),
        ("directory", "is not a vault: it has no vault.json; make one with: cisfs init"),
    ]:
        where = memory_path / name
        for attempt in (
            lambda: opening.open_layer(where, KEY),  # noqa: B023 - called at once
            lambda: opening.describe(where),  # noqa: B023 - called at once
        ):
            with pytest.raises(NotAVaultError, match=f"^{where} {words}"):
                attempt()
    (memory_path / "empty.cis").touch()
    with pytest.raises(NotAVaultError, match=r"empty.cis is not a sealed layer: it does not begin"):
        opening.open_layer(memory_path / "empty.cis", KEY)
