"""A mounted layer that is not all here: what is read is fetched, and nothing else has to be."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cisfs.layer.origin import Origin
from cisfs.layer.sealed_file import stored
from cisfs.registry import artifacts
from cisfs.registry.artifacts import PushedLayer
from cisfs.registry.pull import install
from tests.mount.harness import layers
from tests.mount.harness.layers import Material, fresh
from tests.mount.harness.lazy import LazyLab, lazy_lab_in
from tests.mount.harness.linux import fails
from tests.mount.harness.processes import Child, wait_until
from tests.registry.harness.faults import Answer, Fault, RandomCuts, Rule

pytestmark = [pytest.mark.fuse, pytest.mark.root]

MIB = 1 << 20
FILES = 6
SIZE = 12 * MIB
GET = r"^GET .*/blobs/"
AWAY = "--fetch-timeout=2"


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    base = tmp_path_factory.mktemp("material")
    (base / "tree").mkdir()
    for number in range(FILES):
        (base / "tree" / f"f{number}").write_bytes(os.urandom(SIZE))
    return Material.make(base, base / "tree")


@pytest.fixture
def lab(tmp_path: Path, material: Material) -> Iterator[LazyLab]:
    with lazy_lab_in(tmp_path, material) as made:
        yield made


def sums(root: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(fresh(path)).hexdigest() for path in root.iterdir()}


def part(lab: LazyLab, name: str, offset: int, size: int = 4096) -> bytes:
    """Read from a file past the kernel's cache, and check it."""
    with (lab.mountpoint / name).open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        got = os.pread(file.fileno(), size, offset)
    with (lab.tree / name).open("rb") as file:
        assert os.pread(file.fileno(), size, offset) == got
    return got


# ---- in peace


def test_what_is_not_read_is_not_waited_for(lab: LazyLab) -> None:
    """A mount and a small read transfer a small part."""
    lab.front.limit(20e6)  # the rest would take four seconds
    lab.mount()
    assert sorted(os.listdir(lab.mountpoint)) == [f"f{number}" for number in range(FILES)]
    part(lab, "f3", 5 * MIB)
    assert lab.front.sent < 4 * MIB
    asked = [seen.header("range") for seen in lab.front.requests(GET)]
    assert None not in asked
    assert len(asked) < 10
    assert not lab.is_complete


def test_a_pull_meanwhile_brings_the_rest(lab: LazyLab) -> None:
    """In the file that is mounted: nobody has to fetch it again."""
    lab.front.limit(1e6)
    lab.mount()
    part(lab, "f3", 5 * MIB)
    directory, source = lab.layer.parent, Origin.read(lab.layer.parent)
    described = [artifacts.part(*each, directory.name) for each in source.parts]
    pushed = PushedLayer(directory.name, tuple(described))
    text = stored(lab.layer)[1]
    install(directory, pushed, text, source, lambda fd: os.pwrite(fd, lab.blob, 0))
    lab.front.stop()
    assert sums(lab.mountpoint) == sums(lab.tree)
    wait_until(lambda: not lab.fetchers, "no fetcher is needed any more")
    assert sorted(os.listdir(directory)) == ["layer.cis", "source.json"]


def test_everything_read_is_fetched_once(lab: LazyLab) -> None:
    lab.mount()
    assert sums(lab.mountpoint) == sums(lab.tree)
    lab.wait_until_complete()
    header = len(lab.blob) - sum(seen.sent for seen in lab.front.requests(GET))
    assert header == 131072, "header and slots were here, all else came once"
    assert lab.stored() == lab.blob
    wait_until(lambda: not lab.fetchers, "the fetcher has ended")
    lab.umount()
    lab.front.stop()
    lab.mount()  # an ordinary layer now
    assert sums(lab.mountpoint) == sums(lab.tree)
    assert sorted(os.listdir(lab.layer.parent)) == ["layer.cis", "source.json"]
    lab.front.resume()


def test_the_rest_comes_by_itself(lab: LazyLab) -> None:
    lab.mount()
    lab.wait_until_complete()
    assert lab.stored() == lab.blob
    lab.front.stop()
    assert sums(lab.mountpoint) == sums(lab.tree)
    lab.front.resume()


def test_two_mounts_share_what_is_fetched(lab: LazyLab, tmp_path: Path) -> None:
    lab.front.limit(20e6)
    other = tmp_path / "other"
    other.mkdir()
    lab.mount()
    lab.must(*lab.mount_words(at=other))
    try:
        assert len(lab.fetchers) == 1
        part(lab, "f1", 0, MIB)
        lab.front.stop()
        with (other / "f1").open("rb") as file, (lab.tree / "f1").open("rb") as original:
            assert file.read(MIB) == original.read(MIB)
        lab.log.allow("cannot fetch what is missing|fetching goes on")
    finally:
        lab.front.resume()
        lab.must("umount", other)


def test_the_fetcher_leaves_when_nobody_is_left(lab: LazyLab) -> None:
    lab.front.limit(5e6)
    lab.mount()
    assert len(lab.fetchers) == 1
    lab.umount()
    wait_until(lambda: not lab.fetchers, "the fetcher has ended", patience=15)
    assert not lab.is_complete
    before = lab.front.sent
    lab.mount()
    part(lab, "f0", 0)
    assert lab.front.sent - before < 4 * MIB


# ---- the registry is away


def test_while_the_registry_is_away_what_is_here_can_be_read(lab: LazyLab) -> None:
    lab.front.limit(20e6)
    lab.mount("--workers", "2", AWAY)
    part(lab, "f2", 0, MIB)
    lab.front.stop()
    readers = [Child(lambda: layers.block(lab.mountpoint / "f5", 11 * MIB)) for _ in range(4)]
    end = time.monotonic() + 1.5
    rounds = 0
    while time.monotonic() < end:
        part(lab, "f2", 0, MIB)
        rounds += 1
    assert rounds > 10
    for reader in readers:
        with fails(errno.EIO):
            reader.result()
    part(lab, "f2", 0, MIB)
    lab.front.resume()
    wait_until(lambda: fresh_or_none(lab, "f5") is not None, "it can be read again", patience=20)
    assert sums(lab.mountpoint) == sums(lab.tree)
    lab.log.expect("nor has it come within 2 s")
    lab.log.allow("cannot fetch what is missing|fetching goes on")
    assert len(lab.log.having("nor has it come")) <= 3
    # Once, and again by each of the fetcher's threads whose try ends when another's has succeeded.
    assert 1 <= len(lab.log.having("cannot fetch")) <= 5


def test_a_read_outlasts_a_short_absence(lab: LazyLab) -> None:
    lab.front.limit(20e6)
    lab.mount()
    part(lab, "f0", 0)
    lab.front.stop()
    reader = Child(lambda: layers.block(lab.mountpoint / "f4", 3 * MIB))
    time.sleep(2)
    lab.front.resume()
    assert reader.result() == (lab.tree / "f4").read_bytes()[3 * MIB :][: layers.BLOCK]
    lab.log.allow("cannot fetch what is missing|fetching goes on")


def test_a_silent_registry_does_not_hold_readers_for_ever(lab: LazyLab) -> None:
    lab.front.limit(20e6)
    lab.mount(AWAY)
    part(lab, "f0", 0)
    lab.front.rules = [Rule(GET, Fault(silent=True))]
    reader = Child(lambda: layers.block(lab.mountpoint / "f4", 3 * MIB))
    with fails(errno.EIO):
        reader.result()
    lab.front.forget()
    lab.log.expect("nor has it come within 2 s")
    lab.log.allow("cannot fetch what is missing|fetching goes on")


# ---- bad registries


def test_fifty_cuts(lab: LazyLab) -> None:
    lab.mount()
    lab.front.cuts = RandomCuts(7, 50, MIB)
    assert sums(lab.mountpoint) == sums(lab.tree)
    lab.wait_until_complete()
    assert lab.stored() == lab.blob
    assert lab.front.cuts.left <= 10
    lab.log.allow("cannot fetch what is missing|fetching goes on")


def test_a_registry_that_ignores_ranges(lab: LazyLab) -> None:
    lab.front.rules = [Rule(GET, Fault(ignore_range=True))]
    lab.mount()
    assert sums(lab.mountpoint) == sums(lab.tree)
    lab.wait_until_complete()
    assert lab.stored() == lab.blob
    assert lab.front.sent < len(lab.blob) + 16 * MIB
    lab.log.expect("all of the layer is fetched before it is read")


def zeros(piece: bytes) -> bytes:
    return bytes(len(piece))


def test_wrong_bytes_are_never_stored(lab: LazyLab) -> None:
    lab.front.limit(10e6)
    lab.mount(AWAY)
    lab.front.rules = [Rule(GET, Fault(alter=zeros))]
    with fails(errno.EIO):
        layers.block(lab.mountpoint / "f4", 3 * MIB)
    lab.log.expect("cannot fetch what is missing: .* is wrong")
    lab.log.allow("nor has it come within 2 s|cannot fetch what is missing|fetching goes on")
    lab.front.forget()
    wait_until(
        lambda: fresh_or_none(lab) == (lab.tree / "f4").read_bytes(), "it heals", patience=60
    )
    lab.wait_until_complete()
    assert lab.stored() == lab.blob


def fresh_or_none(lab: LazyLab, name: str = "f4") -> bytes | None:
    return layers.unless_eio(lambda: fresh(lab.mountpoint / name))


def test_an_answer_that_is_none(lab: LazyLab) -> None:
    lab.front.limit(10e6)
    lab.mount(AWAY)
    lab.front.rules = [Rule(GET, Answer(403))]
    with fails(errno.EIO):
        layers.block(lab.mountpoint / "f4", 3 * MIB)
    lab.front.forget()
    wait_until(lambda: fresh_or_none(lab) is not None, "it heals", patience=20)
    lab.log.expect("cannot fetch what is missing: .*forbidden")
    lab.log.allow("nor has it come within 2 s|fetching goes on")


def test_damage_here_is_fetched_anew(lab: LazyLab) -> None:
    """What a disk garbles while the layer is not complete is found out, and replaced."""
    lab.front.limit(20e6)
    lab.mount()
    part(lab, "f2", 0, MIB)
    lab.umount()
    wait_until(lambda: not lab.fetchers, "the fetcher has ended", patience=15)
    data = lab.layer.read_bytes()
    at = data.find(lab.blob[200_000:200_032])
    assert at == 200_000
    for offset in range(131072, len(data) - 4096 * 4, 65536):
        if any(data[offset : offset + 64]):
            layers.flip(lab.layer, offset + 17)
    lab.mount()
    part(lab, "f2", 0, MIB)
    assert sums(lab.mountpoint) == sums(lab.tree)
    lab.wait_until_complete()
    assert lab.stored() == lab.blob


# ---- deaths


def has_ended(child: Child) -> bool:
    return os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def test_no_reader_learns_of_any_death(lab: LazyLab) -> None:
    """Workers and fetchers are killed at random while everything is read for the first time."""
    lab.front.limit(10e6)
    lab.mount("--workers", "2")
    reader = Child(lambda: sums(lab.mountpoint), patience=90)
    choice = random.Random(3)
    victims = []
    while not has_ended(reader):
        time.sleep(choice.uniform(0.05, 0.5))
        pids = lab.fetchers if choice.random() < 0.15 else lab.workers
        if pids:
            victims.append(choice.choice(pids))
            os.kill(victims[-1], signal.SIGKILL)
    assert reader.result() == sums(lab.tree)
    assert len(victims) > 10
    lab.front.limit(None)
    lab.wait_until_complete()
    assert lab.stored() == lab.blob
    lab.log.expect("it is replaced")
    lab.log.allow("fetch")


def test_when_everybody_is_killed_what_was_fetched_stays(lab: LazyLab) -> None:
    lab.front.limit(20e6)
    lab.mount()
    part(lab, "f2", 0, MIB)
    lab.kill(*lab.fetchers, lab.supervisor)
    lab.umount()
    lab.front.forget()
    lab.mount()
    part(lab, "f2", 0, MIB)
    asked = [seen for seen in lab.front.requests(GET) if seen.sent > 4096]
    lab.log.allow("")
    assert sum(seen.sent for seen in asked) < 4 * MIB
