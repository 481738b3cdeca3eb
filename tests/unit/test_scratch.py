"""The ephemeral scratch: what goes in comes out, and nothing else ever does."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from cisfs.build.scratch import UNIT_SIZE, Scratch
from cisfs.errors import FormatError, IntegrityError

BATCH = 1 << 20
SIZES = [0, 1, 15, 16, 17]
SIZES += [UNIT_SIZE - 1, UNIT_SIZE, UNIT_SIZE + 1]
SIZES += [BATCH - 1, BATCH, BATCH + 1, 2 * BATCH + UNIT_SIZE]


def filled(directory: Path, content: bytes, piece: int = 100_000) -> Scratch:
    scratch = Scratch(directory)
    for at in range(0, len(content), piece):
        scratch.append(content[at : at + piece])
    scratch.finish()
    return scratch


def stored(scratch: Scratch) -> bytes:
    return os.pread(scratch._fd, 1 << 24, 0)


@pytest.mark.parametrize("piece", [1000, UNIT_SIZE, BATCH, 3 * BATCH + 5])
@pytest.mark.parametrize("size", SIZES)
def test_what_was_written_is_read(tmp_path: Path, size: int, piece: int) -> None:
    content = random.Random(size).randbytes(size)
    scratch = filled(tmp_path, content, piece)
    assert scratch.size == size
    assert bytes(scratch.read(0, size)) == content
    rng = random.Random(size)
    for _ in range(20):
        start = rng.randint(0, size)
        end = rng.randint(start, size)
        assert bytes(scratch.read(start, end - start)) == content[start:end]
    scratch.close()


def test_it_has_no_name_and_nothing_of_the_content_is_in_it(tmp_path: Path) -> None:
    content = b"a secret of sixteen bytes or more" * 5000
    scratch = filled(tmp_path, content)
    assert os.listdir(tmp_path) == []
    assert os.fstat(scratch._fd).st_nlink == 0
    assert b"secret" not in stored(scratch)
    scratch.close()


def test_equal_content_is_stored_differently_each_time(tmp_path: Path) -> None:
    one, other = (filled(tmp_path, bytes(100_000)) for _ in range(2))
    units = {stored(each)[at : at + 64] for each in (one, other) for at in (1000, 50_000)}
    assert len(units) == 4
    assert one._context.master != other._context.master
    assert stored(one)[16:32] != stored(other)[16:32]
    one.close()
    other.close()


def test_the_key_shows_nowhere(tmp_path: Path) -> None:
    scratch = filled(tmp_path, b"x")
    key = scratch._context.master.reveal()
    assert key not in stored(scratch)
    assert key.hex() not in repr(scratch._context)
    scratch.close()


@pytest.mark.parametrize(
    "damage",
    [
        lambda fd: os.pwrite(fd, bytes([os.pread(fd, 1, 40_000)[0] ^ 1]), 40_000),
        lambda fd: os.pwrite(fd, bytes(UNIT_SIZE + 16), 32 + UNIT_SIZE + 16),
        lambda fd: os.pwrite(fd, os.pread(fd, UNIT_SIZE + 16, 32), 32 + UNIT_SIZE + 16),
        lambda fd: os.truncate(fd, 40_000),
    ],
    ids=["altered", "zeroed", "moved", "cut off"],
)
def test_damage_is_found_before_a_byte_is_returned(
    tmp_path: Path, damage: Callable[[int], object]
) -> None:
    scratch = filled(tmp_path, random.Random(1).randbytes(4 * UNIT_SIZE))
    damage(scratch._fd)
    with pytest.raises((IntegrityError, FormatError), match="scratch"):
        scratch.read(UNIT_SIZE + 10, 10)
    assert len(scratch.read(0, 100)) == 100
    scratch.close()


def test_a_scratch_is_read_only_when_it_is_finished(tmp_path: Path) -> None:
    scratch = Scratch(tmp_path)
    scratch.append(b"x")
    with pytest.raises(ValueError, match="finished"):
        scratch.read(0, 1)
    scratch.close()


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EISDIR])
def test_a_file_system_without_nameless_files_will_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    real = os.open

    def without_tmpfile(path: str, flags: int, mode: int = 0o777, **more: int) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(number, os.strerror(number))
        return real(path, flags, mode, **more)

    monkeypatch.setattr(os, "open", without_tmpfile)
    scratch = filled(tmp_path, b"content")
    assert bytes(scratch.read(0, 7)) == b"content"
    assert os.listdir(tmp_path) == []
    scratch.close()


def test_a_directory_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="gone"):
        Scratch(tmp_path / "gone")


def test_a_full_disk_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scratch = Scratch(tmp_path)
    monkeypatch.setattr(os, "pwrite", lambda *_: 0)
    with pytest.raises(OSError, match="No space"):
        scratch.append(bytes(2 * BATCH))
    monkeypatch.undo()
    scratch.close()
