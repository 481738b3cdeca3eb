"""A directory as a source: what is found in it, and an index that reads its files in place."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from cisfs.build.directory import index_directory
from cisfs.build.index import Index
from cisfs.errors import CisfsError, UsageError
from tests.mount.harness.processes import NOBODY, as_user
from tests.unit.tars import content, entries

Change = Callable[[Path], object]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A directory with some of everything that an ordinary user can make."""
    root = tmp_path / "source"
    (root / "d/empty").mkdir(parents=True)
    (root / "d/f").write_bytes(b"content")
    (root / "d/f").chmod(0o640)
    os.utime(root / "d/f", ns=(1, 123_456_789_012_345_678))
    os.link(root / "d/f", root / "linked")
    (root / "d/g").write_bytes(b"content")
    (root / "s").symlink_to("/etc/passwd")
    os.mkfifo(root / "p")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.fspath(root / "socket"))
    os.setxattr(root / "d", "user.x", b"1")
    os.close(os.open(os.fsencode(root) + b"/\xff\n", os.O_CREAT))
    return root


def test_everything_is_in_the_index(root: Path) -> None:
    found = entries(index_directory(root))
    names = {b"d", b"d/empty", b"d/f", b"d/g", b"linked", b"s", b"p", b"socket", b"\xff\n"}
    assert set(found) == {b"", *names}
    for name in names:
        status = os.lstat(os.path.join(os.fsencode(root), name))
        entry = found[name]
        assert (entry.mode, entry.uid, entry.gid) == (status.st_mode, status.st_uid, status.st_gid)
        assert (entry.mtime_ns, entry.rdev) == (status.st_mtime_ns, status.st_rdev)
        assert entry.links == status.st_nlink
    assert found[b"d/f"] is found[b"linked"]
    assert content(found[b"d/f"]) == b"content"
    assert found[b"s"].target == b"/etc/passwd"
    assert found[b"d"].xattrs == {b"user.x": b"1"}


def test_an_index_counts_inodes_and_bytes(root: Path) -> None:
    (root / "large").write_bytes(bytes(100_000))
    totals = index_directory(root).totals
    assert (totals.entries, totals.content) == (10, 100_014)
    assert totals.image > 100_000


def test_the_directory_itself_may_be_named_through_a_symlink(root: Path, tmp_path: Path) -> None:
    (tmp_path / "name").symlink_to("source")
    assert root.name == "source"
    index = index_directory(tmp_path / "name")
    assert index.root.xattrs == {}
    assert content(entries(index)[b"d/f"]) == b"content"


def test_a_relative_path_is_still_right_from_elsewhere(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(root.parent)
    index = index_directory(Path("source"))
    monkeypatch.chdir("/")
    assert content(entries(index)[b"d/f"]) == b"content"


def indexed(root: Path, change: Change) -> Index:
    index = index_directory(root)
    change(root / "d/g")
    return index


def replace(path: Path) -> None:
    """Another file with the same size, times and mode."""
    status = path.stat()
    path.with_name("new").write_bytes(b"CONTENT")
    path.with_name("new").rename(path)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def replace_by(path: Path, make: Change) -> None:
    path.unlink()
    make(path)


CHANGES: dict[str, Change] = {
    "written": lambda path: path.write_bytes(b"CONTENT"),
    "longer": lambda path: os.truncate(path, 8),
    "shorter": lambda path: os.truncate(path, 6),
    "touched": os.utime,
    "replaced": replace,
    "gone": lambda path: path.unlink(),
    "a symlink": lambda path: replace_by(path, lambda at: at.symlink_to("/etc/passwd")),
    "a fifo": lambda path: replace_by(path, os.mkfifo),
    "a directory": lambda path: replace_by(path, lambda at: at.mkdir()),
    "its directory gone": lambda path: path.parent.rename(path.parent.with_name("e")),
    "its directory a file": lambda path: replace_by(
        path.parent.rename(path.parent.with_name("e")) / "g",
        lambda _: path.parent.write_bytes(b""),
    ),
}


@pytest.mark.parametrize("how", CHANGES)
def test_a_file_that_changes_meanwhile_is_an_error_that_names_it(root: Path, how: str) -> None:
    index = indexed(root, CHANGES[how])
    with pytest.raises(CisfsError, match=r"d/g' changed while it was being sealed"):
        content(entries(index)[b"d/g"])


def test_a_file_that_changes_just_then_is_an_error(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, real = index_directory(root), os.pread

    def read_and_change(fd: int, size: int, offset: int) -> bytes:
        data = real(fd, size, offset)
        os.utime(root / "d/g")
        return data

    monkeypatch.setattr(os, "pread", read_and_change)
    with pytest.raises(CisfsError, match=r"d/g' changed while it was being sealed"):
        content(entries(index)[b"d/g"])


def test_what_does_not_concern_the_content_is_no_change(root: Path) -> None:
    index = indexed(root, lambda path: path.chmod(0o600))
    assert content(entries(index)[b"d/g"]) == b"content"


def test_a_directory_that_cannot_be_read_is_named() -> None:
    with tempfile.TemporaryDirectory() as place:  # not pytest's, which is closed to other users
        os.chmod(place, 0o755)
        closed = Path(place, "closed")
        closed.mkdir(mode=0)
        with pytest.raises(PermissionError, match="closed"):
            as_ordinary_user(partial(index_directory, Path(place)))
        closed.chmod(0o700)


def as_ordinary_user(work: Callable[[], object]) -> None:
    """Call `work` without root's rights; raises its OSError."""
    if os.geteuid() == 0:
        as_user(NOBODY, Path("/"), work)
    else:
        work()


def test_a_directory_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        index_directory(tmp_path / "nowhere")


def test_no_symlink_is_followed(root: Path) -> None:
    (root / "up").symlink_to("..")
    (root / "gone").symlink_to("nowhere")
    assert index_directory(root).totals.entries == 11
    assert {b"up", b"gone"} < set(entries(index_directory(root)))


def test_a_deep_directory_is_no_recursion() -> None:
    deeper = "/".join("d" * 1050)
    place = tempfile.mkdtemp()
    try:
        subprocess.run(["mkdir", "-p", f"{place}/{deeper}"], check=True)
        assert len(index_directory(Path(place)).entries) == 1051
    finally:
        subprocess.run(["rm", "-rf", place], check=True)  # Python's own way is a recursion


def test_whiteouts_in_a_directory_are_refused_by_path(root: Path) -> None:
    (root / "d/.wh.").touch()
    with pytest.raises(UsageError, match=r"source/d/\.wh\.': is no proper whiteout"):
        index_directory(root)


# ---- sparse files


def test_the_holes_of_a_file_are_known(root: Path) -> None:
    sparse = root / "sparse"
    with sparse.open("wb") as file:
        file.truncate(8 << 20)
        os.pwrite(file.fileno(), b"data", 5 << 20)
    (root / "full").write_bytes(b"x" * (1 << 20))
    found = entries(index_directory(root))
    assert found[b"full"].extents is None
    entry = found[b"sparse"]
    if sparse.stat().st_blocks * 512 > 4 << 20:
        pytest.skip("this file system keeps no holes")
    assert entry.extents is not None
    assert sum(length for _, length in entry.extents) < 1 << 20
    assert any(at <= 5 << 20 < at + length for at, length in entry.extents)
    assert content(entry) == sparse.read_bytes()
    sparse.write_bytes(b"")
    os.truncate(sparse, 1 << 20)
    assert entries(index_directory(root))[b"sparse"].extents == []


def test_a_sparse_file_that_changes_just_then_is_an_error(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.truncate(root / "d/g", 8 << 20)
    real = os.lseek

    def seek_and_change(fd: int, at: int, how: int) -> int:
        os.utime(root / "d/g")
        return real(fd, at, how)

    monkeypatch.setattr(os, "lseek", seek_and_change)
    with pytest.raises(CisfsError, match=r"d/g' changed while it was being sealed"):
        index_directory(root)
