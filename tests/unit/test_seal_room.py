"""Where an image may be kept, how much memory there is for it, and images that are ready made."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cisfs.build import memory, room
from cisfs.build.superblock import check_image, is_image, superblock
from cisfs.build.workplace import Workplace
from cisfs.errors import NoFuseError, UsageError
from tests.unit.test_seal_arguments import superblock as packed

MIB = 1 << 20


# -- memory --------------------------------------------------------------------------------


@pytest.fixture
def system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of our own making: 100 MiB free, no swap, no control groups."""
    for name, text in (
        ("meminfo", "MemTotal: 999999 kB\nMemFree: 1 kB\nMemAvailable:   102400 kB\n"),
        ("swaps", "Filename\tType\tSize\tUsed\tPriority\n"),
        ("cgroup", ""),
    ):
        (tmp_path / name).write_text(text)
        monkeypatch.setattr(memory, f"_{name.upper()}", tmp_path / name)
    monkeypatch.setattr(memory, "_GROUPS", tmp_path / "groups")
    return tmp_path


def limit(system: Path, group: str, file: str, value: str) -> None:
    path = system / "groups" / group
    path.mkdir(parents=True, exist_ok=True)
    (path / file).write_text(f"{value}\n")


def test_what_is_available_is_what_the_kernel_says(system: Path) -> None:
    assert memory.available() == 100 * MIB
    (system / "meminfo").write_text("MemTotal: 5 kB\n")
    assert memory.available() == 0


def test_the_smallest_limit_of_a_group_or_one_above_it_counts(system: Path) -> None:
    (system / "cgroup").write_text("0::/above/ours\n")
    limit(system, "above/ours", "memory.max", "max")
    assert memory.available() == 100 * MIB
    limit(system, "above", "memory.max", str(30 * MIB))
    assert memory.available() == 30 * MIB
    limit(system, "above/ours", "memory.max", str(20 * MIB))
    assert memory.available() == 20 * MIB
    limit(system, "above/ours/below", "memory.max", "5")
    limit(system, "beside", "memory.max", "5")
    assert memory.available() == 20 * MIB


def test_groups_of_the_first_version_count_too(system: Path) -> None:
    (system / "cgroup").write_text("4:cpu:/x\n3:hugetlb,memory:/ours\n1:name=systemd:/y\n")
    limit(system, "memory/ours", "memory.limit_in_bytes", str(10 * MIB))
    limit(system, "memory/x", "memory.limit_in_bytes", "5")
    assert memory.available() == 10 * MIB


def test_a_container_that_sees_its_group_only_as_the_top(system: Path) -> None:
    (system / "cgroup").write_text("0::/../../elsewhere\n5:memory:/docker/out-of-sight\n")
    limit(system, "memory", "memory.limit_in_bytes", str(15 * MIB))
    assert memory.available() == 15 * MIB


def test_swap_is_in_use_when_some_is_listed_or_nobody_knows(system: Path) -> None:
    assert not memory.is_swapped()
    with (system / "swaps").open("a") as file:
        file.write("/dev/sda2 partition 1048572 0 -2\n")
    assert memory.is_swapped()
    (system / "swaps").unlink()
    assert memory.is_swapped()


# -- the choice of a place -----------------------------------------------------------------


class Places:
    """What is to be had, and what was taken."""

    def __init__(self) -> None:
        self.unswappable = True
        self.swapped = False
        self.taken: list[str] = []


@pytest.fixture
def places(monkeypatch: pytest.MonkeyPatch) -> Places:
    state = Places()

    def unswappable(_directory: Path) -> int | None:
        if not state.unswappable:
            return None
        state.taken.append("tmpfs")
        return os.memfd_create("tmpfs")

    @contextlib.contextmanager
    def in_vault(_place: Workplace) -> Iterator[int]:
        state.taken.append("vault")
        yield -1

    made = os.memfd_create

    def memfd(name: str) -> int:
        if name == "cisfs image":
            state.taken.append("memfd")
        return made(name)

    monkeypatch.setattr(memory, "available", lambda: 10 * MIB)
    monkeypatch.setattr(memory, "is_swapped", lambda: state.swapped)
    monkeypatch.setattr(room, "_unswappable", unswappable)
    monkeypatch.setattr(room, "_in_vault", in_vault)
    monkeypatch.setattr(os, "memfd_create", memfd)
    return state


@pytest.mark.parametrize(
    ("needed", "private", "unswappable", "swapped", "taken"),
    [
        (5 * MIB, True, True, False, "tmpfs"),
        (5 * MIB, True, True, True, "tmpfs"),
        (5 * MIB, True, False, False, "memfd"),
        (5 * MIB, False, True, False, "memfd"),
        (5 * MIB, True, False, True, "vault"),
        (5 * MIB, False, True, True, "vault"),
        (5 * MIB + 1, True, True, False, "vault"),
    ],
)
def test_memory_only_if_it_fits_and_cannot_be_swapped_out(
    tmp_path: Path,
    places: Places,
    needed: int,
    private: bool,
    unswappable: bool,
    swapped: bool,
    taken: str,
) -> None:
    places.unswappable, places.swapped = unswappable, swapped
    place = Workplace(tmp_path / "x.cis")
    place.is_private = private
    with room.room(needed, place) as made:
        assert places.taken == [taken]
        assert made.limit == (None if taken == "vault" else 5 * MIB)
        if taken != "vault":
            assert os.fstat(made.fd).st_size == 0
            made.settle()
    if taken != "vault":
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(made.fd)
    assert list(tmp_path.iterdir()) == []


def test_it_is_said_what_fuse_is_wanted_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing() -> None:
        raise NoFuseError("no /dev/fuse")

    monkeypatch.setattr(memory, "available", lambda: 0)
    monkeypatch.setattr("cisfs.mount.points.require_fuse", missing)
    place = Workplace(tmp_path / "x.cis")
    with (
        pytest.raises(NoFuseError, match=r"too large for memory.*no /dev/fuse"),
        contextlib.closing(place),
        room.room(1, place),
    ):
        pytest.fail("there is no room")
    assert list(tmp_path.iterdir()) == []


def test_the_directory_of_a_seal_is_private_and_goes_with_it(tmp_path: Path) -> None:
    place = Workplace(tmp_path / "layer.cis")
    with contextlib.closing(place):
        assert list(tmp_path.iterdir()) == []
        made = [place.directory("one"), place.directory("two")]
        (scratch,) = tmp_path.iterdir()
        assert scratch.name.startswith(".layer.cis.")
        assert scratch.suffix == ".scratch"
        assert scratch.stat().st_mode & 0o777 == 0o700
        assert [path.parent for path in made] == [scratch, scratch]
        (made[0] / "file").touch()
    assert list(tmp_path.iterdir()) == []


def test_a_long_name_leaves_room_for_the_rest(tmp_path: Path) -> None:
    place = Workplace(tmp_path / ("ü" * 127))
    with contextlib.closing(place):
        assert place.directory("one").is_dir()


# -- ready-made images ---------------------------------------------------------------------


def opened(path: Path, content: bytes) -> int:
    path.write_bytes(content)
    return os.open(path, os.O_RDONLY)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"", None),
        (packed()[:1111], None),
        (bytes(4096), None),
        (packed()[:1112], (8192, 3, 0)),
        (packed(devices=1), (8192, 3, 1)),
    ],
)
def test_an_image_is_known_by_its_superblock(
    tmp_path: Path, content: bytes, found: tuple[int, int, int] | None
) -> None:
    fd = opened(tmp_path / "image", content)
    assert superblock(fd) == found
    assert is_image(fd) == (found is not None)
    os.close(fd)


def test_what_is_no_regular_file_is_no_image() -> None:
    for fd in os.pipe():
        assert not is_image(fd)
        os.close(fd)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (bytes(8192), "no EROFS image"),
        (packed(devices=1) + bytes(4096), "in another file"),
        (packed(), "cut off"),
        (packed() + bytes(4097), "multiple|whole blocks"),
    ],
)
def test_an_image_that_will_not_do_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    fd = opened(tmp_path / "image", content)
    with pytest.raises(UsageError, match=reason):
        check_image(fd, tmp_path / "image")
    os.close(fd)


def test_an_image_may_be_followed_by_whole_blocks(tmp_path: Path) -> None:
    fd = opened(tmp_path / "image", packed() + bytes(8192))
    assert check_image(fd, tmp_path / "image") == (8192, 3, 0)
    os.close(fd)
