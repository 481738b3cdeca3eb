"""Directory entries through the kernel: making, linking, moving, listing, removing."""

from __future__ import annotations

import errno
import os
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.harness.lab import Lab, lab_in
from tests.mount.harness.linux import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    RENAME_WHITEOUT,
    drop_caches,
    fails,
    renameat2,
)

pytestmark = [pytest.mark.fuse, pytest.mark.root]

NAMES = [
    "a",
    "with space",
    "ünïcödé",
    "new\nline",
    "-rf",
    ".hidden",
    "x" * 175,
    "y" * 176,
    "z" * 255,
]


@pytest.mark.parametrize("name", NAMES)
def test_a_name_can_be_made_listed_and_removed(here: Path, name: str) -> None:
    (here / name).write_text(name)
    assert os.listdir(here) == [name]
    drop_caches(2)
    assert (here / name).read_text() == name
    (here / name).unlink()
    assert os.listdir(here) == []


def test_a_name_need_not_be_text(here: Path) -> None:
    path = os.fsencode(here) + b"/\xff\xfe"
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
    assert os.listdir(os.fsencode(here)) == [b"\xff\xfe"]


def test_a_name_that_is_too_long_is_refused(here: Path) -> None:
    with fails(errno.ENAMETOOLONG):
        (here / ("n" * 256)).touch()


@pytest.mark.parametrize("name", ["vault.json", "cisfs.dir", "cisfs.journal", "cisfs.long.x"])
def test_names_that_cisfs_uses_itself_are_free_in_the_mount(lab: Lab, name: str) -> None:
    lab.mount()
    (lab.mountpoint / name).write_text("mine")
    lab.remount()
    assert (lab.mountpoint / name).read_text() == "mine"
    assert os.listdir(lab.mountpoint) == [name]


def test_two_thousand_entries_are_all_listed(here: Path) -> None:
    wanted = {f"entry-{number}" for number in range(2000)}
    for name in wanted:
        (here / name).touch()
    for _ in range(2):
        listed = os.listdir(here)
        assert len(listed) == 2000
        assert set(listed) == wanted
        drop_caches(2)


def test_many_names_of_255_bytes_are_listed(here: Path) -> None:
    wanted = {f"{number:03d}".ljust(255, "n") for number in range(300)}
    for name in wanted:
        (here / name).touch()
    assert set(os.listdir(here)) == wanted


def test_a_directory_may_change_while_it_is_listed(here: Path) -> None:
    for number in range(400):
        (here / f"{number:03d}").touch()
    seen = set()
    with os.scandir(here) as entries:
        for entry in entries:
            seen.add(entry.name)
            os.unlink(entry.path)
    assert len(seen) == 400
    assert os.listdir(here) == []


def test_listings_tell_types(here: Path) -> None:
    (here / "file").touch()
    (here / "dir").mkdir()
    (here / "link").symlink_to("file")
    os.mkfifo(here / "fifo")
    with os.scandir(here) as entries:
        types = {
            e.name: (
                e.is_file(follow_symlinks=False),
                e.is_dir(follow_symlinks=False),
                e.is_symlink(),
            )
            for e in entries
        }
    assert types == {
        "file": (True, False, False),
        "dir": (False, True, False),
        "link": (False, False, True),
        "fifo": (False, False, False),
    }


def test_a_listing_has_the_inode_numbers_of_stat(here: Path) -> None:
    for name in ("one", "two"):
        (here / name).touch()
    with os.scandir(here) as entries:
        assert {e.name: e.inode() for e in entries} == {
            n: (here / n).stat().st_ino for n in ("one", "two")
        }


# --- renaming


def test_rename_replaces_a_file(here: Path) -> None:
    (here / "a").write_text("a")
    (here / "b").write_text("b")
    (here / "a").rename(here / "b")
    assert os.listdir(here) == ["b"]
    assert (here / "b").read_text() == "a"


def test_rename_between_directories(here: Path) -> None:
    (here / "one/deep").mkdir(parents=True)
    (here / "two").mkdir()
    (here / "one/deep/file").write_text("x")
    (here / "one/deep").rename(here / "two/moved")
    assert (here / "two/moved/file").read_text() == "x"
    drop_caches(2)
    assert (here / "two/moved/file").read_text() == "x"
    assert os.listdir(here / "one") == []


def test_rename_of_a_directory_replaces_an_empty_one_only(here: Path) -> None:
    for name in ("source", "empty", "full"):
        (here / name).mkdir()
    (here / "source/file").touch()
    (here / "full/file").touch()
    with fails(errno.ENOTEMPTY, errno.EEXIST):
        (here / "source").rename(here / "full")
    (here / "source").rename(here / "empty")
    assert sorted(os.listdir(here)) == ["empty", "full"]
    assert os.listdir(here / "empty") == ["file"]


def test_a_directory_does_not_move_into_itself(here: Path) -> None:
    (here / "a/b").mkdir(parents=True)
    with fails(errno.EINVAL):
        (here / "a").rename(here / "a/b/c")


def test_noreplace_refuses_what_exists(here: Path) -> None:
    (here / "a").write_text("a")
    (here / "b").write_text("b")
    with pytest.raises(FileExistsError):
        renameat2(here / "a", here / "b", RENAME_NOREPLACE)
    renameat2(here / "a", here / "c", RENAME_NOREPLACE)
    assert ((here / "b").read_text(), (here / "c").read_text()) == ("b", "a")


@pytest.mark.parametrize("long", ["", "l" * 200])
def test_exchange_swaps_a_file_and_a_directory(here: Path, long: str) -> None:
    (here / "sub").mkdir()
    one, two = here / f"{long}one", here / f"sub/{long}two"
    one.write_text("file")
    two.mkdir()
    (two / "inner").touch()
    renameat2(one, two, RENAME_EXCHANGE)
    drop_caches(2)
    assert os.listdir(one) == ["inner"]
    assert two.read_text() == "file"


def test_exchange_needs_both(here: Path) -> None:
    (here / "a").touch()
    with pytest.raises(FileNotFoundError):
        renameat2(here / "a", here / "none", RENAME_EXCHANGE)


@pytest.mark.parametrize("long", ["", "l" * 200])
def test_whiteout_leaves_a_character_device_0_0(here: Path, long: str) -> None:
    source = here / f"{long}a"
    source.write_text("a")
    renameat2(source, here / "b", RENAME_WHITEOUT)
    drop_caches(2)
    left = source.lstat()
    assert stat.S_ISCHR(left.st_mode)
    assert left.st_rdev == 0
    assert (here / "b").read_text() == "a"
    assert sorted(os.listdir(here)) == sorted([source.name, "b"])


def test_long_and_short_names_rename_into_each_other(here: Path) -> None:
    short, long, longer = here / "s", here / ("l" * 200), here / ("m" * 255)
    short.write_text("x")
    for old, new in [(short, long), (long, longer), (longer, short)]:
        old.rename(new)
        assert os.listdir(here) == [new.name]
        assert new.read_text() == "x"


# --- links and special files


def test_hard_links_are_one_file(here: Path) -> None:
    (here / "a").write_text("one")
    (here / "sub").mkdir()
    os.link(here / "a", here / "sub/b")
    a, b = (here / "a").stat(), (here / "sub/b").stat()
    assert (a.st_ino, a.st_nlink) == (b.st_ino, 2)
    (here / "sub/b").write_text("changed")
    assert (here / "a").read_text() == "changed"
    (here / "a").unlink()
    assert (here / "sub/b").stat().st_nlink == 1
    drop_caches(2)
    assert (here / "sub/b").read_text() == "changed"


def test_links_to_symlinks_and_devices(here: Path) -> None:
    (here / "link").symlink_to("nowhere")
    os.mknod(here / "white", stat.S_IFCHR, 0)
    for name in ("link", "white"):
        os.link(here / name, here / f"{name}2", follow_symlinks=False)
        assert (here / f"{name}2").lstat().st_nlink == 2


def test_directories_are_not_linked(here: Path) -> None:
    (here / "dir").mkdir()
    with pytest.raises(PermissionError):
        os.link(here / "dir", here / "again")


@pytest.mark.parametrize("target", ["x", "../up/../and down", "ü" * 1000, "t" * 3039])
def test_a_symlink_keeps_its_target(here: Path, target: str) -> None:
    (here / "link").symlink_to(target)
    drop_caches(3)
    assert os.readlink(here / "link") == target
    assert (here / "link").lstat().st_size == len(os.fsencode(target))


def test_a_symlink_target_longer_than_the_format_allows_is_refused(here: Path) -> None:
    with fails(errno.ENAMETOOLONG):
        (here / "link").symlink_to("t" * 3040)
    assert os.listdir(here) == []


def test_symlinks_are_followed(here: Path) -> None:
    (here / "dir").mkdir()
    (here / "dir/file").write_text("found")
    (here / "link").symlink_to("dir")
    assert (here / "link/file").read_text() == "found"


def test_a_fifo_carries_data(here: Path) -> None:
    os.mkfifo(here / "fifo", 0o600)
    fd = os.open(here / "fifo", os.O_RDWR)
    os.write(fd, b"through")
    assert os.read(fd, 10) == b"through"
    os.close(fd)


def test_devices_keep_their_numbers(here: Path) -> None:
    os.mknod(here / "white", stat.S_IFCHR | 0o600, 0)
    os.mknod(here / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(here / "disk", stat.S_IFBLK | 0o600, os.makedev(253, 77))
    assert (here / "white").stat().st_rdev == 0
    assert (here / "disk").stat().st_rdev == os.makedev(253, 77)
    (here / "null").write_text("swallowed")


def test_a_socket_can_be_bound_and_reached(here: Path) -> None:
    before = os.getcwd()
    os.chdir(here)  # a socket's path has 108 bytes
    try:
        with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
            server.bind("socket")
            server.listen()
            client.connect("socket")
        assert stat.S_ISSOCK((here / "socket").stat().st_mode)
    finally:
        os.chdir(before)


def test_mknod_makes_regular_files_too(here: Path) -> None:
    os.mknod(here / "file", stat.S_IFREG | 0o640)
    (here / "file").write_text("x")
    assert (here / "file").read_text() == "x"


# --- removing, and numbers


def test_a_directory_that_is_not_empty_stays(here: Path) -> None:
    (here / "dir").mkdir()
    (here / "dir/file").touch()
    with fails(errno.ENOTEMPTY):
        (here / "dir").rmdir()
    (here / "dir/file").unlink()
    (here / "dir").rmdir()
    assert os.listdir(here) == []


def test_rmdir_and_unlink_know_the_difference(here: Path) -> None:
    (here / "file").touch()
    (here / "dir").mkdir()
    with pytest.raises(NotADirectoryError):
        (here / "file").rmdir()
    with fails(errno.EISDIR, errno.EPERM):
        (here / "dir").unlink()


def test_a_removed_working_directory_can_still_be_asked_about(here: Path) -> None:
    (here / "dir").mkdir()
    fd = os.open(here / "dir", os.O_RDONLY | os.O_DIRECTORY)
    (here / "dir").rmdir()
    assert os.listdir(fd) == []
    with pytest.raises(FileNotFoundError):
        os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=fd)
    os.fstat(fd)
    os.close(fd)


def test_what_does_not_exist_is_not_found_until_it_is_made(here: Path) -> None:
    assert not (here / "later").exists()
    (here / "later").touch()
    assert (here / "later").exists()


def test_numbers_stay_over_rename_caches_and_remount(lab: Lab) -> None:
    lab.mount()
    root = lab.mountpoint
    (root / "dir").mkdir()
    (root / "dir/a").write_text("a")
    os.link(root / "dir/a", root / "b")
    numbers = {name: (root / name).stat().st_ino for name in ("dir", "dir/a", "b")}
    (root / "dir").rename(root / "moved")
    drop_caches(2)
    assert (root / "moved").stat().st_ino == numbers["dir"]
    lab.remount()
    assert (root / "moved/a").stat().st_ino == (root / "b").stat().st_ino == numbers["b"]
    assert (root / "b").stat().st_nlink == 2


@pytest.fixture
def deep_lab(tmp_path: Path) -> Iterator[Lab]:
    """A lab whose tree is removed by rm: pytest's own clean-up is as deep as Python's stack."""
    try:
        with lab_in(tmp_path) as made:
            yield made
    finally:
        subprocess.run(["rm", "-rf", str(tmp_path / "vault")], check=True, timeout=60)


@pytest.mark.parametrize("depth", [300, 1500])
def test_a_deep_tree_is_walked_and_verifies(deep_lab: Lab, depth: int) -> None:
    """More directories than the server keeps descriptors of, and than Python's stack is deep."""
    root = deep_lab.mount()
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=fd)
        deeper = os.open("d", os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = deeper
    drop_caches(3)
    os.close(os.open("bottom", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    os.close(fd)
    deep_lab.remount()
    found = subprocess.run(["find", str(root)], capture_output=True, check=True, timeout=60)
    assert found.stdout.count(b"\n") == depth + 2
    drop_caches(3)
    deep_lab.judge_log()
