"""What someone without the key can do to a vault's files: be noticed, or change nothing.

A reader gets the right bytes or an error, never wrong bytes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cisfs.errors import CisfsError, FormatError, IntegrityError
from cisfs.format.geometry import Geometry
from cisfs.layer.file import EncryptedFile, FileContext
from cisfs.layer.tree import ROOT, Change
from cisfs.layer.vault import Vault
from tests.unit import vaults
from tests.unit.scenarios import pattern
from tests.unit.vaults import ME, UNIT, fetch, listing, put

G = Geometry(UNIT)
SLOT = G.slot_size
# Two units, a hole of three, another unit, a hole of one, and a part.
PLAIN = (
    pattern(2 * UNIT, 65) + bytes(3 * UNIT) + pattern(UNIT, 97) + bytes(UNIT) + pattern(1003, 48)
)


@pytest.fixture
def vault(memory_path: Path) -> Iterator[Vault]:
    with vaults.opened(vaults.make(memory_path / "vault")) as vault:
        yield vault


class Target:
    """A file on disk to alter, the bytes it was stored as, and what it holds."""

    def __init__(self, vault: Vault, plain: bytes = PLAIN) -> None:
        self.plain = plain
        self._context: FileContext = replace(vault.context, journal=None)
        self.fd = os.open(vault.path, os.O_TMPFILE | os.O_RDWR)
        file = EncryptedFile.create(self.fd, vault.context)
        file.truncate(len(plain))
        for at in range(0, len(plain), UNIT):
            if any(plain[at : at + UNIT]):
                file.write(at, plain[at : at + UNIT])
        self.stored = os.pread(self.fd, 1 << 20, 0)

    def restore(self) -> None:
        os.ftruncate(self.fd, len(self.stored))
        os.pwrite(self.fd, self.stored, 0)

    def write(self, data: bytes, offset: int) -> None:
        os.pwrite(self.fd, data, offset)

    def read(self, offset: int = 0, length: int = 1 << 20) -> bytes:
        return bytes(EncryptedFile.open(self.fd, self._context).read(offset, length))

    def damaged(self) -> list[int]:
        return EncryptedFile.open(self.fd, self._context).damaged_units()

    def refuses(self, offset: int = 0, length: int = 1 << 20) -> bool:
        """Whether reading that range fails; if it does not, the bytes are the right ones."""
        try:
            got = self.read(offset, length)
        except CisfsError:
            return True
        assert vaults.same(got, self.plain[offset : offset + length])
        return False


@pytest.fixture
def target(vault: Vault) -> Iterator[Target]:
    target = Target(vault)
    assert vaults.same(target.read(), PLAIN)
    assert target.damaged() == []
    yield target
    os.close(target.fd)


def test_one_flipped_bit_in_any_byte_is_noticed_or_harmless(target: Target) -> None:
    missed = []
    for at, byte in enumerate(target.stored):
        target.write(bytes([byte ^ 1 << at % 8]), at)
        unit = G.unit_at_stored(at)
        if not target.refuses(G.unit_start(unit), UNIT):
            missed.append(at)
        target.write(bytes([byte]), at)
    # All that goes unnoticed is what a hole's slots hold beside marker and tag: zeros to anyone.
    assert all(G.unit_at_stored(at) in {2, 3, 4, 6} for at in missed)
    assert all(at - G.slot_offset(G.unit_at_stored(at)) < UNIT for at in missed)
    assert vaults.same(target.read(), PLAIN)


def test_every_bit_of_header_tags_marker_and_end_is_noticed(target: Target) -> None:
    places = [*range(32), *range(len(target.stored) - 32, len(target.stored))]
    for unit in range(7):
        places += range(G.tag_offset(unit), G.tag_offset(unit) + 16)
    places += [
        at for unit in (2, 4, 6) for at in range(G.slot_offset(unit), G.slot_offset(unit) + 32)
    ]
    for at in places:
        byte = target.stored[at]
        for bit in range(8):
            target.write(bytes([byte ^ 1 << bit]), at)
            assert target.refuses(), f"byte {at}, bit {bit}"
        target.write(bytes([byte]), at)
    assert vaults.same(target.read(), PLAIN)


def test_a_file_cut_at_any_length_is_refused(target: Target) -> None:
    for size in range(len(target.stored)):
        if size % 16 < 2 or len(target.stored) - size < 100:
            os.ftruncate(target.fd, size)
            with pytest.raises((FormatError, IntegrityError)):
                target.read()
            target.restore()


@pytest.mark.parametrize("more", [1, 15, 16, 17, 32, 48, SLOT, 2 * SLOT])
@pytest.mark.parametrize("byte", [b"\0", b"\1"])
def test_a_lengthened_file_is_refused(target: Target, more: int, byte: bytes) -> None:
    target.write(byte * more, len(target.stored))
    with pytest.raises((FormatError, IntegrityError)):
        target.read()


@pytest.mark.parametrize("size", [0, 1, UNIT, UNIT + 100, 2 * UNIT, 5 * UNIT])
def test_a_file_cut_to_a_whole_size_with_the_old_end_is_refused(target: Target, size: int) -> None:
    end = target.stored[G.trailer_offset(len(PLAIN)) :][:16]
    os.ftruncate(target.fd, G.cipher_size(size))
    target.write(end.ljust(G.trailer_length(size), b"\0"), G.trailer_offset(size))
    with pytest.raises(IntegrityError, match="the end of the file"):
        target.read()


def test_units_cannot_change_places(target: Target) -> None:
    for one in range(7):
        for other in range(one):
            first, second = G.slot_offset(one), G.slot_offset(other)
            target.write(target.stored[first : first + SLOT], second)
            target.write(target.stored[second : second + SLOT], first)
            both_inside_holes = one in {2, 3, 4, 6} and other in {2, 3, 4, 6}
            assert target.refuses() or both_inside_holes
            target.restore()


def test_units_cannot_come_from_another_file(vault: Vault, target: Target) -> None:
    other = Target(vault)
    assert other.stored != target.stored
    for unit in (0, 1, 5):
        at = G.slot_offset(unit)
        target.write(other.stored[at : at + SLOT], at)
        with pytest.raises(IntegrityError, match=f"unit {unit} was altered"):
            target.read()
        target.restore()
    for unit in (2, 4, 6):  # nor can a hole
        at = G.slot_offset(unit)
        target.write(other.stored[at : at + SLOT], at)
        assert target.refuses()
        target.restore()
    os.close(other.fd)


def test_a_header_cannot_come_from_another_file(vault: Vault, target: Target) -> None:
    other = Target(vault)
    target.write(other.stored[:32], 0)
    with pytest.raises(IntegrityError, match="the end of the file, or its header"):
        target.read()
    os.close(other.fd)


@pytest.mark.parametrize("unit", [0, 1, 5])
def test_a_zeroed_unit_is_no_hole(target: Target, unit: int) -> None:
    at = G.slot_offset(unit)
    for start, length in [(at, SLOT), (at + UNIT, 16), (at, UNIT)]:
        target.write(bytes(length), start)
        with pytest.raises(IntegrityError, match=f"unit {unit} was altered"):
            target.read()
        assert target.damaged() == [unit]
        target.restore()


def test_zeroing_everything_from_a_unit_on_is_noticed(target: Target) -> None:
    end = G.trailer_offset(len(PLAIN))
    for unit in range(7):
        at = G.slot_offset(unit)
        target.write(bytes(end - at), at)
        assert target.refuses()
        target.restore()


def test_a_zeroed_marker_ends_its_hole(target: Target) -> None:
    for marker, hole in [(2, {2, 3}), (4, {4}), (6, {6})]:
        target.write(bytes(32), G.slot_offset(marker))
        assert set(target.damaged()) == hole
        assert target.refuses()
        target.restore()


def test_a_marker_cannot_be_moved_or_widened(target: Target) -> None:
    marker = target.stored[G.slot_offset(2) :][:32]
    for unit in (0, 1, 5):
        slot = marker.ljust(SLOT, b"\0")
        for level in range(4):
            target.write(bytes([level]) + slot[1:], G.slot_offset(unit))
            with pytest.raises(IntegrityError, match=f"unit {unit} was altered"):
                target.read()
        target.restore()
    for level in range(63):
        target.write(bytes([level]), G.slot_offset(2))
        assert level == 1 or target.refuses()


@pytest.mark.parametrize("unit", range(8))
def test_a_unit_written_into_a_hole_cannot_be_zeroed_again(vault: Vault, unit: int) -> None:
    """The hole's old marker would vouch for it, if it were not taken back."""
    fd = os.open(vault.path, os.O_TMPFILE | os.O_RDWR)
    file = EncryptedFile.create(fd, vault.context)
    file.truncate(8 * UNIT)
    file.write(unit * UNIT, b"x" * UNIT)
    expected = bytes(unit * UNIT) + b"x" * UNIT + bytes((7 - unit) * UNIT)
    assert vaults.same(file.read(0, 8 * UNIT), expected)
    os.pwrite(fd, bytes(SLOT), G.slot_offset(unit))
    with pytest.raises(IntegrityError, match=f"unit {unit} was altered"):
        EncryptedFile.open(fd, vault.context).read(0, 8 * UNIT)
    os.close(fd)


def test_a_hole_that_was_cut_off_does_not_vouch_for_what_is_appended(vault: Vault) -> None:
    fd = os.open(vault.path, os.O_TMPFILE | os.O_RDWR)
    file = EncryptedFile.create(fd, vault.context)
    file.truncate(8 * UNIT)
    file.truncate(5 * UNIT)
    file.write(5 * UNIT, b"x" * UNIT)
    os.pwrite(fd, bytes(SLOT), G.slot_offset(5))
    with pytest.raises(IntegrityError, match="unit 5 was altered"):
        EncryptedFile.open(fd, vault.context).read(0, 6 * UNIT)
    os.close(fd)


# -- the tree ------------------------------------------------------------------------------


@pytest.fixture
def path(memory_path: Path) -> Path:
    """Two directories with a file of the same name, a link, and a long name."""
    path = vaults.make(memory_path / "vault")
    with vaults.mounted(path) as tree:
        for name in (b"one", b"two"):
            directory = tree.mkdir(ROOT, name, 0o755, ME).node
            put(tree, b"file", b"content of " + name, directory)
            put(tree, b"l" * 255, b"long name in " + name, directory)
            tree.symlink(directory, b"link", b"target in " + name, ME)
    return path


def stored_directories(path: Path) -> list[Path]:
    return [each for each in vaults.stored(path) if each.is_dir()]


def test_entries_cannot_be_moved_to_another_directory(path: Path) -> None:
    one, two = stored_directories(path)
    moved = {each.name for each in one.iterdir() if each.name != "cisfs.dir"}
    for stored in moved:
        (one / stored).rename(two / stored)
    with vaults.mounted(path) as tree:
        for name in (b"one", b"two"):
            directory = tree.lookup(ROOT, name).node
            names = listing(tree, directory)
            assert names in ([], [b"file", b"link", b"l" * 255])
            if names:
                assert fetch(tree, b"file", directory) == b"content of " + name


def test_a_directory_cannot_be_moved_to_another(path: Path) -> None:
    one, two = stored_directories(path)
    one.rename(two / one.name)
    with vaults.mounted(path) as tree:
        (name,) = listing(tree)
        assert listing(tree, tree.lookup(ROOT, name).node) == [b"file", b"link", b"l" * 255]


def test_a_copied_name_is_no_second_name(path: Path) -> None:
    one, _ = stored_directories(path)
    for each in vaults.stored(one):
        if each.is_file() and "." not in each.name:
            (one / (each.name[:-1] + ("A" if each.name[-1] != "A" else "B"))).write_bytes(
                each.read_bytes()
            )
    with vaults.mounted(path) as tree:
        for name in listing(tree):
            found = listing(tree, tree.lookup(ROOT, name).node)
            assert found == [b"file", b"link", b"l" * 255]


def test_nothing_readable_is_stored(path: Path) -> None:
    for each in path.rglob("*"):
        text = os.fsencode(each.name)
        if each.is_symlink():
            text += os.fsencode(os.readlink(each))
        elif each.is_file():
            text += each.read_bytes()
        for word in (b"content", b"target", b"one", b"llll", b"link"):
            assert word not in text or (word == b"one" and len(text) > 100)


def test_sizes_do_not_lie_about_what_can_be_read(path: Path) -> None:
    with vaults.mounted(path) as tree:
        node = put(tree, b"big", PLAIN)
        tree.setattr(node, Change(size=len(PLAIN) - 1))
        assert tree.getattr(node).size == len(PLAIN) - 1
    with vaults.mounted(path) as tree:
        assert tree.lookup(ROOT, b"big").size == len(PLAIN) - 1
        assert vaults.same(fetch(tree, b"big"), PLAIN[:-1])
