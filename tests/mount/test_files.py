"""Content of files through the kernel: reading, writing, mapping, truncating, syncing, locking."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mount.harness.lab import Lab
from tests.mount.harness.linux import drop_caches, fails
from tests.mount.harness.processes import at_once

pytestmark = [pytest.mark.fuse, pytest.mark.root]

UNIT = 32 * 1024
SIZES = [0, 1, 15, 16, 17, 4095, 4096, UNIT - 1, UNIT, UNIT + 1, 3 * UNIT, (1 << 20) + 5]


def some_bytes(size: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest.mark.parametrize("size", SIZES)
def test_what_is_written_is_read(here: Path, size: int) -> None:
    file = here / "file"
    file.write_bytes(some_bytes(size))
    assert file.stat().st_size == size
    assert file.read_bytes() == some_bytes(size)


def test_content_outlives_a_remount_and_every_cache(lab: Lab) -> None:
    lab.mount()
    for size in SIZES:
        (lab.mountpoint / str(size)).write_bytes(some_bytes(size))
    lab.remount()
    for size in SIZES:
        assert (lab.mountpoint / str(size)).read_bytes() == some_bytes(size)


def test_writes_and_reads_at_offsets_agree_with_a_bytearray(here: Path) -> None:
    numbers, model = random.Random(7), bytearray()
    fd = os.open(here / "file", os.O_RDWR | os.O_CREAT)
    for _ in range(300):
        offset, size = numbers.randrange(6 * UNIT), numbers.choice([1, 16, 4096, UNIT, UNIT + 9])
        data = numbers.randbytes(size)
        model.extend(bytes(max(0, offset + size - len(model))))
        model[offset : offset + size] = data
        assert os.pwrite(fd, data, offset) == size
        probe = numbers.randrange(len(model))
        assert os.pread(fd, 5000, probe) == model[probe : probe + 5000]
    os.close(fd)
    drop_caches(1)
    assert (here / "file").read_bytes() == model


def test_reading_past_the_end_gives_nothing(here: Path) -> None:
    (here / "file").write_bytes(b"abc")
    with (here / "file").open("rb") as file:
        assert os.pread(file.fileno(), 10, 3) == b""
        assert os.pread(file.fileno(), 10, 1 << 40) == b""


def append_records(path: Path, writer: int, count: int) -> int:
    with path.open("ab", buffering=0) as file:
        for number in range(count):
            file.write(b"%02d:%06d;" % (writer, number))
    return count


def assert_all_appended(path: Path, writers: int, count: int) -> None:
    records = path.read_bytes().rstrip(b";").split(b";")
    assert sorted(records) == [b"%02d:%06d" % (w, n) for w in range(writers) for n in range(count)]


def test_appending_processes_lose_nothing(here: Path) -> None:
    path = here / "log"
    at_once(*(lambda writer=writer: append_records(path, writer, 500) for writer in range(4)))
    assert_all_appended(path, 4, 500)


def test_appending_threads_lose_nothing(here: Path) -> None:
    path = here / "log"
    threads = [threading.Thread(target=append_records, args=(path, n, 500)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert_all_appended(path, 4, 500)


def test_a_shared_mapping_is_written_back(here: Path) -> None:
    path = here / "file"
    path.write_bytes(bytes(3 * UNIT))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapping:
        mapping[UNIT - 3 : UNIT + 3] = b"mapped"
        mapping.flush()
        assert os.pread(file.fileno(), 6, UNIT - 3) == b"mapped"
        mapping[2 * UNIT] = 7
    drop_caches(1)
    content = path.read_bytes()
    assert (content[UNIT - 3 : UNIT + 3], content[2 * UNIT]) == (b"mapped", 7)


def test_two_processes_see_one_mapping(here: Path) -> None:
    path = here / "file"
    path.write_bytes(bytes(UNIT))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapping:

        def write() -> None:
            with path.open("r+b") as other, mmap.mmap(other.fileno(), 0) as theirs:
                theirs[:5] = b"hello"

        at_once(write)
        assert mapping[:5] == b"hello"


@pytest.mark.parametrize("old", [0, 1, UNIT, UNIT + 1, 5 * UNIT])
@pytest.mark.parametrize("new", [0, 1, UNIT - 1, UNIT, 3 * UNIT + 7, 9 * UNIT])
def test_truncating_keeps_the_front_and_adds_zeros(here: Path, old: int, new: int) -> None:
    path = here / "file"
    path.write_bytes(some_bytes(old))
    os.truncate(path, new)
    drop_caches(1)
    assert path.read_bytes() == some_bytes(old)[:new].ljust(new, b"\0")


def test_ftruncate_of_a_file_being_written(here: Path) -> None:
    with (here / "file").open("w+b", buffering=0) as file:
        file.write(some_bytes(2 * UNIT))
        file.truncate(10)
        file.write(b"end")  # at the old position: a hole lies between
        file.truncate(3 * UNIT)
    content = (here / "file").read_bytes()
    assert content == (some_bytes(2 * UNIT)[:10] + bytes(2 * UNIT - 10) + b"end").ljust(
        3 * UNIT, b"\0"
    )


def test_what_was_cut_off_does_not_come_back(here: Path) -> None:
    path = here / "file"
    path.write_bytes(b"s" * (UNIT + 100))
    os.truncate(path, 50)
    os.truncate(path, UNIT + 100)
    assert path.read_bytes() == b"s" * 50 + bytes(UNIT + 50)


def test_holes_read_as_zeros_and_cost_next_to_nothing(here: Path) -> None:
    path = here / "file"
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT))
    os.truncate(path, 1 << 30)
    with path.open("r+b") as file:
        file.seek(700 << 20)
        file.write(b"island")
    drop_caches(1)
    with path.open("rb") as file:
        assert os.pread(file.fileno(), 1 << 20, 123 << 20) == bytes(1 << 20)
        assert os.pread(file.fileno(), 8, (700 << 20) - 1) == b"\0island\0"
    assert path.stat().st_blocks * 512 < 4 << 20


def test_data_past_four_gibibytes(here: Path) -> None:
    path, at = here / "file", (5 << 30) + 12345
    with path.open("wb") as file:
        file.seek(at)
        file.write(some_bytes(3 * UNIT))
    drop_caches(1)
    assert path.stat().st_size == at + 3 * UNIT
    with path.open("rb") as file:
        assert os.pread(file.fileno(), 4 * UNIT, at) == some_bytes(3 * UNIT)
        assert os.pread(file.fileno(), 100, 4 << 30) == bytes(100)


def test_an_unlinked_open_file_goes_on(here: Path) -> None:
    path = here / "file"
    with path.open("w+b", buffering=0) as file:
        file.write(b"before")
        path.unlink()
        assert not path.exists()
        assert os.fstat(file.fileno()).st_nlink == 0
        file.write(some_bytes(2 * UNIT))
        os.fsync(file.fileno())
        os.fchmod(file.fileno(), 0o600)
        file.truncate(UNIT)
        path.write_bytes(b"another of that name")
        assert os.pread(file.fileno(), 10, 0) == b"before" + some_bytes(2 * UNIT)[:4]
        assert os.fstat(file.fileno()).st_size == UNIT
    assert path.read_bytes() == b"another of that name"


def test_an_open_file_that_is_replaced_by_rename_goes_on(here: Path) -> None:
    (here / "old").write_bytes(b"old")
    (here / "new").write_bytes(b"new")
    with (here / "old").open("r+b", buffering=0) as file:
        (here / "new").rename(here / "old")
        file.write(b"OLD")
        assert os.pread(file.fileno(), 3, 0) == b"OLD"
    assert (here / "old").read_bytes() == b"new"


def test_o_trunc_empties(here: Path) -> None:
    (here / "file").write_bytes(some_bytes(2 * UNIT))
    fd = os.open(here / "file", os.O_WRONLY | os.O_TRUNC)
    assert os.fstat(fd).st_size == 0
    os.write(fd, b"new")
    os.close(fd)
    assert (here / "file").read_bytes() == b"new"


def test_o_excl_refuses_what_exists(here: Path) -> None:
    (here / "file").touch()
    with pytest.raises(FileExistsError):
        os.open(here / "file", os.O_CREAT | os.O_EXCL | os.O_WRONLY)


def test_o_excl_lets_one_of_many_win(here: Path) -> None:
    def attempt() -> bool:
        try:
            os.close(os.open(here / "lock", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        except FileExistsError:
            return False
        return True

    assert sum(at_once(*[attempt] * 6)) == 1


def test_a_file_created_read_only_can_be_written_by_its_maker(here: Path) -> None:
    fd = os.open(here / "file", os.O_CREAT | os.O_WRONLY, 0o444)
    os.write(fd, b"once")
    os.close(fd)
    assert (here / "file").read_bytes() == b"once"


def test_a_descriptor_open_for_reading_cannot_write(here: Path) -> None:
    (here / "file").touch()
    with (here / "file").open("rb") as file, fails(errno.EBADF):
        os.write(file.fileno(), b"x")


def test_reading_and_writing_descriptors_of_one_file_agree(here: Path) -> None:
    path = here / "file"
    path.write_bytes(bytes(100))
    with path.open("rb", buffering=0) as reader, path.open("r+b", buffering=0) as writer:
        writer.write(b"seen at once")
        assert reader.read(12) == b"seen at once"
        os.truncate(path, 4)
        assert os.fstat(reader.fileno()).st_size == 4


@pytest.mark.parametrize("sync", [os.fsync, os.fdatasync])
def test_synced_content_is_in_the_vault(lab: Lab, sync: Callable[[int], None]) -> None:
    lab.mount()
    (lab.mountpoint / "dir").mkdir()
    with (lab.mountpoint / "dir/file").open("wb", buffering=0) as file:
        file.write(some_bytes(3 * UNIT))
        sync(file.fileno())
        # FORMAT.md, 3.3: stored size = plaintext size + 64 + 16 for each unit.
        assert lab.stored(lab.mountpoint / "dir/file").stat().st_size == 3 * UNIT + 64 + 3 * 16


def test_a_directory_can_be_synced(here: Path) -> None:
    (here / "sub").mkdir()
    fd = os.open(here / "sub", os.O_RDONLY | os.O_DIRECTORY)
    os.fsync(fd)
    os.fdatasync(fd)
    os.close(fd)


def test_sync_of_the_whole_mount(here: Path) -> None:
    (here / "file").write_bytes(b"x")
    os.sync()


def test_flock_excludes_another_process(here: Path) -> None:
    (here / "file").touch()

    def attempt() -> bool:
        with (here / "file").open("r+b") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            return True

    with (here / "file").open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert at_once(attempt) == [False]
        fcntl.flock(file, fcntl.LOCK_UN)
        assert at_once(attempt) == [True]


def test_fcntl_locks_cover_byte_ranges(here: Path) -> None:
    (here / "file").write_bytes(bytes(100))

    def attempt(start: int) -> bool:
        with (here / "file").open("r+b") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 10, start)
            except (BlockingIOError, PermissionError):
                return False
            return True

    with (here / "file").open("r+b") as file:
        fcntl.lockf(file, fcntl.LOCK_EX, 10, 0)
        assert at_once(lambda: attempt(5), lambda: attempt(50)) == [False, True]


def test_fallocate_fails_in_good_order(here: Path) -> None:
    """pyfuse3 has no fallocate; glibc's posix_fallocate writes zeros instead."""
    with (here / "file").open("w+b") as file:
        os.posix_fallocate(file.fileno(), 0, 3 * UNIT)
        assert os.fstat(file.fileno()).st_size == 3 * UNIT


def test_copying_within_the_mount(here: Path) -> None:
    (here / "file").write_bytes(some_bytes(5 * UNIT + 3))
    with (here / "file").open("rb") as source, (here / "copy").open("wb") as target:
        left = 5 * UNIT + 3
        while left:
            left -= os.copy_file_range(source.fileno(), target.fileno(), left)
    assert (here / "copy").read_bytes() == some_bytes(5 * UNIT + 3)


def test_a_program_runs_from_the_mount(here: Path) -> None:
    import shutil
    import subprocess

    shutil.copy("/bin/true", here / "true")
    assert subprocess.run([here / "true"], check=False, timeout=60).returncode == 0
