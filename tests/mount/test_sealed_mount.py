"""A mounted sealed layer: what it shows, what it refuses, how it ends, what its processes may."""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import shutil
import socket
import stat
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.mount.harness import linux
from tests.mount.harness.layers import LARGE, Material, forget, fresh
from tests.mount.harness.linux import fails
from tests.mount.harness.processes import (
    NOBODY,
    as_user,
    at_once,
    descriptors,
    wait_until,
)
from tests.mount.harness.sealed import SealedLab, counted, lab_in, serving
from tests.mount.harness.trees import assert_same, snapshot

pytestmark = [pytest.mark.fuse, pytest.mark.root]

UNIT = 64 * 1024
SIZES = [0, 1, 15, 4095, 4096, 4097, UNIT - 1, UNIT, UNIT + 1, 3 * UNIT + 5, LARGE]


def populate(tree: Path) -> None:
    """Something of everything."""
    tree.mkdir(mode=0o751)
    for size in SIZES:
        (tree / f"size-{size}").write_bytes(os.urandom(size))
    for mode in (0o000, 0o400, 0o444, 0o644, 0o777, 0o4755, 0o2755, 0o1644):
        path = tree / f"mode-{mode:o}"
        path.write_bytes(b"%o" % mode)
        path.chmod(mode)
    for mode in (0o700, 0o1777, 0o2775, 0o555):
        (tree / f"dir-{mode:o}").mkdir()
        (tree / f"dir-{mode:o}/file").touch()
        (tree / f"dir-{mode:o}").chmod(mode)
    (tree / "many").mkdir()
    for number in range(1000):
        (tree / "many" / f"{number:04}").write_bytes(b"%d" % number)
    deep = tree / "/".join("d" * 20)
    deep.mkdir(parents=True)
    (deep / "bottom").write_bytes(b"deep")
    _odd_names(tree / "names")
    _special(tree / "special")
    _attributes(tree / "attributes")


def _odd_names(tree: Path) -> None:
    tree.mkdir()
    for name in ("n" * 250, " ", "-", "new\nline", "ä", "\udcff\udc80", "back\\slash", "a,b:c"):
        (tree / name).write_bytes(os.fsencode(name))


def _special(tree: Path) -> None:
    tree.mkdir()
    os.mkfifo(tree / "fifo", 0o640)
    os.mknod(tree / "character", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.mknod(tree / "block", stat.S_IFBLK | 0o660, os.makedev(259, 70_000))
    os.mknod(tree / "whiteout", stat.S_IFCHR, os.makedev(0, 0))
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tree / "s"))
    (tree / "link").symlink_to("../size-4096")
    (tree / "dangling").symlink_to("/nowhere/" + "x" * 900)
    (tree / "one").write_bytes(b"linked")
    os.link(tree / "one", tree / "two")
    os.link(tree / "one", tree.parent / "three")


def _attributes(tree: Path) -> None:
    tree.mkdir()
    for number, (uid, gid) in enumerate([(0, 5), (1000, 1000), (65_533, 100_000), (2**31, 7)]):
        path = tree / f"owner-{number}"
        path.touch()
        os.chown(path, uid, gid)
    for number, nanoseconds in enumerate([0, 1, 10**18 + 123_456_789, 4_102_444_800 * 10**9 + 5]):
        path = tree / f"time-{number}"
        path.write_bytes(b"x")
        os.utime(path, ns=(nanoseconds, nanoseconds))
    path = tree / "xattrs"
    path.touch()
    for name, value in [("user.a", b"1"), ("user.b", bytes(range(256)) * 4), ("user.empty", b"")]:
        os.setxattr(path, name, value)
    os.setxattr(path, "trusted.t", b"hidden")
    os.setxattr(path, "security.capability", bytes.fromhex("0100000200040000" + "00" * 12))
    os.setxattr(tree, "trusted.overlay.opaque", b"y")
    subprocess.run(["setfacl", "-m", "u:1234:rw", path], check=True, timeout=30)
    subprocess.run(["setfacl", "-d", "-m", "g:77:rx", tree], check=True, timeout=30)


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    """One layer for all tests of the module."""
    base = tmp_path_factory.mktemp("material")
    populate(base / "tree")
    return Material.make(base, base / "tree")


@pytest.fixture
def lab(tmp_path: Path, material: Material) -> Iterator[SealedLab]:
    with lab_in(tmp_path, material) as made:
        yield made


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, material: Material) -> Iterator[SealedLab]:
    """One mount, with two workers, for the tests that only look at it."""
    base = tmp_path_factory.mktemp("shared")
    with lab_in(base, material, patience=600) as made:
        made.mount("--workers", "2", "--read-only", "--allow-other")
        yield made


def large(root: Path) -> Path:
    return root / f"size-{LARGE}"


# ---- what it shows


@pytest.mark.parametrize("options", [[], ["--loop-device"], ["--workers", "1"]])
def test_the_tree_is_shown_as_it_was(lab: SealedLab, options: list[str]) -> None:
    lab.mount(*options)
    assert_same(snapshot(lab.tree, times=True), snapshot(lab.mountpoint, times=True))
    for directory in ("many", "dir-1777", "attributes", "d/d/d"):
        ours, theirs = (lab.mountpoint / directory).stat(), (lab.tree / directory).stat()
        assert (ours.st_mtime_ns, ours.st_nlink) == (theirs.st_mtime_ns, theirs.st_nlink)
    links = [lab.mountpoint / name for name in ("special/one", "special/two", "three")]
    assert len({path.stat().st_ino for path in links}) == 1


def test_every_way_to_read(shared: SealedLab) -> None:
    content = large(shared.tree).read_bytes()
    path = large(shared.mountpoint)
    assert fresh(path) == content
    forget(path)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert mapped[-1] == content[-1]
        assert mapped[:] == content
    forget(path)
    copy = shared.base / "copy"
    shutil.copyfile(path, copy)  # sendfile(2)
    assert copy.read_bytes() == content
    with path.open("rb", buffering=0) as backwards:
        for offset in range(LARGE - 5000, 0, -997_001):
            assert os.pread(backwards.fileno(), 5000, offset) == content[offset : offset + 5000]
        assert os.pread(backwards.fileno(), 5000, LARGE) == b""


def test_many_readers_at_once(shared: SealedLab) -> None:
    expected = hashlib.sha256(large(shared.tree).read_bytes()).hexdigest()
    path = large(shared.mountpoint)
    reads = [lambda: hashlib.sha256(fresh(path)).hexdigest()] * 8
    assert at_once(*reads) == [expected] * 8


def test_a_program_runs_from_it(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    shutil.copy2("/bin/busybox", tree / "busybox")
    with lab_in(tmp_path, Material.make(tmp_path, tree)) as lab:
        ended = lab.run([str(lab.mount() / "busybox"), "echo", "from inside"])
        assert (ended.returncode, ended.stdout) == (0, "from inside\n")


def test_other_users_see_what_the_modes_allow(shared: SealedLab) -> None:

    def look() -> tuple[bytes, int]:
        with fails(errno.EACCES):
            Path("mode-400").read_bytes()
        with fails(errno.EACCES):
            os.listdir("dir-700")
        return Path("mode-444").read_bytes(), len(os.listdir("dir-555"))

    shared.mountpoint.stat()
    assert as_user(NOBODY, shared.mountpoint, look) == (b"444", 1)


# ---- the mount table


def line_of(mountpoint: Path) -> tuple[list[str], list[str]]:
    """The words of a mount in the mount table: those before the dash, and those after."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if before.split()[4] == str(mountpoint):
            return before.split(), after.split()
    raise AssertionError(f"nothing is mounted at {mountpoint}")


def test_the_mount_table_tells_the_layer_and_nothing_of_fuse(shared: SealedLab) -> None:
    before, after = line_of(shared.mountpoint)
    assert after[:2] == ["erofs", str(shared.layer)]
    assert "ro" in before[5].split(",")
    assert "ro" in after[2].split(",")
    assert linux.mounts_below(shared.base) == [(shared.mountpoint, "erofs")]
    assert not any(shared.loops())


def test_through_a_loop_device(lab: SealedLab) -> None:
    lab.mount("--loop-device")
    (device,) = lab.loops()
    assert line_of(lab.mountpoint)[1][:2] == ["erofs", device]
    assert stat.S_IMODE(os.stat(device).st_mode) & 0o007 == 0
    assert Path("/sys/block", Path(device).name, "ro").read_text() == "1\n"
    content = large(lab.tree).read_bytes()
    assert fresh(large(lab.mountpoint)) == content
    fd = os.open(large(lab.mountpoint), os.O_RDONLY | os.O_DIRECT)
    with mmap.mmap(-1, 1 << 20) as buffer:
        assert os.preadv(fd, [buffer], 3 << 20) == 1 << 20
        assert buffer[:] == content[3 << 20 : 4 << 20]
    os.close(fd)
    lab.umount()
    wait_until(lambda: not lab.loops(), "the loop device is free again")


def test_the_decrypted_image_can_be_reached_by_no_path(shared: SealedLab) -> None:
    """Whoever opens the layer, by its path or by the descriptors of its workers, gets it sealed."""
    stored = hashlib.sha256(shared.layer.read_bytes()).hexdigest()
    assert hashlib.sha256(shared.layer.read_bytes()).hexdigest() == stored
    for pid in serving(shared.base):
        opened = [number for number, (to, _) in descriptors(pid).items() if to == str(shared.layer)]
        assert opened
        for number in opened:
            content = Path(f"/proc/{pid}/fd/{number}").read_bytes()
            assert hashlib.sha256(content).hexdigest() == stored
        table = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
        assert [line for line in table if str(shared.base) in line and "fuse" in line] == []


def test_the_layer_can_be_verified_and_inspected_while_it_is_mounted(shared: SealedLab) -> None:
    assert "whole" in shared.cisfs("verify", shared.layer, *shared.with_key).stdout
    assert "sealed layer" in shared.cisfs("inspect", shared.layer).stdout


def test_key_and_layer_may_be_gone_after_mounting(tmp_path: Path, material: Material) -> None:
    with lab_in(tmp_path, material, copy=True) as lab:
        lab.key = tmp_path / "own key"
        shutil.copyfile(material.key, lab.key)
        lab.key.chmod(0o600)
        lab.mount()
        lab.key.unlink()
        lab.layer.rename(tmp_path / "elsewhere.cis")
        (tmp_path / "elsewhere.cis").unlink()
        lab.kill(*lab.workers)
        lab.log.expect("it is replaced")
        assert fresh(large(lab.mountpoint)) == large(lab.tree).read_bytes()
        lab.umount()
        shutil.copyfile(material.layer, lab.layer)
        lab.damaged = True  # it is another file now


# ---- read-only


def test_every_write_is_refused(shared: SealedLab) -> None:
    file = shared.mountpoint / "size-4096"
    directory, new = shared.mountpoint / "many", shared.mountpoint / "many/new"
    attempts: list[Callable[[], object]] = [
        lambda: os.open(file, os.O_WRONLY),
        lambda: os.open(file, os.O_RDWR | os.O_TRUNC),
        new.touch,
        new.mkdir,
        lambda: new.symlink_to("x"),
        lambda: os.link(file, new),
        lambda: os.mknod(new),
        lambda: file.rename(new),
        file.unlink,
        directory.rmdir,
        lambda: file.chmod(0o777),
        lambda: os.chown(file, 1, 1),
        lambda: os.utime(file),
        lambda: os.truncate(file, 0),
        lambda: os.setxattr(file, "user.new", b"x"),
        lambda: os.removexattr(shared.mountpoint / "attributes/xattrs", "user.a"),
    ]
    for attempt in attempts:
        with fails(errno.EROFS):
            attempt()


def test_a_mount_stays_read_only(lab: SealedLab) -> None:
    lab.mount("--read-only", "--allow-other")
    lab.run(["mount", "-o", "remount,rw", str(lab.mountpoint)])
    with fails(errno.EROFS):
        (lab.mountpoint / "new").touch()


# ---- read-ahead


def test_the_kernel_reads_ahead_a_mib(lab: SealedLab) -> None:
    """With the kernel's own 128 KiB there would be eight times as many requests."""
    path = large(lab.mount("--workers", "1"))
    (worker,) = lab.workers
    fresh(path)
    before = counted(worker, "syscr")
    fresh(path)
    requests = (counted(worker, "syscr") - before) / 2  # one from the device, one from the layer
    assert LARGE / (1 << 20) < requests < 3 * LARGE / (1 << 20)


def test_the_settings_of_read_ahead(lab: SealedLab) -> None:
    """The kernel names an EROFS' settings by a number; others may mount one meanwhile."""
    settings = Path("/sys/class/bdi")
    before = set(settings.glob("erofs*"))
    lab.mount()
    new = set(settings.glob("erofs*")) - before
    found = [(path / "read_ahead_kb").read_text() for path in new if path.exists()]
    assert "1024\n" in found
    lab.umount()
    lab.mount("--loop-device")
    (device,) = lab.loops()
    assert Path("/sys/block", Path(device).name, "queue/read_ahead_kb").read_text() == "1024\n"


# ---- several mounts


def test_two_mounts_of_one_layer(lab: SealedLab) -> None:
    other = lab.base / "other"
    other.mkdir()
    lab.mount()
    lab.must(*lab.mount_words(at=other))
    assert (lab.mountpoint.stat().st_dev) != other.stat().st_dev
    lab.umount()
    assert fresh(large(other)) == large(lab.tree).read_bytes()
    lab.mount("--loop-device")
    assert fresh(large(lab.mountpoint)) == fresh(large(other))
    lab.must("umount", other)
    assert len(lab.workers) > 0
    assert fresh(large(lab.mountpoint)) == large(lab.tree).read_bytes()


def test_remounts_in_a_row(lab: SealedLab) -> None:
    for _ in range(3):
        lab.mount()
        assert (lab.mountpoint / "mode-644").read_bytes() == b"644"
        lab.umount()
        assert not lab.is_mounted
        assert lab.records() == []


def test_many_mounts_at_once(lab: SealedLab) -> None:
    places = [lab.base / f"at-{number}" for number in range(6)]

    def mount_and_umount(place: Path) -> bytes:
        place.mkdir()
        content = b""
        for _ in range(2):
            lab.must(*lab.mount_words("--workers", "1", at=place))
            content += (place / "mode-644").read_bytes()
            lab.must("umount", place)
        return content

    works = [lambda place=place: mount_and_umount(place) for place in places]
    assert at_once(*works) == [b"644644"] * len(places)
    assert lab.records() == []


def test_names_of_any_kind(tmp_path: Path, material: Material) -> None:
    base = tmp_path / "with, comma\\ back:colon\nline ä"
    base.mkdir()
    with lab_in(base, material) as lab:
        lab.layer = lab.layer.rename(base / "a, layer\n \udcff.cis")
        lab.mount()
        assert (lab.mountpoint / "mode-644").read_bytes() == b"644"
        lab.umount()
        lab.mount("--loop-device")
        assert (lab.mountpoint / "mode-644").read_bytes() == b"644"


def test_a_layer_named_by_a_link_and_relatively(lab: SealedLab) -> None:
    (lab.base / "link").symlink_to("own.cis")
    lab.must("mount", "link", "open", "--log-file", "log", *lab.with_key)
    assert line_of(lab.mountpoint)[1][1] == str(lab.layer)
    assert lab.log.path.exists()
    assert stat.S_IMODE(lab.log.path.stat().st_mode) == 0o600
