"""The mount table and the checks of a mount point, without mounting anything."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from cisfs.errors import MountError, NoFuseError
from cisfs.mount import points, unmount

TABLE = r"""22 1 0:20 / / rw,relatime shared:1 - ext4 /dev/vda rw
40 22 0:39 / /srv/with\040space\011tab\012line\134slash rw,nosuid - fuse.cisfs /va\054ult rw
41 22 0:40 / /srv/twice rw - tmpfs none rw
42 41 0:41 / /srv/twice ro,relatime shared:7 master:2 - fuse.cisfs /vault rw,user_id=0
not a mountinfo line
"""


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    file = tmp_path / "mountinfo"
    file.write_text(TABLE)
    monkeypatch.setattr(points, "_MOUNTINFO", file)
    return file


def test_the_kernels_escapes_are_undone() -> None:
    entry = points.parse_mountinfo(TABLE)[1]
    assert entry.mountpoint == Path("/srv/with space\ttab\nline\\slash")
    assert entry.source == "/va,ult"
    assert entry.fstype == points.FSTYPE


def test_optional_fields_are_skipped_and_odd_lines_too() -> None:
    entries = points.parse_mountinfo(TABLE)
    assert [entry.device for entry in entries] == ["0:20", "0:39", "0:40", "0:41"]
    assert entries[3].options == {"ro", "relatime"}
    assert entries[3].source == "/vault"
    assert entries[3].super_options == {"rw", "user_id=0"}


def test_names_that_are_not_utf8_come_back_as_they_are(table: Path) -> None:
    table.write_bytes(b"1 0 0:9 / /srv/\xff rw - tmpfs none rw\n")
    assert points.mounted_at(Path(os.fsdecode(b"/srv/\xff"))) is not None


@pytest.mark.parametrize("odd", ["\r", "\x0b", "\x0c", "\x1c", "\x85", "\u2028"])
def test_what_else_may_end_a_line_is_part_of_a_name(table: Path, odd: str) -> None:
    table.write_text(f"1 0 0:9 / /srv/a{odd}b rw - tmpfs none rw\n", newline="")
    assert [entry.mountpoint for entry in points.mounts()] == [Path(f"/srv/a{odd}b")]


@pytest.mark.usefixtures("table")
def test_the_topmost_mount_counts() -> None:
    entry = points.mounted_at(Path("/srv/twice"))
    assert entry is not None
    assert entry.device == "0:41"
    assert points.mounted_at(Path("/srv")) is None


@pytest.mark.usefixtures("table")
def test_only_our_own_mounts_are_for_us_to_unmount() -> None:
    assert unmount.cisfs_mount_at(Path("/srv/twice")).source == "/vault"
    with pytest.raises(MountError, match="ext4 mount, not one of cisfs"):
        unmount.unmount(Path("/"))
    with pytest.raises(MountError, match="not a mount point"):
        unmount.unmount(Path("/srv"))


@pytest.fixture
def vault(tmp_path: Path) -> Path:
    path = tmp_path / "vault"
    path.mkdir()
    return path


def test_an_empty_directory_will_do(tmp_path: Path, vault: Path) -> None:
    (tmp_path / "view").mkdir()
    points.check_mountpoint(tmp_path / "view", vault)


def test_each_unfit_mount_point_is_refused_by_its_own_reason(tmp_path: Path, vault: Path) -> None:
    (tmp_path / "file").touch()
    full = tmp_path / "full"
    full.mkdir()
    (full / "entry").touch()
    (vault / "inside").mkdir()
    for mountpoint, reason in (
        (tmp_path / "missing", "does not exist"),
        (tmp_path / "file", "not a directory"),
        (full, "not empty"),
        (tmp_path, "vault .* lies inside"),
        (vault, "vault .* lies inside"),
        (vault / "inside", "lies inside the vault"),
        (Path("/proc"), "already has a proc mounted"),
    ):
        with pytest.raises(MountError, match=reason):
            points.check_mountpoint(mountpoint, vault)


def test_a_missing_vault_is_not_the_mount_points_fault(tmp_path: Path) -> None:
    (tmp_path / "view").mkdir()
    points.check_mountpoint(tmp_path / "view", tmp_path / "no-vault")


@pytest.mark.parametrize("number", [errno.ENOTCONN, errno.ECONNABORTED])
def test_a_mount_without_a_server_is_dead(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def statvfs(_path: Path) -> os.statvfs_result:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "statvfs", statvfs)
    assert points.is_dead(Path("/srv/view"))


def test_what_can_be_looked_at_or_is_missing_is_not_dead(tmp_path: Path) -> None:
    assert not points.is_dead(tmp_path)
    assert not points.is_dead(tmp_path / "missing")


def test_a_machine_without_fuse_is_told_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(points, "FUSE_DEVICE", tmp_path / "fuse")
    with pytest.raises(NoFuseError, match="modprobe fuse"):
        points.require_fuse()
    (tmp_path / "fuse").mkdir()
    with pytest.raises(NoFuseError, match="not usable"):
        points.require_fuse()
