"""Who gets in: other users with and without --allow-other, and read-only mounts."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mount.harness.lab import Lab
from tests.mount.harness.linux import fails
from tests.mount.harness.processes import NOBODY, as_user

pytestmark = [pytest.mark.fuse, pytest.mark.root]


def test_another_user_is_refused(lab: Lab) -> None:
    root = lab.mount()
    root.chmod(0o777)
    (root / "file").touch(0o666)
    with pytest.raises(PermissionError):
        as_user(NOBODY, root, lambda: os.listdir("."))
    with pytest.raises(PermissionError):
        as_user(NOBODY, root, lambda: os.stat("file"))


def test_modes_decide_with_allow_other(here: Path) -> None:
    (here / "open").write_text("yes")
    (here / "closed").write_text("no")
    (here / "closed").chmod(0o600)
    assert as_user(NOBODY, here, lambda: Path("open").read_text()) == "yes"
    refused: list[Callable[[], object]] = [
        lambda: Path("closed").read_text(),
        lambda: Path("open").write_text("x"),
        lambda: Path("new").touch(),
        lambda: os.unlink("open"),
        lambda: os.chmod("open", 0o777),
        lambda: os.chown("open", NOBODY, NOBODY),
    ]
    for attempt in refused:
        with pytest.raises(PermissionError):
            as_user(NOBODY, here, attempt)


def test_a_user_works_in_a_directory_of_his_own(here: Path) -> None:
    os.chown(here, NOBODY, NOBODY)
    here.chmod(0o700)

    def work() -> str:
        Path("file").write_text("mine")
        os.chmod("file", 0o400)
        os.link("file", "link")
        Path("dir").mkdir()
        os.rename("link", "dir/link")
        return Path("dir/link").read_text()

    assert as_user(NOBODY, here, work) == "mine"


def test_supplementary_rights_do_not_leak_from_the_server(here: Path) -> None:
    """The server is root; a user's chmod to a foreign group's set-gid must still be stripped."""
    os.chown(here, NOBODY, NOBODY)

    def work() -> int:
        Path("file").touch()
        os.chown("file", -1, NOBODY)
        with pytest.raises(PermissionError):
            os.chown("file", -1, 4242)
        return os.stat("file").st_gid

    assert as_user(NOBODY, here, work) == NOBODY


def test_a_read_only_mount_reads_and_changes_nothing(lab: Lab) -> None:
    root = lab.mount()
    (root / "file").write_text("content")
    os.setxattr(root / "file", "user.x", b"1")
    lab.remount("--read-only")
    assert (root / "file").read_text() == "content"
    assert os.getxattr(root / "file", "user.x") == b"1"
    attempts: list[Callable[[], object]] = [
        lambda: (root / "file").write_text("x"),
        (root / "new").touch,
        (root / "dir").mkdir,
        (root / "file").unlink,
        lambda: (root / "file").rename(root / "other"),
        lambda: (root / "file").chmod(0o600),
        lambda: os.utime(root / "file"),
        lambda: os.setxattr(root / "file", "user.y", b"1"),
        lambda: os.removexattr(root / "file", "user.x"),
        lambda: os.truncate(root / "file", 0),
    ]
    for attempt in attempts:
        with fails(errno.EROFS):
            attempt()


def test_a_read_only_mount_leaves_every_backing_byte_and_time_alone(lab: Lab) -> None:
    root = lab.mount()
    (root / "file").write_bytes(bytes(100_000))
    (root / "dir").mkdir()
    lab.umount()

    def backing() -> dict[str, tuple[int, int, int, int]]:
        found = {}
        for directory, names, files in os.walk(lab.vault):
            for path in (Path(directory, name) for name in (*names, *files)):
                status = path.lstat()
                found[str(path)] = (
                    status.st_size,
                    status.st_mtime_ns,
                    status.st_ctime_ns,
                    status.st_ino,
                )
        return found

    before = backing()
    lab.mount("--read-only")
    assert (root / "file").read_bytes() == bytes(100_000)
    assert sorted(os.listdir(root)) == ["dir", "file"]
    lab.umount()
    assert backing() == before
