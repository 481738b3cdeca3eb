"""What someone without the key can do to a sealed layer: be refused.

A reader gets the right bytes or an error, never wrong bytes; and where units are refused, they are
exactly the affected ones.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cisfs.crypto.hashes import unit_hash
from cisfs.errors import CisfsError, FormatError, IntegrityError, WrongKeyError
from cisfs.format.slotarea import SlotAreas, SlotText
from cisfs.layer.hashtree import build_tree
from cisfs.layer.image_reader import ImageReader
from cisfs.layer.sealed import SealedLayer
from tests.unit import layers
from tests.unit.layers import UNIT
from tests.unit.vaults import KEY, same
from tests.vectors.reference_layer import slots_area

pytestmark = pytest.mark.slow

FEW, MANY = 3, 130  # units; the second has a tree of two blocks and a top
REGIONS = {"header": (0, 4096), "key slots": (4096, 65536), "reserved": (65536, 131072)}


class Target:
    """A layer on disk to alter, the bytes it was sealed to, and its image."""

    def __init__(self, path: Path, units: int, seed: int = 0) -> None:
        self.path = path
        self.units = units
        self.image = layers.image(units * UNIT, seed)
        layers.seal(path, self.image)
        self.stored = path.read_bytes()
        self.fd = os.open(path, os.O_RDWR)

    def write(self, data: bytes, offset: int) -> None:
        os.pwrite(self.fd, data, offset)

    def flip(self, at: int, bit: int) -> None:
        self.write(bytes([self.stored[at] ^ 1 << bit]), at)

    def restore(self, at: int = 0, length: int = 1 << 30) -> None:
        os.ftruncate(self.fd, len(self.stored))
        self.write(self.stored[at : at + length], at)

    def refusal(self) -> CisfsError | None:
        """Why it is not opened; None if it is."""
        try:
            SealedLayer.open(self.path, KEY).close()
        except CisfsError as error:
            return error
        return None

    def unit(self, number: int) -> bytes:
        return self.stored[131072 + number * UNIT :][:UNIT]

    def damaged(self) -> set[int]:
        with layers.opened(self.path) as layer:
            return layers.damaged_units(layer, self.image)

    def reads(self, reader: ImageReader, unit: int) -> bool:
        """Whether a unit is read; if it is, the bytes are the right ones."""
        try:
            got = reader.read(unit * UNIT, UNIT)
        except IntegrityError:
            return False
        assert same(got, self.image[unit * UNIT : (unit + 1) * UNIT])
        return True


@pytest.fixture
def few(memory_path: Path) -> Iterator[Target]:
    target = Target(memory_path / "few.cis", FEW)
    yield target
    os.close(target.fd)


@pytest.fixture
def many(memory_path: Path) -> Iterator[Target]:
    target = Target(memory_path / "many.cis", MANY)
    yield target
    os.close(target.fd)


# -- before the units ------------------------------------------------------------------------


def test_every_bit_of_the_header_is_vouched_for(few: Target) -> None:
    for at in range(4096):
        for bit in range(8):
            few.flip(at, bit)
            assert few.refusal() is not None, f"byte {at}, bit {bit}"
        few.restore(at, 1)
    assert few.damaged() == set()


def test_every_bit_of_the_key_slots_is_checked(few: Target) -> None:
    used = len(few.stored[4096:65536].rstrip(b"\0"))
    for at in range(4096, 4096 + used + 16):
        for bit in range(8):
            few.flip(at, bit)
            assert type(few.refusal()) is FormatError, f"byte {at}, bit {bit}"
        few.restore(at, 1)


def test_a_key_slot_altered_under_a_fitting_checksum_does_not_open(few: Target) -> None:
    text = few.stored[4096 + 64 : 65536].rstrip(b"\0")
    for at in range(len(text)):
        for bit in range(8):
            altered = text[:at] + bytes([text[at] ^ 1 << bit]) + text[at + 1 :]
            few.write(slots_area(altered), 4096)
            assert isinstance(few.refusal(), (FormatError, WrongKeyError)), altered
    few.write(slots_area(text), 4096)
    assert few.refusal() is None


def test_a_bit_in_any_byte_of_the_padding_is_noticed(few: Target) -> None:
    """Byte by byte without a file around them, and a few of them in the file."""
    assert_each_byte_matters(SlotText.parse, few.stored[4096:65536])
    areas = few.stored[4096:131072]
    assert_each_byte_matters(lambda rest: SlotAreas.parse(areas[:61440] + rest), areas[61440:])
    for at in [*range(4096, 131072, 127), 65535, 65536, 131071]:
        few.flip(at, at % 8)
        assert type(few.refusal()) is FormatError, f"byte {at}"
        few.restore(at, 1)
    assert few.refusal() is None


def assert_each_byte_matters(parse: Callable[[bytes], object], good: bytes) -> None:
    altered = bytearray(good)
    for at, byte in enumerate(good):
        altered[at] = byte ^ 1 << at % 8
        try:
            parse(bytes(altered))
        except FormatError:
            altered[at] = byte
        else:
            pytest.fail(f"byte {at} was altered unnoticed")


# -- units and tree --------------------------------------------------------------------------


def test_a_bit_in_any_byte_of_a_unit_is_refused_with_that_unit(few: Target) -> None:
    with layers.opened(few.path) as layer:
        reader = layer.reader()
        for at in range(131072, 131072 + FEW * UNIT):
            few.flip(at, at % 8)
            damaged = {unit for unit in range(FEW) if not few.reads(reader, unit)}
            assert damaged == {(at - 131072) // UNIT}, f"byte {at}"
            with pytest.raises(IntegrityError):
                reader.read(0, FEW * UNIT)
            few.restore(at, 1)
        assert same(reader.read(0, FEW * UNIT), few.image)


def test_a_bit_in_any_byte_of_the_tree_is_refused_with_the_units_below(many: Target) -> None:
    """A fresh reader each time: what was checked before stays believed."""
    tree = 131072 + MANY * UNIT
    below = [range(128), range(128, MANY), range(MANY)]
    edges = (127, 128)
    with layers.opened(many.path) as layer:
        assert len(many.stored) == tree + 3 * 4096
        for at in range(tree, len(many.stored)):
            many.flip(at, at % 8)
            reader = layer.reader()
            lost = below[(at - tree) // 4096]
            for unit in edges:
                assert many.reads(reader, unit) == (unit not in lost), f"byte {at}, unit {unit}"
            many.restore(at, 1)
    assert many.damaged() == set()
    for block, lost in enumerate(below):
        many.flip(tree + 4096 * block, 0)
        assert many.damaged() == set(lost)
        many.restore()


def test_blocks_of_the_tree_cannot_change_places(many: Target) -> None:
    tree = 131072 + MANY * UNIT
    blocks = [many.stored[tree + 4096 * each :][:4096] for each in range(3)]
    for one, other, lost in [(0, 1, range(MANY)), (0, 2, range(MANY)), (1, 2, range(MANY))]:
        many.write(blocks[one], tree + 4096 * other)
        many.write(blocks[other], tree + 4096 * one)
        assert many.damaged() == set(lost)
        many.restore()
    many.write(blocks[0], tree + 4096)
    assert many.damaged() == {128, 129}


def test_units_cannot_change_places(many: Target) -> None:
    pairs = [(0, 1), (0, 2), (1, 127), (127, 128), (0, 128), (128, 129), (5, 100)]
    for one, other in pairs:
        many.write(many.unit(one), 131072 + UNIT * other)
        many.write(many.unit(other), 131072 + UNIT * one)
        assert many.damaged() == {one, other}
        many.restore()


def test_units_and_their_hashes_cannot_change_places(many: Target) -> None:
    """The tree is over ciphertext and takes no key: it can be made to fit, but not its root."""
    swapped = [many.unit(each) for each in (1, 0, *range(2, MANY))]
    hashes = b"".join(unit_hash(unit) for unit in swapped).ljust(8192, b"\0")
    levels, root = build_tree(memoryview(hashes))
    many.write(b"".join([*swapped, *levels]), 131072)
    assert many.damaged() == set(range(MANY))
    many.write(root, 48)
    assert isinstance(many.refusal(), IntegrityError)


@pytest.mark.parametrize("count", [FEW, MANY])
def test_nothing_can_come_from_another_layer_sealed_with_the_same_key(
    memory_path: Path, count: int
) -> None:
    one, other = (Target(memory_path / name, count, seed) for name, seed in [("a", 0), ("b", 1)])
    for unit in (0, 1, count - 1):
        one.write(other.unit(unit), 131072 + UNIT * unit)
        assert one.damaged() == {unit}
        one.restore()
    tree = 131072 + count * UNIT
    for start, end in [(tree, len(one.stored)), (131072, tree), (131072, len(one.stored))]:
        one.write(other.stored[start:end], start)
        assert one.damaged() == set(range(count))
        one.restore()
    for start, end in [*REGIONS.values(), (0, 131072)]:
        one.write(other.stored[start:end], start)
        refused = one.refusal()
        if (start, end) == (0, 131072):
            assert refused is None  # whose header it has, that layer it claims to be
            assert one.damaged() == set(range(count))
        else:
            assert (refused is None) == (start == 65536)
        one.restore()
    os.close(one.fd)
    os.close(other.fd)


def test_an_older_header_of_the_same_output_does_not_fit_it(few: Target) -> None:
    """Sealed again to the same place, of the same image, with the same key file."""
    layers.seal(few.path, few.image, force=True)
    with few.path.open("r+b") as file:
        file.write(few.stored[:4096])
    assert isinstance(few.refusal(), WrongKeyError)  # the slot is for another layer id
    with few.path.open("r+b") as file:
        file.write(few.stored[:131072])
    assert few.refusal() is None
    assert few.damaged() == set(range(FEW))


# -- its length ------------------------------------------------------------------------------


def test_a_layer_cut_off_anywhere_is_refused(many: Target) -> None:
    size = len(many.stored)
    edges = (0, 7, 8, 10, 4096, 4160, 65536, 131072, 131072 + UNIT, size - 4096, size)
    lengths = {edge + by for edge in edges for by in (-2, -1, 0, 1) if 0 <= edge + by < size}
    for length in sorted(lengths | set(range(0, size, 4093)), reverse=True):
        os.ftruncate(many.fd, length)
        assert many.refusal() is not None, f"cut to {length}"
    many.restore()
    assert many.damaged() == set()


@pytest.mark.parametrize("more", [1, 16, 4095, 4096, 8192, 131072])
@pytest.mark.parametrize("byte", [b"\0", b"\1"])
def test_a_lengthened_layer_is_refused(few: Target, more: int, byte: bytes) -> None:
    few.write(byte * more, len(few.stored))
    error = few.refusal()
    assert type(error) is FormatError
    assert f"{more} bytes were appended to it" in str(error)


def test_a_unit_cut_out_of_the_middle_is_refused(many: Target) -> None:
    rest = many.stored[131072 + 6 * UNIT :]
    many.write(rest, 131072 + 5 * UNIT)
    os.ftruncate(many.fd, len(many.stored) - UNIT)
    assert type(many.refusal()) is FormatError
    many.write(bytes(UNIT), len(many.stored) - UNIT)
    assert many.damaged() == set(range(MANY))
