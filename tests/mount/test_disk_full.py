"""A full disk: the writer hears of it, what was there stays, and deleting makes room again."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.mount.harness import linux
from tests.mount.harness.lab import Lab, lab_in
from tests.mount.harness.linux import fails

pytestmark = [pytest.mark.fuse, pytest.mark.root]

MIB = 1 << 20


@pytest.fixture(params=["tmpfs", "ext4"])
def small(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Lab]:
    """A mounted vault on a file system of 16 MiB."""
    disk, image = tmp_path / "disk", tmp_path / "image"
    disk.mkdir()
    if request.param == "tmpfs":
        linux.mount("none", disk, "tmpfs", options="size=16m")
    else:
        image.touch()
        os.truncate(image, 16 * MIB)
        subprocess.run(["mkfs.ext4", "-q", "-F", "-b", "4096", image], check=True, timeout=60)
        subprocess.run(["mount", "-o", "loop", image, disk], check=True, timeout=60)
    base = tmp_path / "lab"
    base.mkdir()
    try:
        with lab_in(base, disk / "vault") as made:
            made.mount()
            yield made
    finally:
        linux.umount(disk)
    loops = subprocess.run(["losetup", "-j", image], capture_output=True, check=True, timeout=60)
    assert loops.stdout == b""


def fill(path: Path, mode: str = "wb", megabytes: int = 40) -> int:
    """Write until the disk is full; returns the errno that told of it."""
    try:
        with path.open(mode, buffering=0) as file:
            for _ in range(megabytes):
                assert file.write(os.urandom(MIB)) == MIB
                os.fsync(file.fileno())
    except OSError as error:
        return error.errno or 0
    return 0


def test_a_writer_hears_of_it_and_deleting_makes_room(small: Lab) -> None:
    root = small.mountpoint
    kept = os.urandom(2 * MIB + 77)
    (root / "kept").write_bytes(kept)
    assert fill(root / "filler") == errno.ENOSPC
    assert (root / "kept").read_bytes() == kept
    (root / "filler").unlink()
    (root / "again").write_bytes(kept)
    small.remount()
    assert (root / "again").read_bytes() == (root / "kept").read_bytes() == kept


def test_closing_tells_what_writing_did_not(small: Lab) -> None:
    """Without fsync the kernel takes the data; close(2) is where the error comes out."""
    fd = os.open(small.mountpoint / "filler", os.O_WRONLY | os.O_CREAT)
    with fails(errno.ENOSPC):
        try:
            for _ in range(40):
                os.write(fd, os.urandom(MIB))
        finally:
            os.close(fd)
    (small.mountpoint / "filler").unlink()


def test_a_file_being_extended_keeps_its_old_content(small: Lab) -> None:
    path = small.mountpoint / "file"
    old = os.urandom(3 * MIB + 5)
    path.write_bytes(old)
    assert fill(path, "ab") == errno.ENOSPC
    small.remount()
    assert path.read_bytes()[: len(old)] == old


def test_a_file_being_overwritten_in_place_needs_no_room(small: Lab) -> None:
    path = small.mountpoint / "file"
    path.write_bytes(os.urandom(3 * MIB + 5))
    assert fill(small.mountpoint / "filler") == errno.ENOSPC
    new = os.urandom(3 * MIB + 5)
    with path.open("r+b", buffering=0) as file:
        file.write(new)
        os.fsync(file.fileno())
    small.remount()
    assert path.read_bytes() == new


def test_writing_into_a_hole_on_a_full_disk_keeps_the_rest(small: Lab) -> None:
    path = small.mountpoint / "sparse"
    path.touch()
    os.truncate(path, 30 * MIB)
    with path.open("r+b", buffering=0) as file:
        os.pwrite(file.fileno(), b"island", 7 * MIB + 3)
        os.fsync(file.fileno())
    fill(small.mountpoint / "filler")
    assert fill(path, "r+b") == errno.ENOSPC
    (small.mountpoint / "filler").unlink()
    small.remount()
    with path.open("rb") as file:
        assert os.pread(file.fileno(), MIB, 20 * MIB) is not None
        assert path.stat().st_size == 30 * MIB


def test_names_fail_whole_or_not_at_all(small: Lab) -> None:
    """Directories, long names and symlinks each need room in two places."""
    root = small.mountpoint
    fill(root / "filler")
    errors = set()
    for number in range(3000):
        for make in (
            partial(os.mkdir, root / f"dir{number}"),
            partial(os.mknod, root / f"{number}".rjust(250, "n")),
            partial(os.symlink, "t" * 300, root / f"link{number}"),
        ):
            try:
                make()
            except OSError as error:
                errors.add(error.errno)
        if errors:
            break
    assert errors == {errno.ENOSPC}
    for entry in os.scandir(root):
        entry.stat(follow_symlinks=False)
        if entry.is_symlink():
            os.readlink(entry.path)
    subprocess.run(["rm", "-rf", *map(str, root.iterdir())], check=True, timeout=60)
    (root / "room").write_bytes(os.urandom(5 * MIB))
