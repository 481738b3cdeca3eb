"""The ephemeral scratch image: what vouches for it, what is left of it, and a full disk."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cisfs.errors import IntegrityError
from cisfs.format.scratch_geometry import BLOCK_SIZE, MAX_UNIT_SIZE, Unit, units
from cisfs.layer.scratch import EphemeralImage
from tests.unit.vaults import same

SIZE = 4 << 20
# Where a unit of each length begins, and how long it is.
PLACES = [(0, 16), (16, 8), (24, 4), (28, 2), (30, 1)]


@pytest.fixture
def image(tmp_path: Path) -> Iterator[EphemeralImage]:
    made = EphemeralImage(tmp_path, SIZE)
    yield made
    made.close()


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def put(image: EphemeralImage, block: int, data: bytes | bytearray) -> None:
    image.write(block * BLOCK_SIZE, memoryview(data))


def get(image: EphemeralImage, block: int, count: int) -> bytes:
    return bytes(image.read(block * BLOCK_SIZE, count * BLOCK_SIZE))


def stored(image: EphemeralImage, block: int = 0, count: int = SIZE // BLOCK_SIZE) -> bytes:
    return os.pread(image._fd, count * BLOCK_SIZE, block * BLOCK_SIZE)


def restore(image: EphemeralImage, block: int, data: bytes | bytearray) -> None:
    assert os.pwrite(image._fd, data, block * BLOCK_SIZE) == len(data)


def tidy(image: EphemeralImage) -> None:
    while image.tidy():
        pass


def written(image: EphemeralImage) -> list[Unit]:
    return [each.unit for each in image._records.written(0, SIZE // BLOCK_SIZE)]


# ---- units


@pytest.mark.parametrize(
    ("first", "end", "expected"),
    [
        (0, 0, []),
        (0, 1, [(0, 0)]),
        (0, 16, [(0, 4)]),
        (0, 33, [(0, 4), (16, 4), (32, 0)]),
        (1, 32, [(1, 0), (2, 1), (4, 2), (8, 3), (16, 4)]),
        (15, 18, [(15, 0), (16, 1)]),
        (48, 63, [(48, 3), (56, 2), (60, 1), (62, 0)]),
    ],
)
def test_blocks_are_covered_by_the_fewest_units(
    first: int, end: int, expected: list[tuple[int, int]]
) -> None:
    assert list(units(first, end)) == expected


def test_the_size_is_whole_units(tmp_path: Path) -> None:
    image = EphemeralImage(tmp_path, SIZE + 1)
    assert image.size == SIZE + MAX_UNIT_SIZE
    image.close()


def test_a_new_image_is_zeros_and_takes_no_space(image: EphemeralImage) -> None:
    assert not any(image.read(0, SIZE))
    assert os.fstat(image._fd).st_blocks == 0
    assert os.fstat(image._fd).st_size == SIZE


def test_what_is_written_in_one_go_is_read_in_one_go(image: EphemeralImage) -> None:
    data = noise(3 * MAX_UNIT_SIZE)
    put(image, 5, data)
    assert written(image) == list(units(5, 5 + 48))
    assert get(image, 5, 48) == data
    assert get(image, 5 + 20, 3) == data[20 * BLOCK_SIZE : 23 * BLOCK_SIZE]


def test_blocks_written_one_by_one_are_never_read_to_write_others(
    image: EphemeralImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "preadv", lambda *_: pytest.fail("this read"))
    for block in random.Random(3).sample(range(64), 64):
        put(image, block, noise(BLOCK_SIZE, block))
        put(image, block, noise(BLOCK_SIZE, block))
    monkeypatch.undo()
    assert get(image, 0, 64) == b"".join(noise(BLOCK_SIZE, block) for block in range(64))


def test_a_unit_that_changes_in_part_is_divided(image: EphemeralImage) -> None:
    data = bytearray(noise(MAX_UNIT_SIZE))
    put(image, 0, data)
    put(image, 6, noise(BLOCK_SIZE, 2))
    data[6 * BLOCK_SIZE : 7 * BLOCK_SIZE] = noise(BLOCK_SIZE, 2)
    assert written(image) == [(0, 2), (4, 1), (6, 0), (7, 0), (8, 3)]
    assert get(image, 0, 16) == data


def test_what_is_written_over_whole_units_replaces_them(image: EphemeralImage) -> None:
    put(image, 0, noise(8 * BLOCK_SIZE))
    put(image, 9, noise(3 * BLOCK_SIZE))
    put(image, 0, noise(MAX_UNIT_SIZE, 2))
    assert written(image) == [(0, 4)]
    assert get(image, 0, 16) == noise(MAX_UNIT_SIZE, 2)


# ---- what vouches for it


@pytest.mark.parametrize(("block", "count"), PLACES)
def test_every_altered_byte_of_a_unit_is_found(
    image: EphemeralImage, block: int, count: int
) -> None:
    put(image, 0, noise(31 * BLOCK_SIZE))
    size = count * BLOCK_SIZE
    before = stored(image, block, count)
    for at in {
        0,
        1,
        15,
        16,
        BLOCK_SIZE - 1,
        size - 1,
        *random.Random(block).sample(range(size), 9),
    }:
        altered = bytearray(before)
        altered[at] ^= 1 << at % 8
        restore(image, block, altered)
        for asked in {block, block + count - 1}:
            with pytest.raises(IntegrityError, match=f"block {block} of the scratch was altered"):
                get(image, asked, 1)
    restore(image, block, before)
    assert get(image, 0, 31) == noise(31 * BLOCK_SIZE)


@pytest.mark.parametrize(("block", "count"), PLACES)
def test_an_earlier_state_of_a_unit_is_found(image: EphemeralImage, block: int, count: int) -> None:
    put(image, block, noise(count * BLOCK_SIZE, 1))
    earlier = stored(image, block, count)
    put(image, block, noise(count * BLOCK_SIZE, 2))
    later = stored(image, block, count)
    restore(image, block, earlier)
    with pytest.raises(IntegrityError):
        get(image, block, count)
    restore(image, block, later)
    assert get(image, block, count) == noise(count * BLOCK_SIZE, 2)


def test_units_that_were_exchanged_are_found(image: EphemeralImage) -> None:
    put(image, 0, noise(2 * MAX_UNIT_SIZE))
    one, other = stored(image, 0, 16), stored(image, 16, 16)
    restore(image, 0, other)
    restore(image, 16, one)
    for block in (0, 16):
        with pytest.raises(IntegrityError):
            get(image, block, 1)


@pytest.mark.parametrize(
    "damage",
    [
        lambda fd: os.pwrite(fd, bytes(MAX_UNIT_SIZE), 0),
        lambda fd: os.ftruncate(fd, 100),
        lambda fd: os.ftruncate(fd, 0),
    ],
    ids=["zeroed", "cut off", "emptied"],
)
def test_what_is_gone_is_found(image: EphemeralImage, damage: Callable[[int], object]) -> None:
    put(image, 0, noise(MAX_UNIT_SIZE))
    get(image, 0, 16)  # its ciphertext is in the buffer now
    put(image, 16, noise(BLOCK_SIZE))
    get(image, 16, 1)
    damage(image._fd)
    with pytest.raises(IntegrityError):
        get(image, 0, 16)


def test_a_cut_off_unit_is_not_completed_from_an_earlier_read(image: EphemeralImage) -> None:
    put(image, 0, noise(MAX_UNIT_SIZE))
    get(image, 0, 16)
    os.ftruncate(image._fd, MAX_UNIT_SIZE // 2)
    with pytest.raises(IntegrityError):
        get(image, 0, 16)


def test_what_is_put_into_a_hole_is_not_looked_at(image: EphemeralImage) -> None:
    put(image, 1, noise(BLOCK_SIZE))
    restore(image, 0, noise(BLOCK_SIZE, 7))
    restore(image, 40, noise(BLOCK_SIZE, 7))
    assert get(image, 0, 1) == bytes(BLOCK_SIZE)
    assert get(image, 0, 2) == bytes(BLOCK_SIZE) + noise(BLOCK_SIZE)
    assert get(image, 40, 1) == bytes(BLOCK_SIZE)


def test_an_altered_unit_can_be_written_whole_but_not_in_part(image: EphemeralImage) -> None:
    put(image, 0, noise(MAX_UNIT_SIZE))
    restore(image, 3, b"x")
    with pytest.raises(IntegrityError):
        put(image, 7, noise(BLOCK_SIZE))
    with pytest.raises(IntegrityError):
        get(image, 7, 1)
    put(image, 0, noise(MAX_UNIT_SIZE, 2))
    assert get(image, 0, 16) == noise(MAX_UNIT_SIZE, 2)


# ---- what can be seen


def test_equal_content_is_never_stored_alike(image: EphemeralImage) -> None:
    seen = set()
    for _ in range(3):
        for block in (0, 1, 5):
            put(image, block, bytes(BLOCK_SIZE))
            seen.add(stored(image, block, 1))
    image.discard(0, MAX_UNIT_SIZE)
    put(image, 0, bytes(BLOCK_SIZE))
    seen.add(stored(image, 0, 1))
    assert len(seen) == 10
    assert len({each[at : at + 16] for each in seen for at in range(0, BLOCK_SIZE, 16)}) == 2560


def test_no_name_and_no_content_is_on_the_disk(image: EphemeralImage, tmp_path: Path) -> None:
    put(image, 0, (b"canary of thirty-two bytes here." * 4096)[: MAX_UNIT_SIZE + BLOCK_SIZE])
    assert os.listdir(tmp_path) == []
    assert os.fstat(image._fd).st_nlink == 0
    assert b"canary" not in stored(image)


# ---- giving back


def test_discarded_blocks_are_zeros_and_their_space_is_given_back(image: EphemeralImage) -> None:
    data = bytearray(noise(4 * MAX_UNIT_SIZE))
    put(image, 0, data)
    before = os.fstat(image._fd).st_blocks
    image.discard(5 * BLOCK_SIZE, 2 * MAX_UNIT_SIZE)
    data[5 * BLOCK_SIZE : 5 * BLOCK_SIZE + 2 * MAX_UNIT_SIZE] = bytes(2 * MAX_UNIT_SIZE)
    assert get(image, 0, 64) == data
    tidy(image)
    assert get(image, 0, 64) == data
    # What is left of a unit keeps all of its space.
    assert os.fstat(image._fd).st_blocks <= before - MAX_UNIT_SIZE // 512
    image.discard(0, SIZE)
    tidy(image)
    assert os.fstat(image._fd).st_blocks == 0
    assert written(image) == []


def test_a_discard_of_less_than_a_block_is_zeros(image: EphemeralImage) -> None:
    data = bytearray(noise(3 * BLOCK_SIZE))
    put(image, 0, data)
    image.discard(100, 10)
    image.discard(BLOCK_SIZE - 5, BLOCK_SIZE + 10)
    data[100:110] = bytes(10)
    data[BLOCK_SIZE - 5 : 2 * BLOCK_SIZE + 5] = bytes(BLOCK_SIZE + 10)
    assert get(image, 0, 3) == data


def test_blocks_of_a_unit_are_discarded_without_touching_the_disk(
    image: EphemeralImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = bytearray(noise(MAX_UNIT_SIZE))
    put(image, 0, data)
    with monkeypatch.context() as patch:
        for call in ("pwrite", "preadv"):
            patch.setattr(os, call, lambda *_: pytest.fail("this is not for the disk"))
        for first, count in [(3, 2), (9, 1), (15, 1)]:
            image.discard(first * BLOCK_SIZE, count * BLOCK_SIZE)
            data[first * BLOCK_SIZE : (first + count) * BLOCK_SIZE] = bytes(count * BLOCK_SIZE)
    assert written(image) == [(0, 4)]
    assert get(image, 0, 16) == data
    assert get(image, 3, 1) == bytes(BLOCK_SIZE)
    put(image, 4, noise(BLOCK_SIZE, 2))
    data[4 * BLOCK_SIZE : 5 * BLOCK_SIZE] = noise(BLOCK_SIZE, 2)
    assert get(image, 0, 16) == data


def test_a_unit_goes_when_the_last_of_its_blocks_does(image: EphemeralImage) -> None:
    put(image, 0, noise(MAX_UNIT_SIZE))
    for block in random.Random(5).sample(range(16), 16):
        assert written(image) == [(0, 4)]
        image.discard(block * BLOCK_SIZE, BLOCK_SIZE)
    assert written(image) == []
    tidy(image)
    assert os.fstat(image._fd).st_blocks == 0


def test_what_was_written_again_is_not_given_back(image: EphemeralImage) -> None:
    put(image, 0, noise(2 * MAX_UNIT_SIZE))
    image.discard(0, 2 * MAX_UNIT_SIZE)
    put(image, 7, noise(12 * BLOCK_SIZE, 2))
    tidy(image)
    assert get(image, 7, 12) == noise(12 * BLOCK_SIZE, 2)
    assert os.fstat(image._fd).st_blocks == 12 * BLOCK_SIZE // 512


def test_many_discarded_pieces_are_not_all_put_off(
    image: EphemeralImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cisfs.layer.scratch._MOST_EMPTY", 10)
    for block in range(0, 100, 2):
        put(image, block, noise(BLOCK_SIZE))
    for block in range(0, 100, 2):
        image.discard(block * BLOCK_SIZE, BLOCK_SIZE)
    assert len(image._empty) == 10
    assert os.fstat(image._fd).st_blocks == 10 * BLOCK_SIZE // 512


def test_a_full_disk_is_given_what_was_discarded_first(
    image: EphemeralImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(image, 0, noise(MAX_UNIT_SIZE))
    image.discard(0, MAX_UNIT_SIZE)
    with monkeypatch.context() as patch:
        full_after(patch, 0)
        put(image, 100, noise(BLOCK_SIZE))
    assert image._empty == []
    assert get(image, 100, 1) == noise(BLOCK_SIZE)


# ---- a full disk


def full_after(monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    """Let the next write have `room` bytes of space, and those after it what it had."""
    real, rooms = os.pwrite, iter([room])

    def pwrite(fd: int, data: memoryview, offset: int) -> int:
        data = data[: next(rooms, len(data))]
        if not data:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", pwrite)


@pytest.mark.parametrize("room", [0, 100, BLOCK_SIZE, 3 * BLOCK_SIZE + 7, 17 * BLOCK_SIZE])
@pytest.mark.parametrize("block", [2, 16])
def test_a_full_disk_loses_nothing_that_was_there(
    image: EphemeralImage, monkeypatch: pytest.MonkeyPatch, block: int, room: int
) -> None:
    old = noise(3 * BLOCK_SIZE)
    put(image, 0, old)
    with monkeypatch.context() as patch:
        full_after(patch, room)
        with pytest.raises(OSError, match="No space"):
            put(image, block, noise(2 * MAX_UNIT_SIZE, 2))
    wanted = bytearray(old.ljust(60 * BLOCK_SIZE, b"\0"))
    kept = -(-room // BLOCK_SIZE)
    wanted[block * BLOCK_SIZE : (block + kept) * BLOCK_SIZE] = noise(2 * MAX_UNIT_SIZE, 2)[
        : kept * BLOCK_SIZE
    ]
    assert same(get(image, 0, 60), wanted)
    put(image, block, noise(2 * MAX_UNIT_SIZE, 2))
    assert get(image, block, 32) == noise(2 * MAX_UNIT_SIZE, 2)


def test_a_unit_that_was_half_overwritten_is_an_error_not_zeros(
    image: EphemeralImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where even overwriting takes space."""
    put(image, 0, noise(MAX_UNIT_SIZE))
    with monkeypatch.context() as patch:
        full_after(patch, 6 * BLOCK_SIZE)
        with pytest.raises(OSError, match="No space"):
            put(image, 3, noise(BLOCK_SIZE, 2))
    with pytest.raises(IntegrityError):
        get(image, 9, 1)


# ---- the end


def test_a_destroyed_image_is_read_no_more_and_takes_what_is_written(
    image: EphemeralImage,
) -> None:
    put(image, 0, noise(MAX_UNIT_SIZE))
    get(image, 0, 1)
    assert image._cipher is not None
    key = image._cipher._key
    assert any(key)
    before = stored(image)
    image.destroy()
    assert not any(key)
    assert not any(image._plain)
    for block in (0, 100):
        with pytest.raises(OSError, match="destroyed") as caught:
            get(image, block, 1)
        assert caught.value.errno == errno.ESHUTDOWN
    put(image, 0, noise(BLOCK_SIZE, 2))
    image.discard(0, SIZE)
    image.destroy()
    assert stored(image) == before


def test_nothing_is_meant_to_last(image: EphemeralImage) -> None:
    assert not image.durable
    with pytest.raises(OSError, match="not implemented") as caught:
        image.sync()
    assert caught.value.errno == errno.ENOSYS


def test_two_images_have_nothing_in_common(tmp_path: Path) -> None:
    one, other = (EphemeralImage(tmp_path, SIZE) for _ in range(2))
    for each in (one, other):
        put(each, 0, bytes(BLOCK_SIZE))
    assert stored(one, 0, 1) != stored(other, 0, 1)
    restore(one, 0, stored(other, 0, 1))
    with pytest.raises(IntegrityError):
        get(one, 0, 1)
    one.close()
    other.close()
