"""A vault under overlayfs: as lowerdir, and as upperdir with the workdir beside it."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.harness import linux
from tests.mount.harness.lab import Lab, lab_in
from tests.mount.harness.linux import drop_caches, fails
from tests.mount.harness.trees import assert_same, snapshot

pytestmark = [pytest.mark.fuse, pytest.mark.root]

UNIT = 32 * 1024


@pytest.fixture(autouse=True, scope="module")
def _root_with_fuse() -> None:
    if os.geteuid() != 0 or not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("mounting vaults and overlays needs root and /dev/fuse")


@pytest.fixture
def space(tmp_path: Path) -> Iterator[Path]:
    """A directory for plain layers, on a tmpfs: an overlay does not take one as upperdir."""
    path = tmp_path / "space"
    path.mkdir()
    linux.mount("none", path, "tmpfs")
    yield path
    linux.detach_all(path)


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    """A mounted vault."""
    base = tmp_path / "lab"
    base.mkdir()
    with lab_in(base) as made:
        made.mount()
        yield made


@contextlib.contextmanager
def overlay(
    at: Path, lower: list[Path], upper: Path, work: Path, options: str = ""
) -> Iterator[Path]:
    """An overlay mount."""
    at.mkdir(exist_ok=True)
    for path in (upper, work):
        path.mkdir(exist_ok=True)
    layers = ":".join(map(str, lower))
    linux.mount(
        "none", at, "overlay", options=f"lowerdir={layers},upperdir={upper},workdir={work}{options}"
    )
    try:
        yield at
    finally:
        linux.umount(at)


@pytest.fixture
def lower(lab: Lab) -> Path:
    """The vault's tree, with something of everything."""
    root = lab.mountpoint
    (root / "dir/sub").mkdir(parents=True)
    (root / "file").write_bytes(b"lower")
    (root / "large").write_bytes(os.urandom(40 * UNIT + 99))
    (root / "dir/file").write_bytes(b"in a directory")
    (root / "dir/sub/deep").write_bytes(b"deep")
    os.link(root / "dir/file", root / "hard")
    (root / "link").symlink_to("dir/file")
    os.setxattr(root / "file", "user.x", b"value")
    (root / "secret").write_bytes(b"root's")
    (root / "secret").chmod(0o600)
    lab.remount()
    return root


# --- as lowerdir


@pytest.fixture
def merged(lower: Path, space: Path) -> Iterator[Path]:
    """An overlay with the vault below and a tmpfs above; the vault must not change by it."""
    before = snapshot(lower, times=True)
    with overlay(space / "merged", [lower], space / "upper", space / "work") as path:
        yield path
    assert_same(before, snapshot(lower, times=True))


def test_everything_is_read_through(merged: Path, lower: Path) -> None:
    assert_same(snapshot(merged, times=True), snapshot(lower, times=True))


def test_a_program_runs(lab: Lab, space: Path) -> None:
    shutil.copy("/bin/busybox", lab.mountpoint / "busybox")
    (lab.mountpoint / "busybox").chmod(0o755)
    with overlay(space / "merged", [lab.mountpoint], space / "upper", space / "work") as merged:
        said = subprocess.run(
            [merged / "busybox", "echo", "hi"], capture_output=True, check=True, timeout=60
        )
    assert said.stdout == b"hi\n"


def test_copy_up_keeps_content_and_attributes(merged: Path, lower: Path) -> None:
    content = (lower / "large").read_bytes()
    with (merged / "large").open("r+b") as file:
        file.write(b"upper")
    assert (merged / "large").read_bytes() == b"upper" + content[5:]
    (merged / "file").chmod(0o600)
    assert os.getxattr(merged / "file", "user.x") == b"value"
    with (merged / "dir/file").open("ab") as file:
        file.write(b"!")
    assert (merged / "dir/file").read_bytes() == b"in a directory!"


def test_removal_hides_and_changes_nothing_below(merged: Path, lower: Path) -> None:
    (merged / "file").unlink()
    shutil.rmtree(merged / "dir")
    (merged / "dir").mkdir()
    assert os.listdir(merged / "dir") == []
    assert not (merged / "file").exists()
    assert (lower / "dir/file").exists()


def test_renames_and_links_above(merged: Path) -> None:
    (merged / "file").rename(merged / "renamed")
    os.link(merged / "renamed", merged / "linked")
    assert (merged / "linked").read_bytes() == b"lower"
    (merged / "link").unlink()
    (merged / "link").symlink_to("elsewhere")
    assert os.readlink(merged / "link") == "elsewhere"


def test_a_whiteout_and_an_opaque_directory_in_the_vault_are_obeyed(lab: Lab, space: Path) -> None:
    base, top = space / "base", lab.mountpoint
    (base / "dir").mkdir(parents=True)
    (base / "gone").touch()
    (base / "dir/hidden").touch()
    os.mknod(top / "gone", stat.S_IFCHR, 0)
    (top / "dir").mkdir()
    os.setxattr(top / "dir", "trusted.overlay.opaque", b"y")
    (top / "dir/shown").touch()
    with overlay(space / "merged", [top, base], space / "upper", space / "work") as merged:
        assert os.listdir(merged) == ["dir"]
        assert os.listdir(merged / "dir") == ["shown"]


def test_two_vaults_stacked(lower: Path, space: Path, tmp_path: Path) -> None:
    base = tmp_path / "second"
    base.mkdir()
    with lab_in(base) as other:
        top = other.mount()
        (top / "file").write_bytes(b"top")
        (top / "only").write_bytes(b"here")
        with overlay(space / "merged", [top, lower], space / "upper", space / "work") as merged:
            assert (merged / "file").read_bytes() == b"top"
            assert (merged / "only").read_bytes() == b"here"
            assert (merged / "dir/file").read_bytes() == b"in a directory"
            (merged / "file").unlink()
            drop_caches(3)
            assert not (merged / "file").exists()


def test_modes_decide_for_an_ordinary_user_without_allow_other(merged: Path) -> None:
    from tests.mount.harness.processes import NOBODY, as_user

    assert as_user(NOBODY, merged, lambda: Path("dir/file").read_bytes()) == b"in a directory"
    with pytest.raises(PermissionError):
        as_user(NOBODY, merged, lambda: Path("secret").read_bytes())


def test_nothing_goes_stale_when_caches_are_dropped(merged: Path, lower: Path) -> None:
    kept = [os.open(merged / name, os.O_RDONLY) for name in ("file", "dir", "large")]
    with (merged / "dir/new").open("wb") as file:
        for number in range(60):
            drop_caches(2 if number % 3 else 3)
            for root in (merged, lower):
                assert (root / "dir/sub/deep").read_bytes() == b"deep"
                (root / "hard").stat()
                os.listdir(root / "dir")
            file.write(b"x")
            for fd in kept:
                os.fstat(fd)
    for fd in kept:
        os.close(fd)


def test_the_same_inode_number_through_links_and_caches(merged: Path) -> None:
    for _ in range(20):
        assert (merged / "hard").stat().st_ino == (merged / "dir/file").stat().st_ino
        drop_caches(2)


def test_a_dead_server_below_gives_errors_and_the_overlay_can_be_unmounted(
    lab: Lab, lower: Path, space: Path
) -> None:
    import signal

    from tests.mount.harness.processes import alive, wait_until

    with overlay(space / "merged", [lower], space / "upper", space / "work") as merged:
        server = lab.server
        os.kill(server, signal.SIGKILL)
        wait_until(lambda: not alive(server), "the server is dead")
        drop_caches(3)
        with fails(errno.ENOTCONN):
            (merged / "dir/sub/deep").read_bytes()
    lab.umount()


# --- as upperdir


@pytest.fixture
def plain(space: Path) -> Path:
    """A lower layer on a tmpfs."""
    root = space / "plain"
    (root / "dir/sub").mkdir(parents=True)
    (root / "file").write_bytes(b"lower")
    (root / "dir/file").write_bytes(b"in a directory")
    (root / "dir/sub/deep").write_bytes(b"deep")
    (root / "log").write_bytes(b"1\n")
    return root


@pytest.mark.parametrize("options", ["", ",redirect_dir=on,index=off,metacopy=off", ",metacopy=on"])
def test_changes_in_a_vault_above_persist(lab: Lab, plain: Path, space: Path, options: str) -> None:
    root = lab.mountpoint
    before = snapshot(plain, times=True)

    def opened() -> contextlib.AbstractContextManager[Path]:
        return overlay(space / "merged", [plain], root / "upper", root / "work", options)

    with opened() as merged:
        (merged / "new").write_bytes(os.urandom(5 * UNIT + 1))
        with (merged / "log").open("ab") as file:
            file.write(b"2\n")
        (merged / "file").unlink()
        shutil.rmtree(merged / "dir/sub")
        (merged / "dir/sub").mkdir()
        (merged / "dir/sub/fresh").touch()
        (merged / "made").mkdir(0o750)
        os.rename(merged / "made", merged / "moved")
        os.link(merged / "new", merged / "moved/hard")
        (merged / "dir/file").chmod(0o4711)
        os.chown(merged / "dir/file", 1001, 1002)
        os.setxattr(merged / "dir/file", "user.x", b"1")
        os.setxattr(merged / "dir", "trusted.x", b"2")
        (merged / "link").symlink_to("new")
        os.mkfifo(merged / "fifo")
        if "redirect_dir=on" in options:
            os.rename(merged / "dir", merged / "renamed")
            assert (merged / "renamed/file").read_bytes() == b"in a directory"
        after = snapshot(merged)
        assert "file" not in after
        assert not any(path.endswith("sub/deep") for path in after)
        drop_caches(3)
        assert_same(snapshot(merged), after)
    lab.remount()
    with opened() as merged:
        assert_same(snapshot(merged), after)
        assert (merged / "log").read_bytes() == b"1\n2\n"
    assert_same(snapshot(plain, times=True), before)


def test_a_directory_of_the_lower_layer_does_not_rename_without_redirect(
    lab: Lab, plain: Path, space: Path
) -> None:
    root = lab.mountpoint
    options = ",redirect_dir=nofollow"
    with overlay(space / "merged", [plain], root / "upper", root / "work", options) as merged:
        with fails(errno.EXDEV):
            os.rename(merged / "dir", merged / "elsewhere")
        shutil.move(merged / "dir", merged / "elsewhere")
        assert (merged / "elsewhere/sub/deep").read_bytes() == b"deep"


def test_lower_and_upper_from_two_vaults(lower: Path, space: Path, tmp_path: Path) -> None:
    base = tmp_path / "second"
    base.mkdir()
    before = snapshot(lower, times=True)
    with lab_in(base) as other:
        top = other.mount()
        with overlay(space / "merged", [lower], top / "upper", top / "work") as merged:
            (merged / "dir/file").write_bytes(b"changed")
            (merged / "file").unlink()
            (merged / "large").rename(merged / "moved")
            drop_caches(3)
            assert (merged / "dir/file").read_bytes() == b"changed"
            assert (merged / "moved").stat().st_size == 40 * UNIT + 99
    assert_same(snapshot(lower, times=True), before)


def test_an_upper_vault_survives_dropped_caches_under_load(
    lab: Lab, plain: Path, space: Path
) -> None:
    root = lab.mountpoint
    with overlay(space / "merged", [plain], root / "upper", root / "work") as merged:
        for number in range(30):
            shutil.copytree(plain, merged / f"copy{number}")
            drop_caches(2 + number % 2)
            (merged / f"copy{number}/file").rename(merged / f"file{number}")
            if number % 2:
                shutil.rmtree(merged / f"copy{number}")
        assert len(list(merged.glob("file*"))) == 31
        for number in range(30):
            assert (merged / f"file{number}").read_bytes() == b"lower"
