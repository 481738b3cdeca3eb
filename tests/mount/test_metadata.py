"""Modes, owners, times and the like through the kernel."""

from __future__ import annotations

import os
import stat
from functools import partial
from pathlib import Path

import pytest

from tests.mount.harness.lab import Lab
from tests.mount.harness.linux import drop_caches
from tests.mount.harness.processes import NOBODY, as_user

pytestmark = [pytest.mark.fuse, pytest.mark.root]

SECOND = 1_000_000_000


@pytest.mark.parametrize("mode", [0o000, 0o644, 0o755, 0o4755, 0o2755, 0o1777, 0o7777])
def test_chmod_of_files_and_directories(here: Path, mode: int) -> None:
    (here / "file").touch()
    (here / "dir").mkdir()
    for name in ("file", "dir"):
        (here / name).chmod(mode)
        drop_caches(2)
        assert stat.S_IMODE((here / name).stat().st_mode) == mode


def test_fchmod_of_an_open_file(here: Path) -> None:
    with (here / "file").open("wb") as file:
        os.fchmod(file.fileno(), 0o421)
    assert stat.S_IMODE((here / "file").stat().st_mode) == 0o421


def test_the_umask_applies_once(here: Path) -> None:
    os.umask(0o027)
    (here / "file").touch(0o666)
    (here / "dir").mkdir(0o777)
    os.mkfifo(here / "fifo", 0o666)
    modes = [stat.S_IMODE((here / name).stat().st_mode) for name in ("file", "dir", "fifo")]
    assert modes == [0o640, 0o750, 0o640]


def test_chown(here: Path) -> None:
    (here / "file").touch()
    (here / "link").symlink_to("file")
    os.chown(here / "file", 1001, 1002)
    os.chown(here / "link", 1003, -1, follow_symlinks=False)
    file, link = (here / "file").stat(), (here / "link").lstat()
    assert (file.st_uid, file.st_gid, link.st_uid, link.st_gid) == (1001, 1002, 1003, 0)


def test_chown_by_root_clears_set_id_bits_as_on_other_file_systems(
    here: Path, tmp_path: Path
) -> None:
    modes = []
    for path in (here / "file", tmp_path / "file"):
        path.touch()
        path.chmod(0o6755)
        os.chown(path, 1001, 1002)
        modes.append(stat.S_IMODE(path.stat().st_mode))
    assert modes[0] == modes[1]


def test_new_objects_belong_to_their_maker(here: Path) -> None:
    here.chmod(0o777)

    def make() -> None:
        Path("file").write_text("x")
        Path("dir").mkdir()
        Path("link").symlink_to("x")
        os.mkfifo("fifo")

    as_user(NOBODY, here, make, gid=4242)
    for name in ("file", "dir", "link", "fifo"):
        status = (here / name).lstat()
        assert (status.st_uid, status.st_gid) == (NOBODY, 4242), name


def test_a_setgid_directory_passes_its_group_on(here: Path) -> None:
    os.chown(here, 0, 777)
    here.chmod(0o2777)

    def make() -> None:
        Path("file").touch()
        Path("dir").mkdir()

    as_user(NOBODY, here, make)
    assert (here / "file").stat().st_gid == 777
    assert (here / "dir").stat().st_gid == 777
    assert (here / "dir").stat().st_mode & stat.S_ISGID
    assert not (here / "file").stat().st_mode & stat.S_ISGID


def test_a_sticky_directory_protects_others_files(here: Path) -> None:
    here.chmod(0o1777)
    (here / "file").touch()
    with pytest.raises(PermissionError):
        as_user(NOBODY, here, lambda: os.unlink("file"))


@pytest.mark.parametrize("change", ["write", "truncate"])
def test_a_users_change_clears_set_id_bits(here: Path, change: str) -> None:
    (here / "tool").write_bytes(b"#!")
    os.chown(here / "tool", 1001, 1001)
    (here / "tool").chmod(0o6777)

    def write() -> None:
        with Path("tool").open("r+b") as file:
            file.write(b"xx") if change == "write" else file.truncate(1)

    as_user(NOBODY, here, write)
    assert stat.S_IMODE((here / "tool").stat().st_mode) == 0o777


@pytest.mark.parametrize(
    "ns",
    [
        (0, 0),
        (1, 999_999_999),
        (2_000_000_000 * SECOND + 7, 5 * SECOND + 123_456_789),
        (-SECOND, -7),
    ],
)
def test_times_are_kept_to_the_nanosecond(here: Path, ns: tuple[int, int]) -> None:
    (here / "file").touch()
    (here / "dir").mkdir()
    (here / "link").symlink_to("nowhere")
    for name in ("file", "dir", "link"):
        os.utime(here / name, ns=ns, follow_symlinks=False)
        drop_caches(2)
        status = (here / name).lstat()
        assert (status.st_atime_ns, status.st_mtime_ns) == ns, name


def test_times_of_an_open_file_that_has_unwritten_data(here: Path) -> None:
    with (here / "file").open("wb", buffering=0) as file:
        file.write(b"dirty")
        os.utime(file.fileno(), ns=(11, 22))
    drop_caches(3)
    assert (here / "file").stat().st_mtime_ns == 22


def test_reading_leaves_the_access_time_alone(lab: Lab) -> None:
    lab.mount()
    file = lab.mountpoint / "file"
    file.write_bytes(bytes(100_000))
    os.utime(file, ns=(1000 * SECOND, 1000 * SECOND))
    lab.remount()
    assert len(file.read_bytes()) == 100_000
    drop_caches(3)
    assert file.stat().st_atime_ns == 1000 * SECOND


def test_writing_moves_the_modification_time(here: Path) -> None:
    (here / "file").write_bytes(b"x")
    os.utime(here / "file", ns=(0, 0))
    (here / "file").write_bytes(b"y")
    drop_caches(3)
    assert (here / "file").stat().st_mtime_ns > 1_000_000_000 * SECOND


def test_changing_a_directory_moves_its_modification_time(here: Path) -> None:
    for change in (partial(os.mknod, here / "new"), partial(os.unlink, here / "new")):
        os.utime(here, ns=(0, 0))
        change()
        assert here.stat().st_mtime_ns > 1_000_000_000 * SECOND


def test_links_unlinks_and_renames_move_the_change_time(here: Path) -> None:
    (here / "file").touch()
    times = [(here / "file").stat().st_ctime_ns]
    os.link(here / "file", here / "again")
    times.append((here / "file").stat().st_ctime_ns)
    (here / "again").unlink()
    times.append((here / "file").stat().st_ctime_ns)
    assert times[0] < times[1] < times[2]


def test_directories_count_their_subdirectories_or_say_one(here: Path) -> None:
    (here / "dir/sub").mkdir(parents=True)
    assert (here / "dir").stat().st_nlink in (1, 3)


def test_statfs_is_that_of_the_backing_file_system(here: Path, shared: Lab) -> None:
    ours, theirs = os.statvfs(here), os.statvfs(shared.vault)
    assert (ours.f_blocks * ours.f_frsize, ours.f_files) == (
        theirs.f_blocks * theirs.f_frsize,
        theirs.f_files,
    )
    assert ours.f_namemax == 255


def test_the_size_is_there_before_anything_is_written_back(here: Path) -> None:
    with (here / "file").open("wb", buffering=0) as file:
        file.write(bytes(12345))
        assert (here / "file").stat().st_size == 12345
    assert (here / "file").stat().st_size == 12345


def test_the_modification_time_that_a_writer_saw_outlives_a_remount(lab: Lab) -> None:
    root = lab.mount()
    seen = {}
    for number in range(20):
        (root / str(number)).write_bytes(bytes(40_000))
        seen[number] = (root / str(number)).stat().st_mtime_ns
    lab.remount()
    after = {number: (root / str(number)).stat().st_mtime_ns for number in seen}
    assert after == seen


def test_a_remount_changes_no_attribute(lab: Lab) -> None:
    from tests.mount.harness.trees import assert_same, snapshot

    root = lab.mount()
    (root / "dir").mkdir(0o2751)
    (root / "dir/file").write_bytes(bytes(40_000))
    (root / "dir/link").symlink_to("file")
    os.mknod(root / "white", stat.S_IFCHR, 0)
    os.setxattr(root / "dir", "user.x", b"1")
    os.utime(root / "dir/file", ns=(123_456_789, 987_654_321))
    before = snapshot(root, times=True)
    lab.remount()
    assert_same(before, snapshot(root, times=True))
