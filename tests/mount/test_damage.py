"""Damage that turns up, or is done, while a vault is mounted: EIO and a line that names it."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mount.harness.lab import Lab
from tests.mount.harness.linux import fails
from tests.mount.harness.processes import Child

pytestmark = [pytest.mark.fuse, pytest.mark.root]

UNIT = 32 * 1024
SLOT = UNIT + 16
CONTENT = b"".join(bytes([unit]) * UNIT for unit in range(5))


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1]))


def assert_eio(act: Callable[[], object]) -> None:
    with fails(errno.EIO):
        act()


@pytest.fixture
def stored(lab: Lab) -> Path:
    """The backing file of /dir/file, of five units, in a vault mounted anew."""
    lab.damaged = True
    (lab.mount() / "dir").mkdir()
    (lab.mountpoint / "dir/file").write_bytes(CONTENT)
    path = lab.stored(lab.mountpoint / "dir/file")
    lab.remount()
    return path


def read_unit(lab: Lab, unit: int) -> bytes:
    """One unit, without the read-ahead that would touch its neighbours."""
    fd = os.open(lab.mountpoint / "dir/file", os.O_RDONLY | os.O_DIRECT)
    try:
        return os.pread(fd, UNIT, unit * UNIT)
    finally:
        os.close(fd)


@pytest.mark.parametrize("within", [0, 5000, UNIT, UNIT + 15])
def test_a_flipped_bit_costs_its_unit_only(lab: Lab, stored: Path, within: int) -> None:
    flip(stored, 32 + 2 * SLOT + within)
    assert_eio(lambda: read_unit(lab, 2))
    lab.expect(r"/dir/file.*unit 2 ")
    lab.judge_log()
    for unit in (0, 1, 3, 4):
        assert read_unit(lab, unit) == bytes([unit]) * UNIT
    lab.umount()
    assert [(f["path"], f["unit"]) for f in lab.findings()] == [("/dir/file", 2)]


def test_a_damaged_unit_can_be_overwritten_as_a_whole(lab: Lab, stored: Path) -> None:
    flip(stored, 32 + 2 * SLOT)
    with (lab.mountpoint / "dir/file").open("r+b", buffering=0) as file:
        os.pwrite(file.fileno(), b"n" * UNIT, 2 * UNIT)
    assert read_unit(lab, 2) == b"n" * UNIT
    lab.umount()
    assert lab.findings() == []


def test_a_zeroed_unit_is_no_hole(lab: Lab, stored: Path) -> None:
    with stored.open("r+b") as file:
        file.seek(32 + SLOT)
        file.write(bytes(SLOT))
    assert_eio(lambda: read_unit(lab, 1))
    lab.expect(r"/dir/file.*unit 1 ")


@pytest.mark.parametrize("size", [0, 10, 32, 32 + 3 * SLOT, 32 + 4 * SLOT + 100])
def test_a_truncated_file(lab: Lab, stored: Path, size: int) -> None:
    os.truncate(stored, size)
    assert_eio((lab.mountpoint / "dir/file").read_bytes)
    lab.expect(r"/dir/file")
    lab.umount()
    assert [f["path"] for f in lab.findings()] == ["/dir/file"]


def test_a_damaged_header(lab: Lab, stored: Path) -> None:
    flip(stored, 20)
    assert_eio((lab.mountpoint / "dir/file").read_bytes)
    lab.expect(r"/dir/file")


def test_a_file_that_is_truncated_while_it_is_open(lab: Lab, stored: Path) -> None:
    fd = os.open(lab.mountpoint / "dir/file", os.O_RDONLY | os.O_DIRECT)
    os.truncate(stored, 32 + 2 * SLOT)
    assert os.pread(fd, UNIT, UNIT) == bytes([1]) * UNIT
    assert_eio(lambda: os.pread(fd, UNIT, 3 * UNIT))
    os.close(fd)
    lab.expect(r"/dir/file.*truncated")


def test_a_damaged_name_is_left_out_and_named(lab: Lab, stored: Path) -> None:
    (lab.mountpoint / "dir/other").touch()
    lab.remount()
    broken = stored.with_name(stored.name[:-2] + ("AA" if stored.name[-2:] != "AA" else "BB"))
    stored.rename(broken)
    assert os.listdir(lab.mountpoint / "dir") == ["other"]
    lab.expect(rf"/dir.*{broken.name}")
    assert not (lab.mountpoint / "dir/file").exists()


def test_a_damaged_directory_id(lab: Lab, stored: Path) -> None:
    flip(stored.parent / "cisfs.dir", 1)
    assert_eio(lambda: os.listdir(lab.mountpoint / "dir"))
    lab.expect(r"/dir")
    assert os.listdir(lab.mountpoint) == ["dir"]


def test_a_damaged_symlink(lab: Lab, stored: Path) -> None:
    link = lab.mountpoint / "link"
    link.symlink_to("a target")
    backing = lab.stored(link)
    target = os.readlink(backing)
    lab.remount()
    backing.unlink()
    backing.symlink_to(target[:-4] + "AAAA")
    assert_eio(lambda: os.readlink(link))
    lab.expect(r"/link")
    assert stored.exists()


def test_a_damaged_attribute(lab: Lab, stored: Path) -> None:
    file = lab.mountpoint / "dir/file"
    os.setxattr(file, "user.x", b"value")
    (name,) = os.listxattr(stored)
    lab.remount()
    os.setxattr(stored, name, b"\0" + os.getxattr(stored, name)[1:])
    assert_eio(lambda: os.getxattr(file, "user.x"))
    lab.expect(r"/dir/file")


def test_a_vanished_backing_directory_gives_errors_and_can_be_unmounted(
    lab: Lab, stored: Path
) -> None:
    reading = os.open(lab.mountpoint / "dir/file", os.O_RDONLY)
    shutil.rmtree(lab.vault)
    assert not stored.exists()

    def use() -> list[str]:
        failed = []
        attempts: list[Callable[[], object]] = [
            lambda: os.listdir(lab.mountpoint / "dir"),
            lambda: (lab.mountpoint / "new").write_bytes(b"x"),
            (lab.mountpoint / "dir/new").mkdir,
            lambda: os.stat(lab.mountpoint / "never-seen"),
        ]
        for attempt in attempts:
            try:
                attempt()
            except OSError as error:
                failed.append(errno.errorcode[error.errno or 0])
        return failed

    failed = Child(use, patience=30).result()
    assert len(failed) >= 3, failed
    os.close(reading)
    lab.umount()
    assert not lab.is_mounted
