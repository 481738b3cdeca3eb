"""Sources shown to a program that takes only directories, through the real kernel."""

from __future__ import annotations

import contextlib
import errno
import gzip
import os
import random
import shutil
import signal
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cisfs.build.directory import index_directory
from cisfs.build.index import Index
from cisfs.build.serving import shown
from cisfs.build.tar import Limits, index_tar
from cisfs.errors import MountError
from tests.mount.harness import linux
from tests.mount.harness.linux import fails
from tests.mount.harness.processes import (
    NOBODY,
    Child,
    alive,
    as_user,
    become,
    descriptors,
    wait_until,
)
from tests.mount.harness.trees import Seen, assert_same, snapshot
from tests.unit import tars
from tests.unit.tars import directory, file, pax, tar

pytestmark = [pytest.mark.fuse, pytest.mark.root]

CAPABILITY = bytes.fromhex("0100000200040000000000000000000000000000")
ACL = bytes.fromhex("0200000001000700ffffffff04000500ffffffff20000500ffffffff")
LIMITS = Limits(1 << 30, devices=True)


@pytest.fixture(autouse=True)
def mountpoints(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where mount points are made; afterwards no mount and no process may be left."""
    path = tmp_path / "mountpoints"
    path.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(path))
    yield path
    left = linux.detach_all(tmp_path)
    assert not left
    assert list(path.iterdir()) == []
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A directory with all that a tar can hold."""
    root = tmp_path / "source"
    (root / "d/e").mkdir(parents=True)
    (root / "d").chmod(0o2751)
    (root / "large").write_bytes(random.Random(1).randbytes(3_000_001))
    (root / "d/tool").write_bytes(b"#!/bin/sh\n")
    os.chown(root / "d/tool", 1001, 1002)
    (root / "d/tool").chmod(0o4755)
    (root / "d/closed").write_bytes(b"secret")
    (root / "d/closed").chmod(0)
    os.link(root / "d/tool", root / "again")
    (root / "link").symlink_to("/etc/../nowhere")
    os.chown(root / "link", 7, 8, follow_symlinks=False)
    os.link(root / "link", root / "d/link", follow_symlinks=False)
    os.mkfifo(root / "fifo", 0o640)
    os.mknod(root / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(root / "disk", stat.S_IFBLK | 0o660, os.makedev(259, 66_000))
    os.mknod(root / "whiteout", stat.S_IFCHR, 0)
    (root / "empty").touch()
    (root / ("n" * 250)).write_bytes(b"long")
    (root / "d" / ("l" * 99)).symlink_to("t/" * 150)
    os.close(os.open(os.fsencode(root) + b"/\xff\n", os.O_CREAT))
    with (root / "sparse").open("wb") as sparse:
        for at in (100_000, 5_000_000):
            sparse.seek(at)
            sparse.write(b"island")
        sparse.truncate(7_000_000)
    os.setxattr(root / "d", "user.x", bytes(range(256)))
    os.setxattr(root / "d/e", "trusted.overlay.opaque", b"y")
    os.setxattr(root / "d/tool", "security.capability", CAPABILITY)
    os.setxattr(root / "link", "trusted.x", b"1", follow_symlinks=False)
    for number in range(300):
        (root / f"d/e/{number}").write_bytes(b"%d" % number * 40)
    for path in [*sorted(root.rglob("*"), reverse=True), root]:
        os.utime(path, ns=(5, 1_600_000_000_123_456_789), follow_symlinks=False)
    os.utime(root / "empty", ns=(0, -1_500_000_000))
    return root


def gnu_tar(*words: str | Path) -> bytes:
    options = ["--xattrs", "--xattrs-include=*", "--numeric-owner"]
    return subprocess.run(["tar", *options, *words], capture_output=True, check=True).stdout


@pytest.fixture
def packed(source: Path) -> bytes:
    return gnu_tar("-C", source, "--format=posix", "-cSf", "-", ".")


@pytest.fixture
def unpacked(packed: bytes, tmp_path: Path) -> Path:
    """The same tar, unpacked by GNU tar."""
    root = tmp_path / "unpacked"
    root.mkdir()
    path = tmp_path / "packed.tar"
    path.write_bytes(packed)
    gnu_tar("-C", root, "-xpf", path)
    return root


def everything(root: Path) -> dict[str, Seen]:
    """All below `root` and itself, with the directories' times too."""
    found = snapshot(root, times=True)
    found["."] = snapshot(root.parent, times=True)[root.name]
    times = {name: (root / name).lstat().st_mtime_ns for name in found}
    return {name: seen._replace(mtime_ns=times[name]) for name, seen in found.items()}


@contextlib.contextmanager
def indexed(data: bytes, scratch: Path, *, stream: bool) -> Iterator[Index]:
    """The index of a tar, in place or from a pipe."""
    if stream:
        with tars.piped(gzip.compress(data, 1)) as fd:
            index = index_tar(fd, "standard input", LIMITS, scratch)
    else:
        path = scratch / "layer.tar"
        path.write_bytes(data)
        with path.open("rb") as opened:
            index = index_tar(opened.fileno(), "layer.tar", LIMITS, scratch)
    with index:
        yield index


# ---- what is shown


@pytest.mark.parametrize("stream", [False, True], ids=["in place", "scratch"])
def test_a_tar_is_shown_as_gnu_tar_unpacks_it(
    packed: bytes, unpacked: Path, tmp_path: Path, stream: bool
) -> None:
    expected = everything(unpacked)
    assert len(expected) == 318
    with indexed(packed, tmp_path, stream=stream) as index, shown(index) as root:
        assert_same(everything(root), expected)
        assert (root / "again").lstat().st_ino == (root / "d/tool").lstat().st_ino
        assert (root / "d").lstat().st_nlink == 3
        numbers = {each.st_ino for each in map(os.lstat, root.rglob("*"))}
        assert len(numbers) == len(index.entries) - 1


def test_a_directory_is_shown_as_it_is(source: Path) -> None:
    os.mknod(source / "socket", stat.S_IFSOCK | 0o700)
    expected = everything(source)
    with index_directory(source) as index, shown(index) as root:
        assert_same(everything(root), expected)


def test_attributes_that_the_kernel_interprets(tmp_path: Path) -> None:
    xattrs = [
        (b"system.posix_acl_access", ACL),
        (b"system.posix_acl_default", ACL),
        (b"security.ima", b"\x03\x04"),
    ]
    data = tar(
        pax([(b"SCHILY.xattr." + name, value) for name, value in xattrs]) + directory(b"d"),
    )
    with indexed(data, tmp_path, stream=False) as index, shown(index) as root:
        assert {name.encode() for name in os.listxattr(root / "d")} == {name for name, _ in xattrs}
        for name, value in xattrs:
            assert os.getxattr(root / "d", name) == value


def test_it_is_read_only(packed: bytes, tmp_path: Path) -> None:
    with indexed(packed, tmp_path, stream=False) as index, shown(index) as root:
        with fails(errno.EROFS):
            (root / "new").touch()
        with fails(errno.EROFS):
            (root / "large").open("r+b")


def test_a_large_directory(tmp_path: Path) -> None:
    names = {f"{number:05}-{'x' * (number % 90)}" for number in range(20_000)}
    data = tar(*(file(name.encode()) for name in names))
    with indexed(data, tmp_path, stream=False) as index, shown(index) as root:
        assert set(os.listdir(root)) == names


# ---- the image


@contextlib.contextmanager
def image_of(root: Path, place: Path, *options: str) -> Iterator[tuple[Path, int]]:
    """An EROFS image of a directory, mounted; yields the place and the image's size."""
    image, mountpoint = place / "image", place / "erofs"
    mountpoint.mkdir(exist_ok=True)
    subprocess.run(["mkfs.erofs", *options, image, root], capture_output=True, check=True)
    subprocess.run(["mount", "-t", "erofs", "-o", "loop,ro", image, mountpoint], check=True)
    try:
        yield mountpoint, image.stat().st_size
    finally:
        subprocess.run(["umount", mountpoint], check=True)
        image.unlink()


@pytest.mark.parametrize("options", [[], ["-zlz4hc", "-C65536"]], ids=str)
def test_an_image_of_the_view_is_whole_and_no_larger_than_estimated(
    packed: bytes, unpacked: Path, tmp_path: Path, options: list[str]
) -> None:
    expected = everything(unpacked)
    with (
        indexed(packed, tmp_path, stream=True) as index,
        shown(index) as root,
        image_of(root, tmp_path, *options) as (mounted, size),
    ):
        found = everything(mounted)
        assert size <= index.totals.image
    assert_same(found, expected)


@pytest.mark.parametrize("size", [0, 1, 100, 1300, 2100, 4000, 4095, 4096, 4097, 9000, 99_000])
@pytest.mark.parametrize("options", [[], ["-zlz4"], ["-zlz4", "-C65536"]], ids=str)
def test_the_estimate_is_an_upper_one(tmp_path: Path, size: int, options: list[str]) -> None:
    root = tmp_path / "source"
    root.mkdir()
    rng = random.Random(size)
    for number in range(400):
        path = root / f"{number:0{rng.randint(3, 250)}}"
        path.write_bytes(rng.randbytes(size))
        if number < 40:
            os.setxattr(path, f"user.{number}", rng.randbytes(2000))
    with image_of(root, tmp_path, *options) as (_, image_size):
        estimate = index_directory(root).totals.image
        assert image_size <= estimate < 2 * image_size + (1 << 17)


def test_overlayfs_understands_the_whiteouts(tmp_path: Path) -> None:
    lower = tmp_path / "lower"
    for name in ("kept", "gone", "d/old", "e/old", "f/old", "opaque/old"):
        (lower / name).parent.mkdir(parents=True, exist_ok=True)
        (lower / name).write_text("old")
    data = tar(
        file(b".wh.gone"),
        file(b"d/.wh.old"),
        directory(b"e"),
        file(b"e/new"),
        file(b".wh.f"),
        file(b"f/new"),
        file(b"opaque/.wh..wh..opq"),
        file(b"opaque/new"),
    )
    merged = tmp_path / "merged"
    merged.mkdir()
    with contextlib.ExitStack() as stack:
        index = stack.enter_context(indexed(data, tmp_path, stream=False))
        root = stack.enter_context(shown(index))
        upper, _ = stack.enter_context(image_of(root, tmp_path))
        linux.mount("overlay", merged, "overlay", 0, f"lowerdir={upper}:{lower}")
        stack.callback(linux.umount, merged)
        found = {str(path.relative_to(merged)) for path in merged.rglob("*")}
    added = {"e/new", "f/new", "opaque/new"}
    assert found == {"kept", "d", "e", "e/old", "f", "opaque", *added}


# ---- what goes wrong


def test_a_damaged_scratch_is_an_error_and_said(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = tar(file(b"f", random.Random(1).randbytes(300_000)), file(b"small", b"x"))
    before = descriptors(os.getpid()).keys()
    with indexed(data, tmp_path, stream=True) as index, shown(index) as root:
        (scratch,) = descriptors(os.getpid()).keys() - before
        os.pwrite(scratch, bytes(16), 200_000)
        with fails(errno.EIO):
            (root / "f").read_bytes()
        assert os.listdir(root) == ["f", "small"]
    assert "the scratch file: unit 6 was altered" in capfd.readouterr().err


def test_a_source_that_changes_is_an_error_and_said(
    source: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with index_directory(source) as index, shown(index) as root:
        assert (root / "d/e/1").read_bytes() == b"1" * 40
        with (source / "large").open("ab") as file:
            file.write(b"more")
        with fails(errno.EIO):
            (root / "large").read_bytes()
    assert "source/large' changed while it was being sealed" in capfd.readouterr().err


def test_the_mount_goes_with_a_failure(packed: bytes, tmp_path: Path, mountpoints: Path) -> None:
    with (
        indexed(packed, tmp_path, stream=True) as index,
        pytest.raises(ZeroDivisionError),
        shown(index),
    ):
        raise ZeroDivisionError
    assert not list(mountpoints.iterdir())


def test_the_mount_goes_while_somebody_is_in_it(packed: bytes, tmp_path: Path) -> None:
    with indexed(packed, tmp_path, stream=False) as index:
        with shown(index) as root:
            inside = os.open(root / "d", os.O_RDONLY)
        with fails(errno.ENOTCONN, errno.ECONNABORTED):
            os.stat("nothing", dir_fd=inside)
        os.close(inside)


def test_a_server_that_was_killed_is_an_error(packed: bytes, tmp_path: Path) -> None:
    def kill() -> None:
        with indexed(packed, tmp_path, stream=False) as index, shown(index) as root:
            os.kill(server(), signal.SIGKILL)
            with fails(errno.ENOTCONN, errno.ECONNABORTED):
                (root / "large").read_bytes()

    with pytest.raises(MountError, match="SIGKILL"):
        kill()


def server() -> int:
    """The one child process that there is."""
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    (pid,) = map(int, children)
    return pid


def test_the_mount_goes_with_the_process_that_wanted_it(
    packed: bytes, tmp_path: Path, mountpoints: Path
) -> None:
    receive, send = os.pipe()

    def seal() -> None:
        with indexed(packed, tmp_path, stream=True) as index, shown(index):
            os.write(send, f"{server()}".encode())
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(AssertionError, match="ended with -9"):
        Child(seal).result()
    served_by = int(os.read(receive, 100))
    wait_until(lambda: not alive(served_by), "the server has ended too", patience=10)
    assert not linux.mounts_below(mountpoints)
    assert not list(mountpoints.iterdir())


def test_nobody_else_can_look(packed: bytes, tmp_path: Path, mountpoints: Path) -> None:
    mountpoints.chmod(0o755)
    with (
        indexed(packed, tmp_path, stream=False) as index,
        shown(index) as root,
        pytest.raises(PermissionError),
    ):
        as_user(NOBODY, mountpoints, lambda: os.listdir(root.name))


# ---- without root


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory of an ordinary user's; pytest's own are closed to him."""
    path = Path(tempfile.mkdtemp(prefix="cisfs-user-", dir="/tmp"))
    os.chown(path, NOBODY, NOBODY)
    yield path
    shutil.rmtree(path)


def as_ordinary_user(home: Path, work: Callable[[], object]) -> object:
    """Call `work` as nobody, in a mount namespace with a /dev/fuse that is open to all."""

    def prepare_and_work() -> object:
        linux.unshare_mounts()
        device = home / "fuse"
        os.mknod(device, stat.S_IFCHR, os.makedev(10, 229))
        device.chmod(0o666)
        linux.mount(str(device), Path("/dev/fuse"), "", linux.MS_BIND)
        import cisfs.mount.pyfuse  # noqa: F401 - the files may lie where only root can go

        become(NOBODY, NOBODY)
        tempfile.tempdir = str(home)
        result = work()
        with pytest.raises(ChildProcessError):
            os.waitpid(-1, os.WNOHANG)
        assert not linux.mounts_below(home)
        return result

    return Child(prepare_and_work).result()


@pytest.mark.parametrize("stream", [False, True], ids=["in place", "scratch"])
def test_an_ordinary_user_sees_all_of_a_tar_but_what_is_roots_to_know(
    packed: bytes, unpacked: Path, home: Path, stream: bool
) -> None:
    """The kernel shows trusted.* to nobody else (xattr(7))."""

    def work() -> dict[str, Seen]:
        with indexed(packed, home, stream=stream) as index, shown(index) as root:
            return everything(root)

    found = as_ordinary_user(home, work)
    assert isinstance(found, dict)
    expected = everything(unpacked)
    for name in ("d/e", "link", "d/link"):
        expected[name] = expected[name]._replace(xattrs={})
    assert_same(found, expected)
    assert found["d/closed"].mode == 0


def test_an_ordinary_user_makes_an_image(packed: bytes, home: Path) -> None:
    def work() -> int:
        with indexed(packed, home, stream=True) as index, shown(index) as root:
            subprocess.run(["mkfs.erofs", home / "image", root], capture_output=True, check=True)
        return os.stat(home / "image").st_size

    assert isinstance(as_ordinary_user(home, work), int)
