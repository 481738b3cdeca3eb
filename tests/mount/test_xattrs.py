"""Extended attributes and POSIX ACLs through the kernel."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from pathlib import Path

import pytest

from tests.mount.harness.lab import Lab
from tests.mount.harness.linux import drop_caches, fails
from tests.mount.harness.processes import NOBODY, as_user

pytestmark = [pytest.mark.fuse, pytest.mark.root]

CASES = [
    ("user.a", b"value"),
    ("user.empty", b""),
    ("user.binary", bytes(range(256))),
    ("user." + "n" * 250, b"long name"),
    ("trusted.overlay.opaque", b"y"),
    ("security.cisfs", b"label"),
]


@pytest.mark.parametrize(("name", "value"), CASES)
@pytest.mark.parametrize("kind", ["file", "dir"])
def test_an_attribute_is_kept(here: Path, kind: str, name: str, value: bytes) -> None:
    path = here / kind
    path.touch() if kind == "file" else path.mkdir()
    os.setxattr(path, name, value)
    drop_caches(3)
    assert os.getxattr(path, name) == value
    assert os.listxattr(path) == [name]
    os.removexattr(path, name)
    assert os.listxattr(path) == []
    with fails(errno.ENODATA):
        os.getxattr(path, name)


def test_special_files_keep_trusted_attributes(here: Path) -> None:
    (here / "link").symlink_to("nowhere")
    os.mknod(here / "white", stat.S_IFCHR, 0)
    for name in ("link", "white"):
        os.setxattr(here / name, "trusted.x", b"1", follow_symlinks=False)
        assert os.getxattr(here / name, "trusted.x", follow_symlinks=False) == b"1"


def test_a_large_value_is_kept_where_the_backing_file_system_has_room(
    here: Path, tmp_path: Path
) -> None:
    """ext4 without the ea_inode feature has one block for all attributes of a file."""
    (here / "file").touch()
    (tmp_path / "file").touch()
    try:
        os.setxattr(tmp_path / "file", "user.large", bytes(4096 + 100))
        room = 4096
    except OSError:
        room = 3700
    value = os.urandom(room)
    os.setxattr(here / "file", "user.large", value)
    assert os.getxattr(here / "file", "user.large") == value


def test_a_value_too_large_is_refused_and_the_old_one_kept(here: Path) -> None:
    (here / "file").touch()
    os.setxattr(here / "file", "user.x", b"old")
    with fails(errno.ENOSPC, errno.E2BIG):
        os.setxattr(here / "file", "user.x", bytes(65536))
    assert os.getxattr(here / "file", "user.x") == b"old"


def test_create_and_replace_flags(here: Path) -> None:
    (here / "file").touch()
    with fails(errno.ENODATA):
        os.setxattr(here / "file", "user.x", b"1", os.XATTR_REPLACE)
    os.setxattr(here / "file", "user.x", b"1", os.XATTR_CREATE)
    with pytest.raises(FileExistsError):
        os.setxattr(here / "file", "user.x", b"2", os.XATTR_CREATE)
    os.setxattr(here / "file", "user.x", b"3", os.XATTR_REPLACE)
    assert os.getxattr(here / "file", "user.x") == b"3"


def test_many_attributes_are_listed(here: Path) -> None:
    (here / "file").touch()
    names = {f"user.number{number}" for number in range(20)}
    for name in names:
        os.setxattr(here / "file", name, b"v")
    assert set(os.listxattr(here / "file")) == names


def test_attributes_of_an_open_and_of_an_unlinked_file(here: Path) -> None:
    with (here / "file").open("w+b") as file:
        os.setxattr(file.fileno(), "user.x", b"1")
        (here / "file").unlink()
        os.setxattr(file.fileno(), "user.y", b"2")
        assert sorted(os.listxattr(file.fileno())) == ["user.x", "user.y"]


def test_attributes_follow_the_file(lab: Lab) -> None:
    root = lab.mount()
    (root / "a").touch()
    os.setxattr(root / "a", "user.x", b"1")
    os.link(root / "a", root / "b")
    (root / "dir").mkdir()
    (root / "a").rename(root / "dir/c")
    lab.remount()
    assert os.getxattr(root / "dir/c", "user.x") == b"1"
    assert os.getxattr(root / "b", "user.x") == b"1"


def test_trusted_attributes_are_roots(here: Path) -> None:
    (here / "file").touch()
    (here / "file").chmod(0o666)
    os.setxattr(here / "file", "trusted.x", b"1")
    assert as_user(NOBODY, here, lambda: os.listxattr("file")) == []
    with pytest.raises(PermissionError):
        as_user(NOBODY, here, lambda: os.setxattr("file", "trusted.y", b"1"))


def test_file_capabilities_are_kept_and_go_with_a_write(here: Path) -> None:
    (here / "tool").write_bytes(b"x")
    capability = bytes.fromhex("0000000200040000000000000000000000000000")  # v2, cap_net_bind
    os.setxattr(here / "tool", "security.capability", capability)
    assert os.getxattr(here / "tool", "security.capability") == capability
    (here / "tool").write_bytes(b"y")
    with fails(errno.ENODATA):
        os.getxattr(here / "tool", "security.capability")


# --- ACLs


def setfacl(*words: str | Path) -> None:
    subprocess.run(["setfacl", *map(str, words)], check=True, timeout=60)


def getfacl(path: Path) -> set[str]:
    ended = subprocess.run(
        ["getfacl", "--omit-header", "--numeric", "--absolute-names", str(path)],
        check=True,
        timeout=60,
        capture_output=True,
        text=True,
    )
    return {line.split("\t")[0] for line in ended.stdout.split("\n") if line}


def test_an_acl_is_kept(lab: Lab) -> None:
    root = lab.mount()
    (root / "file").touch(0o640)
    setfacl("-m", f"u:{NOBODY}:rw", root / "file")
    wanted = {"user::rw-", f"user:{NOBODY}:rw-", "group::r--", "mask::rw-", "other::---"}
    assert getfacl(root / "file") == wanted
    lab.remount()
    assert getfacl(root / "file") == wanted
    setfacl("-b", root / "file")
    assert getfacl(root / "file") == {"user::rw-", "group::r--", "other::---"}


def test_an_acl_lets_a_user_in(here: Path) -> None:
    (here / "file").write_text("for you")
    (here / "file").chmod(0o600)
    with pytest.raises(PermissionError):
        as_user(NOBODY, here, lambda: Path("file").read_text())
    setfacl("-m", f"u:{NOBODY}:r", here / "file")
    assert as_user(NOBODY, here, lambda: Path("file").read_text()) == "for you"


def test_an_acl_keeps_a_user_out(here: Path) -> None:
    (here / "file").write_text("not for you")
    (here / "file").chmod(0o644)
    setfacl("-m", f"u:{NOBODY}:-", here / "file")
    with pytest.raises(PermissionError):
        as_user(NOBODY, here, lambda: Path("file").read_text())


def test_chmod_changes_the_mask(here: Path) -> None:
    (here / "file").touch()
    setfacl("-m", f"u:{NOBODY}:rw", here / "file")
    (here / "file").chmod(0o600)
    assert "mask::---" in getfacl(here / "file")


def test_a_default_acl_is_inherited_as_on_other_file_systems(here: Path, tmp_path: Path) -> None:
    """Compared with the backing file system, which keeps ACLs itself.

    With a umask of 0: other file systems ignore the umask where there is a default ACL, but here
    the kernel has applied it already when it asks (docs/FORMAT.md, section 6).
    """
    acls = []
    umask = os.umask(0)
    for root in (here, tmp_path / "plain"):
        root.mkdir(exist_ok=True)
        setfacl("-d", "-m", f"u:{NOBODY}:rwx,g::rwx,o::r", root)
        (root / "file").touch(0o666)
        (root / "dir").mkdir(0o777)
        (root / "dir/deep").touch(0o666)
        os.mkfifo(root / "fifo", 0o666)
        acls.append({name: getfacl(root / name) for name in ("file", "dir", "dir/deep", "fifo")})
    os.umask(umask)
    assert acls[0] == acls[1]


def test_the_mode_shows_the_mask(here: Path) -> None:
    (here / "file").touch(0o600)
    setfacl("-m", f"u:{NOBODY}:rwx", here / "file")
    assert stat.S_IMODE((here / "file").stat().st_mode) == 0o670
