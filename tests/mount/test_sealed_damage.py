"""Damage to a sealed layer, as seen through the kernel: EIO and a line that names it.

Every file reads exactly right or fails with EIO, and those that the damage does not touch read
right; there is no third way.  That no bit of a layer escapes is shown in tests/unit; here it is
shown that nothing between a worker and a reader makes wrong bytes of an error.
"""

from __future__ import annotations

import mmap
import os
import re
import shutil
import signal
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from cisfs.cli.main import main
from cisfs.crypto.hashes import unit_hash
from tests.mount.harness import layers
from tests.mount.harness.layers import BLOCK, Material, block, flip, forget, fresh, unless_eio
from tests.mount.harness.processes import Child
from tests.mount.harness.sealed import SealedLab, lab_in
from tests.mount.harness.trees import look

pytestmark = [pytest.mark.fuse, pytest.mark.root]

HEADER, SLOTS, RESERVED, UNITS = 0, 4096, 65_536, 131_072
LONG = 130  # blocks in the longest file: more than one block of the hash tree vouches for
MANY = 150  # empty files, so that the metadata takes some units
SAMPLES = 4  # flips in each unit, beside those at its edges


def distinct(count: int, seed: int) -> bytes:
    """Blocks of which no two 16-byte pieces are alike."""
    size = count * BLOCK // 16
    return b"".join((seed << 64 | number).to_bytes(16, "big") for number in range(1, size + 1))


def populate(tree: Path, seed: int = 0) -> None:
    """Files of whole blocks; what is in no file is metadata."""
    (tree / "dir").mkdir(parents=True)
    (tree / "one").write_bytes(distinct(1, seed + 1))
    (tree / "dir/three").write_bytes(distinct(3, seed + 2))
    (tree / "long").write_bytes(distinct(LONG, seed + 3))
    (tree / "link").symlink_to("dir/three")
    for number in range(MANY):
        (tree / f"{number:03}").touch()
        os.setxattr(tree / f"{number:03}", "user.number", b"%d" % number * 20)


FILES = ("one", "dir/three", "long")


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    """A layer of units of 4 KiB, as long as a page: each page is of one unit."""
    base = tmp_path_factory.mktemp("material")
    populate(base / "tree")
    return Material.make(base, base / "tree", unit_size=BLOCK)


@pytest.fixture
def lab(tmp_path: Path, material: Material) -> Iterator[SealedLab]:
    """A layer to damage; its workers keep nothing that they have read or checked."""
    with lab_in(tmp_path, material, copy=True) as made:
        made.damaged = True
        made.use_faulty_workers("forgetful")
        yield made


@dataclass(frozen=True)
class Place:
    """Where the block of a file is: in which unit."""

    name: str
    offset: int
    unit: int

    def read(self, lab: SealedLab) -> bytes | None:
        """The block, read from the layer; None for EIO."""
        return unless_eio(lambda: block(lab.mountpoint / self.name, self.offset))

    def content(self, lab: SealedLab) -> bytes:
        """What it has to be."""
        return (lab.tree / self.name).read_bytes()[self.offset : self.offset + BLOCK]


def places(material: Material) -> list[Place]:
    """Where each block of each file is."""
    image = material.image.read_bytes()
    found = []
    for name in FILES:
        content = (material.tree / name).read_bytes()
        for offset in range(0, len(content), BLOCK):
            at = image.index(content[offset : offset + BLOCK])
            assert at % BLOCK == 0
            found.append(Place(name, offset, at // BLOCK))
    return found


def some(all_places: list[Place]) -> list[Place]:
    """The first and the last few, and some of the rest: a read that fails takes the kernel long."""
    return [*all_places[:6], *all_places[6:-2:13], *all_places[-2:]]


def blamed(lab: SealedLab) -> set[int]:
    """The units that the log names."""
    return {int(number) for number in re.findall(r"unit (\d+) was", "\n".join(lab.log.lines()))}


def assert_right(lab: SealedLab, all_places: list[Place], lost: Collection[int] = ()) -> None:
    """Every block reads right, but for those in the `lost` units, which cannot be read at all."""
    for place in all_places:
        assert place.read(lab) == (None if place.unit in lost else place.content(lab)), place


# ---- the units of files


def test_flips_in_each_unit(lab: SealedLab, material: Material) -> None:
    all_places = places(material)
    lab.mount("--workers", "1")
    for place in all_places:
        start, content = UNITS + place.unit * BLOCK, place.content(lab)
        within = {0, BLOCK - 1, *range(place.unit % 337, BLOCK, BLOCK // SAMPLES)}
        for at in sorted(within):
            flip(lab.layer, start + at, at % 8)
            assert place.read(lab) is None, (place, at)
            flip(lab.layer, start + at, at % 8)
        assert place.read(lab) == content
    assert blamed(lab) == {place.unit for place in all_places}
    lab.log.allow(rf"{lab.layer}: unit \d+ was altered \(image bytes \d+ to \d+\)")


def test_a_flip_costs_its_unit_only(lab: SealedLab, material: Material) -> None:
    all_places = some(places(material))
    lab.mount()
    for place in (all_places[0], all_places[2], all_places[4], all_places[-1]):
        flip(lab.layer, UNITS + place.unit * BLOCK + 77)
        assert_right(lab, all_places, {place.unit})
        assert unless_eio(partial(fresh, lab.mountpoint / place.name)) is None
        lab.log.expect(rf"unit {place.unit} was altered")
        lab.log.judge()
        flip(lab.layer, UNITS + place.unit * BLOCK + 77)
    assert_right(lab, all_places)


@pytest.mark.parametrize("options", [[], ["--loop-device"]])
def test_a_flip_under_a_live_mount_in_a_large_unit(tmp_path: Path, options: list[str]) -> None:
    """With units of 64 KiB, read-ahead of a MiB, and workers that keep what they may."""
    unit = 64 * 1024
    layers.plain_tree(tmp_path / "tree")
    with lab_in(tmp_path, Material.make(tmp_path, tmp_path / "tree"), copy=True) as lab:
        lab.damaged = True
        content = (lab.tree / "large").read_bytes()
        path = lab.mount(*options) / "large"
        assert fresh(path) == content
        number = lab.material.image.read_bytes().index(content[5 * unit : 6 * unit]) // unit
        bad = range(number * unit, (number + 1) * unit)
        flip(lab.layer, UNITS + bad[unit // 2])
        assert unless_eio(partial(fresh, path)) in (None, content)  # a worker may have kept it
        lab.kill(*lab.workers)
        assert unless_eio(partial(fresh, path)) is None
        first = lab.material.image.read_bytes().index(content[:BLOCK])
        for offset in range(4 * unit, 8 * unit, BLOCK):
            got = unless_eio(partial(block, path, offset))
            if first + offset in bad:
                assert got is None
            else:
                assert got == content[offset : offset + BLOCK], offset
        lab.log.expect("it is replaced")
        lab.log.expect(rf"unit {number} was altered \(image bytes {bad[0]} to {bad[-1]}\)")
        flip(lab.layer, UNITS + bad[unit // 2])
        assert fresh(path) == content


def test_a_mapped_page_of_an_altered_unit_is_a_bus_error(
    lab: SealedLab, material: Material
) -> None:
    place = places(material)[0]
    flip(lab.layer, UNITS + place.unit * BLOCK)
    path = lab.mount() / place.name

    def touch() -> int:
        signal.signal(signal.SIGBUS, signal.SIG_DFL)
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
            return mapped[0]

    child = Child(touch)
    with pytest.raises(AssertionError, match=f"ended with -{signal.SIGBUS.value}"):
        child.result()
    lab.log.expect(rf"unit {place.unit} was altered")


def test_units_exchanged(lab: SealedLab, material: Material) -> None:
    all_places = some(places(material))
    lab.mount()
    stored = lab.layer.read_bytes()
    pairs = [(all_places[0], all_places[1]), (all_places[4], all_places[-1])]
    with lab.layer.open("r+b", buffering=0) as file:
        for one, other in pairs:
            for to, source in ((one, other), (other, one)):
                piece = stored[UNITS + source.unit * BLOCK :][:BLOCK]
                os.pwrite(file.fileno(), piece, UNITS + to.unit * BLOCK)
            assert_right(lab, all_places, {one.unit, other.unit})
            os.pwrite(file.fileno(), stored, 0)
        os.pwrite(file.fileno(), bytes(BLOCK), UNITS + all_places[1].unit * BLOCK)
        assert_right(lab, all_places, {all_places[1].unit})
        os.pwrite(file.fileno(), stored, 0)
    assert blamed(lab) == {each.unit for pair in pairs for each in pair}
    lab.log.allow("was altered")


def test_units_of_another_layer_of_the_same_image_and_key(
    lab: SealedLab, material: Material
) -> None:
    """Units of the same number, and then everything but the header, and the whole tree."""
    other = lab.base / "other.cis"
    layers.seal(material.image, other, material.credential, unit_size=BLOCK)
    theirs, ours = other.read_bytes(), lab.layer.read_bytes()
    all_places = some(places(material))
    lab.mount()
    with lab.layer.open("r+b", buffering=0) as file:
        for place in (all_places[0], all_places[-1]):
            start = UNITS + place.unit * BLOCK
            os.pwrite(file.fileno(), theirs[start : start + BLOCK], start)
            assert_right(lab, all_places, {place.unit})
            lab.log.expect(rf"unit {place.unit} was altered")
            lab.log.judge()
            os.pwrite(file.fileno(), ours, 0)
        lab.log.allow("a block of the hash tree was altered")
        everything = {place.unit for place in all_places}
        for start in (lab.geometry.tree_offset, UNITS, RESERVED, SLOTS):
            os.pwrite(file.fileno(), theirs[start:], start)
            assert_right(lab, all_places, everything)
            os.pwrite(file.fileno(), ours, 0)
    assert_right(lab, all_places)


# ---- the hash tree


def test_flips_in_the_hash_tree(lab: SealedLab, material: Material) -> None:
    """Each byte of a hash, and every sixteenth of all; a failed read takes the kernel a while."""
    all_places = places(material)
    geometry = lab.geometry
    assert geometry.level_blocks == (2, 1)
    first = next(place for place in all_places if place.unit < 128)
    last = next(place for place in all_places if place.unit >= 128)
    lab.mount("--workers", "1")
    # While they are open the kernel need not read where they are, perhaps from a lost unit.
    kept = [os.open(lab.mountpoint / place.name, os.O_RDONLY) for place in (first, last)]
    for number, lost in enumerate([(first,), (last,), (last, first)]):
        start = geometry.block_offset(number)
        for at in {*range(start, start + BLOCK, 16), *range(start + 32, start + 64)}:
            flip(lab.layer, at, at % 8)
            assert lost[0].read(lab) is None, at
            flip(lab.layer, at, at % 8)
        flip(lab.layer, start)
        for place in (first, last):
            assert place.read(lab) == (None if place in lost else place.content(lab))
        flip(lab.layer, start)
        for place in (first, last):
            assert place.read(lab) == place.content(lab)
    for fd in kept:
        os.close(fd)
    lab.log.allow(rf"{lab.layer}: a block of the hash tree was altered: units \d+ to \d+ cannot be")


def test_a_hash_made_to_fit(lab: SealedLab, material: Material) -> None:
    """The tree takes no key: whoever alters a unit can alter its hash too, but not the root."""
    victim = next(place for place in places(material) if place.unit < 128)
    start = UNITS + victim.unit * BLOCK
    flip(lab.layer, start + 5)
    with lab.layer.open("r+b", buffering=0) as file:
        hashed = unit_hash(os.pread(file.fileno(), BLOCK, start))
        offset = lab.geometry.tree_offset + lab.geometry.hash_offset(victim.unit)
        os.pwrite(file.fileno(), hashed, offset)
    code, said = lab.refused(*lab.mount_words())  # the file system begins below the same block
    assert code == 17
    assert str(lab.layer) in said
    lab.log.expect("a block of the hash tree was altered: units 0 to 127 cannot be checked")


# ---- everything before the units


def test_each_byte_of_the_header_and_samples_of_the_rest(lab: SealedLab) -> None:
    """By the command itself, called in another process: thousands of interpreters take minutes."""
    used = SLOTS + len(lab.layer.read_bytes()[SLOTS:RESERVED].rstrip(b"\0"))
    rest = [*range(used, UNITS, 509), RESERVED - 1, RESERVED, UNITS - 1]
    offsets = [*range(HEADER, SLOTS), *range(SLOTS, used, 3), *rest]
    words = [str(word) for word in lab.mount_words()]

    def attempt() -> dict[int, int]:
        codes = {}
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        for at in offsets:
            flip(lab.layer, at, at % 8)
            codes[at] = main(words)
            assert codes[at] > 0, f"mounted in spite of byte {at}"
            flip(lab.layer, at, at % 8)
        return codes

    codes = Child(attempt, patience=100).result()
    assert set(codes.values()) == {10, 11, 12, 13, 16}
    assert {codes[at] for at in range(8)} == {10}
    assert {codes[at] for at in range(48, 80)} == {16}
    assert {codes[at] for at in offsets if at >= SLOTS} == {11}
    assert not lab.is_mounted
    lab.mount()
    assert fresh(lab.mountpoint / "one") == (lab.tree / "one").read_bytes()


# ---- the units of the file system itself


def listing(path: Path) -> list[str]:
    return sorted(os.listdir(path))


def everything_seen(lab: SealedLab) -> dict[str, object]:
    """All there is in the mount, or None for what could not be read."""
    seen: dict[str, object] = {}
    names = [*FILES, "dir", "link", ".", *(f"{number:03}" for number in range(0, MANY, 7))]
    for name in names:
        seen[name] = unless_eio(partial(look, lab.mountpoint / name))
    for name in (".", "dir"):
        seen[f"names in {name}"] = unless_eio(partial(listing, lab.mountpoint / name))
    return seen


def test_flips_in_the_metadata(lab: SealedLab, material: Material) -> None:
    """Either the mount is refused, or what it shows is right or EIO."""
    lab.mount()
    right = everything_seen(lab)
    lab.umount()
    of_files = {place.unit for place in places(material)}
    metadata = [unit for unit in range(lab.geometry.unit_count) if unit not in of_files]
    assert len(metadata) > 4
    refused = 0
    for unit in metadata:
        for at in (1024 + 3, BLOCK - 1):
            offset = UNITS + unit * BLOCK + at
            flip(lab.layer, offset)
            ended = lab.cisfs(*lab.mount_words("--workers", "1"))
            refused += ended.returncode == 17
            if ended.returncode == 0:
                seen = everything_seen(lab)
                assert all(seen[name] in (None, right[name]) for name in right), unit
                lab.umount()
            else:
                assert ended.returncode == 17
                assert ended.stderr.count("\n") == 1
            lab.log.expect(rf"unit {unit} was altered")
            lab.log.judge()
            flip(lab.layer, offset)
    assert refused
    lab.mount()
    assert everything_seen(lab) == right


# ---- its length


def test_a_layer_that_is_cut_off_while_it_is_mounted(lab: SealedLab, material: Material) -> None:
    all_places = some(places(material))
    stored = lab.layer.read_bytes()
    lab.mount()
    assert_right(lab, all_places)
    middle = sorted(place.unit for place in all_places)[len(all_places) // 2]
    everything = {place.unit for place in all_places}
    for size, cut_off in [
        (lab.geometry.tree_offset + 100, everything),
        (UNITS + middle * BLOCK + 100, everything),
        (100, everything),
        (0, everything),
    ]:
        os.truncate(lab.layer, size)
        assert_right(lab, all_places, cut_off)
        lab.layer.write_bytes(stored)
    lab.log.allow(r"a block of the hash tree was altered|unit \d+ was cut off")
    assert_right(lab, all_places)


def test_what_workers_know_of_the_tree_outlives_its_end(tmp_path: Path, material: Material) -> None:
    """The units that are left are right still, and those that are not are said to be cut off."""
    with lab_in(tmp_path, material, copy=True) as lab:
        lab.damaged = True
        all_places = places(material)
        lab.mount("--workers", "1")
        assert_right(lab, all_places)
        middle = sorted(place.unit for place in all_places)[len(all_places) // 2]
        os.truncate(lab.layer, UNITS + middle * BLOCK + 100)
        lost = {place.unit for place in all_places if place.unit >= middle}
        assert_right(lab, all_places, lost)
        lab.log.expect(rf"unit {middle} was cut off")
        lab.log.allow(r"unit \d+ was cut off")
        shutil.copyfile(material.layer, lab.layer)
        forget(lab.mountpoint / "long")
        assert_right(lab, all_places)


def test_verify_says_the_same(lab: SealedLab, material: Material) -> None:
    place = places(material)[2]
    flip(lab.layer, UNITS + place.unit * BLOCK)
    lab.mount()
    assert place.read(lab) is None
    lab.log.expect(rf"unit {place.unit} was altered")
    ended = lab.cisfs("verify", lab.layer, *lab.with_key)
    assert ended.returncode == 19
    assert f"unit {place.unit}: altered" in ended.stdout
