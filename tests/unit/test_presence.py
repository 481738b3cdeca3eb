"""The file that says what of a layer is here: true at every instant, whatever crashes."""

from __future__ import annotations

import os
import random
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from cisfs.errors import FormatError
from cisfs.format.presence import SIZE, PresenceHeader, bit_count, bit_of_block, header_for
from cisfs.format.sealed_geometry import LayerGeometry
from cisfs.layer import presence
from cisfs.layer.presence import Presence

BITS = 100_000
HEADER = PresenceHeader(bytes(range(32)), BITS)


class Power(Exception):
    """It went off."""


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path / "present", os.O_RDWR | os.O_CREAT, 0o600)
    presence.create(fd, HEADER)
    yield fd
    os.close(fd)


def power_goes_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine has been started anew; the first set of bits may be anything by now."""
    boot = tmp_path / f"boot-{secrets.token_hex(4)}"
    boot.write_text("-".join(("01234567", "89ab", "cdef", "0123", secrets.token_hex(6))))
    monkeypatch.setattr(presence, "_BOOT_ID", boot)


# ---- the format


def test_the_header_round_trips() -> None:
    for complete in (False, True):
        header = PresenceHeader(bytes(32), 7, b"b" * 16, complete)
        assert PresenceHeader.parse(header.pack()) == header
        assert len(header.pack()) == SIZE
    assert HEADER.file_size == SIZE + 2 * 4 * SIZE


@pytest.mark.parametrize("size", [0, 1, 4095])
def test_a_truncated_header(size: int) -> None:
    with pytest.raises(FormatError, match="truncated"):
        PresenceHeader.parse(HEADER.pack()[:size])


@pytest.mark.parametrize(
    ("at", "words"), [(0, "begin"), (8, "begin"), (10, "reserved"), (11, "reserved"), (72, "rese")]
)
def test_a_damaged_header(at: int, words: str) -> None:
    data = bytearray(HEADER.pack())
    data[at] ^= 0x82
    with pytest.raises(FormatError, match=words):
        PresenceHeader.parse(bytes(data))


def test_bits_are_for_units_then_blocks() -> None:
    geometry = LayerGeometry(4096, 300 * 4096)
    assert bit_count(geometry) == 300 + 3 + 1
    assert [bit_of_block(geometry, block) for block in range(4)] == [300, 301, 302, 303]
    assert header_for("sha256:" + "ab" * 32, geometry).identity == b"\xab" * 32
    with pytest.raises(ValueError, match="identity"):
        header_for("sha256:ab", geometry)


def test_a_file_of_the_wrong_size(file: int) -> None:
    os.ftruncate(file, HEADER.file_size - 1)
    with pytest.raises(FormatError, match="size"):
        Presence(file)


# ---- bits


def test_bits_against_a_set(file: int) -> None:
    writer, reader = Presence(file, writable=True), Presence(file)
    choice = random.Random(1)
    here: set[int] = set()
    for _ in range(300):
        start = choice.randrange(BITS)
        some = range(start, min(BITS, start + choice.choice([1, 7, 8, 9, 64, 3000])))
        if choice.random() < 0.7:
            for bit in some:
                writer.add(bit)
            here |= set(some)
        else:
            writer.take_back(some)
            here -= set(some)
        for other in (some, range(max(0, some.start - 3), min(BITS, some.stop + 3))):
            for seen in (reader, writer):
                assert seen.has_all(other) == (set(other) <= here)
                assert list(seen.missing(other)) == sorted(set(other) - here)
        assert reader.has(some[0]) == (some[0] in here)
    assert reader.count(range(BITS)) == len(here)


def test_a_full_one(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "full", os.O_RDWR | os.O_CREAT)
    presence.create(fd, HEADER, full=True)
    assert Presence(fd).has_all(range(BITS))
    os.close(fd)


# ---- crashes


def test_the_death_of_a_process_loses_nothing(file: int) -> None:
    """What is with the kernel outlives everybody."""
    if (pid := os.fork()) == 0:
        Presence(file, writable=True).add(5)
        os._exit(0)
    os.waitpid(pid, 0)
    assert list(Presence(file).missing(range(4, 7))) == [4, 6]


def test_after_a_crash_only_what_was_synced_counts(
    file: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = os.open(tmp_path / "data", os.O_RDWR | os.O_CREAT)
    writer = Presence(file, writable=True)
    for bit in range(10):
        writer.add(bit)
    writer.settle(data)
    for bit in range(10, 20):
        writer.add(bit)
    assert Presence(file).has_all(range(20))
    power_goes_off(tmp_path, monkeypatch)
    after = Presence(file)
    assert list(after.missing(range(25))) == list(range(10, 25))
    Presence(file, writable=True).add(12)
    assert after.has(12), "whoever comes later does not begin anew"
    power_goes_off(tmp_path, monkeypatch)
    assert not Presence(file).has(12)
    os.close(data)


def test_a_crash_at_each_write_of_a_settling(
    file: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the disk has at any instant never vouches for what was not synced before it."""
    writer = Presence(file, writable=True)
    writer.add(1)
    synced: list[bool] = []

    def sync(_fd: int) -> None:
        durable = os.pread(file, HEADER.set_size, SIZE + HEADER.set_size)
        assert not any(durable), "said before it is so"
        synced.append(True)
        raise OSError(5, "the disk is broken")

    monkeypatch.setattr(os, "fdatasync", sync)
    with pytest.raises(OSError, match="broken"):
        writer.settle(file)
    assert synced
    power_goes_off(tmp_path, monkeypatch)
    assert not Presence(file).has(1)


def test_what_came_while_others_were_synced_is_not_durable(
    file: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = Presence(file, writable=True)
    writer.add(1)
    writer.add(3)

    def sync(_fd: int) -> None:
        writer.add(2)
        writer.take_back([3])
        writer.add(3)

    monkeypatch.setattr(os, "fdatasync", sync)
    writer.settle(file)
    assert Presence(file).has_all(range(1, 4))
    power_goes_off(tmp_path, monkeypatch)
    assert list(Presence(file).missing(range(1, 4))) == [2, 3]


def test_a_crash_while_one_begins_anew(
    file: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = Presence(file, writable=True)
    writer.add(1)
    writer.settle(file)
    writer.add(2)
    pwrite, left = os.pwrite, 0

    def cut(fd: int, data: bytes, offset: int) -> int:
        nonlocal left
        if left == 0:
            raise Power
        left -= 1
        return pwrite(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", cut)
    for writes in (0, 1):
        power_goes_off(tmp_path, monkeypatch)
        left = writes
        with pytest.raises(Power):
            Presence(file)
    left = 9
    after = Presence(file)
    assert (after.has(1), after.has(2)) == (True, False)


def test_completion(file: int, tmp_path: Path) -> None:
    path = tmp_path / "present"
    writer = Presence(file, writable=True)
    assert not writer.complete(file)
    for bit in range(BITS):
        writer.add(bit)
    assert not writer.is_complete
    assert not presence.says_complete(path)
    assert writer.complete(file)
    assert Presence(file).is_complete
    assert presence.says_complete(path)
    writer.take_back([0])
    assert not presence.says_complete(path)
    path.unlink()
    assert presence.says_complete(path)


@pytest.mark.parametrize("again", [False, True])
def test_what_is_taken_back_meanwhile_is_not_complete(
    file: int, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    """Nothing that is said to be complete is ever fetched again."""
    writer = Presence(file, writable=True)
    for bit in range(BITS):
        writer.add(bit)

    def sync(_fd: int) -> None:
        writer.take_back([3])
        if again:
            writer.add(3)  # it is here, and not durable

    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", sync)
        assert not writer.complete(file)
    assert not Presence(file).is_complete
    assert Presence(file).has(3) == again
    writer.add(3)
    assert writer.complete(file)
