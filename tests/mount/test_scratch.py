"""The mounted scratch: an ordinary ext4 to its users, noise to whoever finds its file."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import stat
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cisfs.errors import BusyError, MountError
from cisfs.keys.credentials import RawKey
from cisfs.layer.scratch import EphemeralImage
from cisfs.layer.scratch_persistent import PersistentImage
from cisfs.mount import scratch as scratches
from cisfs.mount.assignment import MountOptions
from tests.mount.harness import linux, processes
from tests.mount.harness.linux import drop_caches, fails
from tests.mount.harness.processes import NOBODY, wait_until
from tests.mount.harness.scratches import MIB, ScratchLab, fsck, lab_in
from tests.mount.harness.trees import assert_same, snapshot

pytestmark = [pytest.mark.fuse, pytest.mark.root]

KEY = RawKey(bytes(range(32)))
CANARY = b"the canary that must never be seen on a disk\n"


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[ScratchLab]:
    with lab_in(tmp_path) as made:
        yield made


def noise(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


def fill(directory: Path, seed: int = 1, files: int = 400) -> None:
    """Make a tree of files of many sizes, some changed, cut or removed afterwards."""
    chance = random.Random(seed)
    for number in range(files):
        place = directory / str(number % 7)
        place.mkdir(exist_ok=True)
        (place / str(number)).write_bytes(
            chance.randbytes(chance.choice([0, 1, 300, 5000, 70_000]))
        )
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    for path in chance.sample(paths, files // 4):
        with path.open("r+b") as file:
            file.seek(chance.randrange(80_000))
            file.write(chance.randbytes(chance.choice([1, 4096, 9000])))
    for path in chance.sample(paths, files // 8):
        path.unlink()


# ---- a file system like any other


def test_it_has_the_directories_of_an_overlay_and_nothing_else(lab: ScratchLab) -> None:
    mountpoint = lab.mount()
    assert {path.name for path in mountpoint.iterdir()} == {"upper", "work", "lost+found"}
    assert linux.mounts_below(lab.base) == [linux.Mounted(mountpoint, "ext4")]
    assert "fuse" not in [mount.fstype for mount in linux.mounts_below(lab.base)]


def test_what_is_written_is_read_back_from_the_disk(lab: ScratchLab) -> None:
    upper = lab.mount() / "upper"
    fill(upper)
    (upper / "large").write_bytes(noise(40 * MIB))
    before = snapshot(upper)
    drop_caches(3)
    assert_same(snapshot(upper), before)
    with lab.unmounted() as device:
        assert fsck(device) == ""


def test_databases_overwrite_small_pieces(lab: ScratchLab) -> None:
    path = lab.mount() / "upper" / "database"
    model = bytearray(noise(8 * MIB))
    path.write_bytes(model)
    drop_caches(3)
    chance = random.Random(4)
    with path.open("r+b", buffering=0) as file:
        for _ in range(300):
            at, piece = (
                chance.randrange(len(model) - 9000),
                noise(chance.choice([1, 512, 4096, 9000])),
            )
            os.pwrite(file.fileno(), piece, at)
            model[at : at + len(piece)] = piece
            os.fsync(file.fileno())
    drop_caches(3)
    assert path.read_bytes() == model


def test_an_overlay_works_on_it(lab: ScratchLab) -> None:
    mountpoint = lab.mount()
    lower, merged = lab.base / "lower", lab.base / "merged"
    for each in (lower, merged):
        each.mkdir()
    (lower / "file").write_bytes(b"lower")
    (lower / "gone").write_bytes(b"lower")
    upper, work = mountpoint / scratches.UPPER, mountpoint / scratches.WORK
    linux.mount("none", merged, "overlay", 0, f"lowerdir={lower},upperdir={upper},workdir={work}")
    try:
        (merged / "file").write_bytes(b"upper")
        (merged / "gone").unlink()
        (merged / "file").chmod(0o4755)
        os.mknod(merged / "device", stat.S_IFCHR | 0o600, os.makedev(1, 5))
        with (merged / "device").open("rb") as device:
            assert device.read(16) == bytes(16)
        os.setxattr(merged / "file", "trusted.note", b"kept")
        assert sorted(os.listdir(merged)) == ["device", "file"]
    finally:
        linux.umount(merged)
    assert stat.S_ISCHR((upper / "gone").stat().st_mode)
    assert stat.S_IMODE((upper / "file").stat().st_mode) == 0o4755


def test_a_full_scratch_says_so_to_the_writer(tmp_path: Path) -> None:
    with lab_in(tmp_path, size=32 * MIB) as lab:
        upper = lab.mount() / "upper"
        (upper / "first").write_bytes(noise(MIB))
        with fails(errno.ENOSPC), (upper / "much").open("wb") as file:
            for _ in range(40):
                file.write(noise(MIB))
        drop_caches(3)
        assert (upper / "first").read_bytes() == noise(MIB)


@pytest.mark.parametrize("how", ["deleted", "trimmed"])
def test_what_is_deleted_takes_no_space(lab: ScratchLab, how: str) -> None:
    upper = lab.mount() / "upper"
    (upper / "kept").write_bytes(noise(MIB))
    os.sync()
    before = lab.space()
    (upper / "large").write_bytes(noise(64 * MIB))
    os.sync()
    assert lab.space() >= before + 64 * MIB
    (upper / "large").unlink()
    os.sync()
    if how == "trimmed":
        subprocess.run(["fstrim", str(upper.parent)], check=True, timeout=60)
    wait_until(lambda: lab.space() < before + 2 * MIB, "the space is given back", patience=10)
    drop_caches(3)
    assert (upper / "kept").read_bytes() == noise(MIB)


# ---- what is on the disk


def test_nothing_that_is_written_is_on_the_disk(lab: ScratchLab) -> None:
    upper = lab.mount() / "upper"
    (upper / "a canary by name").write_bytes(CANARY * 5000)
    (upper / "link").symlink_to("canary target")
    os.setxattr(upper / "a canary by name", "user.canary", CANARY)
    os.sync()
    assert os.listdir(lab.backing) == []
    stored = lab.stored().read_bytes()
    assert any(stored)
    assert b"canary" not in stored
    assert b"lost+found" not in stored


def test_what_is_altered_on_the_disk_is_an_error(lab: ScratchLab) -> None:
    path = lab.mount() / "upper" / "file"
    path.write_bytes(noise(MIB))
    (path.parent / "other").write_bytes(noise(MIB, 2))
    os.sync()
    before = lab.stored().read_bytes()
    drop_caches(3)
    assert path.read_bytes() == noise(MIB)  # its inode is in memory now
    _forget(path)
    with lab.stored().open("r+b") as file:
        for at in range(0, len(before), 4096):
            if any(before[at : at + 16]):
                file.seek(at + 7)
                file.write(bytes([before[at + 7] ^ 1]))
    with fails(errno.EIO):
        path.read_bytes()
    lab.expect("of the scratch was altered")
    lab.stored().write_bytes(before)
    assert path.read_bytes() == noise(MIB)


def _forget(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(fd)


def test_a_full_disk_below_it_loses_nothing_that_was_there(lab: ScratchLab) -> None:
    linux.mount("none", lab.backing, "tmpfs", 0, "size=8m")
    upper = lab.mount() / "upper"
    (upper / "first").write_bytes(noise(2 * MIB))
    os.sync()
    lab.expect("No space left")
    with (upper / "much").open("wb") as file, fails(errno.EIO, errno.ENOSPC):
        for _ in range(16):
            file.write(noise(MIB))
        os.fsync(file.fileno())
    drop_caches(3, sync=False)
    assert (upper / "first").read_bytes() == noise(2 * MIB)
    lab.stop()
    linux.umount(lab.backing)


# ---- the server


def test_the_server_has_no_privileges_and_little_else(lab: ScratchLab) -> None:
    lab.mount()
    status = Path(f"/proc/{lab.server}/status").read_text()
    assert f"Uid:\t{NOBODY}\t{NOBODY}\t{NOBODY}\t{NOBODY}" in status
    assert "Groups:\t \n" in status
    assert "CapEff:\t0000000000000000" in status
    assert "NoNewPrivs:\t1" in status
    places = sorted(place for place, _ in processes.descriptors(lab.server).values())
    rest = [place for place in places if not place.startswith(("/dev/null", "pipe:"))]
    assert len(rest) == 4
    assert rest[0] == "/dev/fuse"
    assert rest[1].startswith(str(lab.backing))  # through the page cache, and past it
    assert rest[2] == rest[1]
    assert rest[3] == str(lab.log)


def test_a_server_that_is_killed_means_errors_and_no_hang(lab: ScratchLab) -> None:
    upper = lab.mount() / "upper"
    (upper / "file").write_bytes(noise(MIB))
    drop_caches(3)
    lab.kill()
    with fails(errno.EIO):
        (upper / "file").read_bytes()
    with fails(errno.EIO, errno.EROFS), (upper / "other").open("wb") as file:
        file.write(noise(MIB))
        os.fsync(file.fileno())
    started = time.monotonic()
    linux.umount(lab.mountpoint)
    assert time.monotonic() - started < processes.PATIENCE
    lab.mounted = None


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_server(lab: ScratchLab, number: signal.Signals) -> None:
    upper = lab.mount() / "upper"
    (upper / "file").write_bytes(noise(MIB))
    drop_caches(3)
    os.kill(lab.server, number)
    assert os.waitstatus_to_exitcode(os.waitpid(lab.server, 0)[1]) == 0
    with fails(errno.EIO):
        (upper / "file").read_bytes()
    linux.umount(lab.mountpoint)
    lab.mounted = None


def test_a_scratch_in_use_is_stopped_all_the_same(lab: ScratchLab) -> None:
    upper = lab.mount() / "upper"
    (upper / "file").write_bytes(noise(MIB))
    drop_caches(3)
    fd = os.open(upper / "file", os.O_RDONLY)
    try:
        assert lab.mounted is not None
        lab.mounted.stop()
        assert not processes.alive(lab.server)
        with fails(errno.EIO):
            os.pread(fd, MIB, 0)
    finally:
        os.close(fd)
    lab.mounted = None


def test_a_destroyed_scratch_is_read_no_more_and_can_be_unmounted(lab: ScratchLab) -> None:
    upper = lab.mount() / "upper"
    (upper / "file").write_bytes(noise(4 * MIB))
    drop_caches(3)
    before = lab.stored().read_bytes()
    fd = os.open(upper / "file", os.O_RDWR)
    assert lab.mounted is not None
    lab.mounted.destroy()
    wait_until(lambda: _is_refused(fd), "the key is gone")
    assert os.pwrite(fd, noise(MIB), 0) == MIB
    os.fsync(fd)
    os.close(fd)
    assert lab.stored().read_bytes() == before
    lab.stop()


def _is_refused(fd: int) -> bool:
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    try:
        os.pread(fd, 2 * MIB, 2 * MIB)
    except OSError as error:
        return error.errno == errno.EIO
    return False


# ---- namespaces


def test_it_goes_with_the_namespace_that_it_was_mounted_in(lab: ScratchLab) -> None:
    home = os.open("/proc/self/ns/mnt", os.O_RDONLY)

    def mount_and_leave() -> tuple[int, str, str]:
        linux.unshare_mounts()
        lab.mount(home=home)
        (lab.mountpoint / "upper" / "file").write_bytes(noise(MIB))
        return lab.server, lab.loop, os.readlink(f"/proc/{lab.server}/ns/mnt")

    linux.adopt_orphans()
    try:
        server, _, namespace = processes.Child(mount_and_leave).result()
    finally:
        linux.adopt_orphans(adopt=False)
    os.close(home)
    assert namespace == os.readlink("/proc/self/ns/mnt")
    assert linux.mounts_below(lab.base) == []
    assert os.waitstatus_to_exitcode(os.waitpid(server, 0)[1]) == 0


def test_nothing_is_left_when_it_cannot_be_mounted(lab: ScratchLab) -> None:
    image = EphemeralImage(lab.backing, lab.size)
    shutil.rmtree(lab.mountpoint)
    before = set(_children())
    with pytest.raises((MountError, OSError)):
        scratches.start(image, lab.mountpoint, MountOptions(log_file=lab.log))
    assert set(_children()) == before
    assert image._cipher is None
    lab.mountpoint.mkdir()


def _children() -> list[str]:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


def test_the_caller_keeps_no_key(lab: ScratchLab) -> None:
    image = EphemeralImage(lab.backing, lab.size)
    assert image._cipher is not None
    key = image._cipher._key
    lab.mount(image)
    assert not any(key)


# ---- the scratch that stays


@pytest.fixture
def persistent(lab: ScratchLab) -> Path:
    """The place of a scratch that was made, and is not mounted."""
    path = lab.base / "persistent"
    PersistentImage.create(path, KEY, lab.size).close()
    return path


def test_a_persistent_scratch_is_there_again(lab: ScratchLab, persistent: Path) -> None:
    upper = lab.mount(PersistentImage.open(persistent, KEY)) / "upper"
    fill(upper)
    before = snapshot(upper, times=True)
    lab.stop()
    assert not any(_journal_records(persistent))
    upper = lab.mount(PersistentImage.open(persistent, KEY)) / "upper"
    assert_same(snapshot(upper, times=True), before)
    with lab.unmounted() as device:
        assert fsck(device) == ""


def test_what_was_synced_survives_the_death_of_the_server(
    lab: ScratchLab, persistent: Path
) -> None:
    upper = lab.mount(PersistentImage.open(persistent, KEY)) / "upper"
    fill(upper)
    before = snapshot(upper)
    os.sync()
    (upper / "database").write_bytes(noise(2 * MIB))
    with (upper / "database").open("r+b", buffering=0) as file:
        os.fsync(file.fileno())
        for at in range(0, MIB, 50_000):
            os.pwrite(file.fileno(), b"synced", at)
            os.fdatasync(file.fileno())
    lab.kill()
    linux.umount(lab.mountpoint)
    lab.wait_for_loops()
    upper = lab.mount(PersistentImage.open(persistent, KEY)) / "upper"
    model = bytearray(noise(2 * MIB))
    for at in range(0, MIB, 50_000):
        model[at : at + 6] = b"synced"
    assert (upper / "database").read_bytes() == model
    (upper / "database").unlink()
    assert_same(snapshot(upper), before)
    with lab.unmounted() as device:
        assert fsck(device) == ""


def test_what_is_synced_is_off_the_journal(lab: ScratchLab, persistent: Path) -> None:
    """Which says that the backing file was synced, too."""
    upper = lab.mount(PersistentImage.open(persistent, KEY)) / "upper"
    (upper / "file").write_bytes(noise(4 * MIB))
    with (upper / "file").open("rb") as file:
        os.fsync(file.fileno())
    wait_until(lambda: not any(_journal_records(persistent)), "no record is held", patience=5)


def _journal_records(vault: Path) -> bytes:
    return (vault / "cisfs.journal").read_bytes()[64:]


def test_a_server_killed_in_the_middle_of_writing_leaves_a_whole_file_system(
    lab: ScratchLab, persistent: Path
) -> None:
    upper = lab.mount(PersistentImage.open(persistent, KEY)) / "upper"
    (upper / "kept").write_bytes(noise(MIB))
    os.sync()
    writer = processes.Child(lambda: _write_until_it_fails(upper))
    wait_until(lambda: _space(persistent) > 8 * MIB, "it writes")
    lab.kill()
    assert writer.result() in (errno.EIO, errno.EROFS)
    linux.umount(lab.mountpoint, linux.MNT_DETACH)
    lab.wait_for_loops()
    upper = lab.mount(PersistentImage.open(persistent, KEY)) / "upper"
    assert (upper / "kept").read_bytes() == noise(MIB)
    with lab.unmounted() as device:
        assert fsck(device) == ""


def _write_until_it_fails(directory: Path) -> int:
    number = 0
    while True:
        number += 1
        try:
            with (directory / f"file{number % 50}").open("wb") as file:
                file.write(noise(300_000, number))
                os.fsync(file.fileno())
        except OSError as error:
            return error.errno or 0


def _space(vault: Path) -> int:
    return sum(path.stat().st_blocks * 512 for path in vault.iterdir())


def test_a_signal_ends_a_persistent_scratch_in_good_order(
    lab: ScratchLab, persistent: Path
) -> None:
    upper = lab.mount(PersistentImage.open(persistent, KEY)) / "upper"
    (upper / "file").write_bytes(noise(MIB))
    os.sync()
    lab.kill(signal.SIGTERM)
    linux.umount(lab.mountpoint, linux.MNT_DETACH)
    lab.wait_for_loops()
    upper = lab.mount(PersistentImage.open(persistent, KEY)) / "upper"
    assert (upper / "file").read_bytes() == noise(MIB)


def test_a_persistent_scratch_is_for_one_at_a_time(lab: ScratchLab, persistent: Path) -> None:
    lab.mount(PersistentImage.open(persistent, KEY))
    with pytest.raises(BusyError):
        PersistentImage.open(persistent, KEY)
    lab.stop()
    PersistentImage.open(persistent, KEY).close()


@pytest.mark.parametrize("how", ["deleted", "trimmed"])
def test_what_is_deleted_takes_no_space_in_a_persistent_one(
    lab: ScratchLab, persistent: Path, how: str
) -> None:
    upper = lab.mount(PersistentImage.open(persistent, KEY)) / "upper"
    (upper / "kept").write_bytes(noise(MIB))
    os.sync()
    before = _space(persistent)
    (upper / "large").write_bytes(noise(32 * MIB))
    os.sync()
    assert _space(persistent) >= before + 32 * MIB
    (upper / "large").unlink()
    os.sync()
    if how == "trimmed":
        subprocess.run(["fstrim", str(upper.parent)], check=True, timeout=60)
    wait_until(
        lambda: _space(persistent) < before + 4 * MIB, "the space is given back", patience=10
    )
    assert (upper / "kept").read_bytes() == noise(MIB)


def test_nothing_that_is_written_is_in_the_vault(lab: ScratchLab, persistent: Path) -> None:
    upper = lab.mount(PersistentImage.open(persistent, KEY)) / "upper"
    (upper / "a canary by name").write_bytes(CANARY * 5000)
    lab.stop()
    for path in persistent.iterdir():
        stored = path.read_bytes()
        assert b"canary" not in stored
        assert b"lost+found" not in stored
