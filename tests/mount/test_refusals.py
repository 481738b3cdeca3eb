"""What the commands say, and how they end, when they cannot do what was asked.

Each case: one line on stderr, no traceback, the exit code that cisfs/errors.py states, and nothing
left behind (which the lab judges).
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.mount.harness.lab import Ended, Lab, command, lab_in

pytestmark = [pytest.mark.fuse, pytest.mark.root]


def assert_refused(ended: Ended, code: int, *words: str) -> None:
    assert ended.returncode == code, (ended.returncode, ended.stderr)
    assert "Traceback" not in ended.stderr
    lines = ended.stderr.splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("cisfs: ")
    for word in words:
        assert word in lines[0]


def mount(lab: Lab, *words: str | Path) -> Ended:
    return lab.cisfs("mount", *words, "--log-file", lab.log)


def test_no_key_and_no_terminal(lab: Lab) -> None:
    ended = lab.cisfs("mount", lab.vault, lab.mountpoint)
    assert_refused(ended, 14)


def test_a_wrong_key_file(lab: Lab) -> None:
    other = lab.base / "other"
    other.touch(0o600)
    other.write_bytes(bytes(32))
    assert_refused(mount(lab, lab.vault, lab.mountpoint, "--key-file", other), 12)


def test_a_missing_key_file(lab: Lab) -> None:
    ended = mount(lab, lab.vault, lab.mountpoint, "--key-file", lab.base / "none")
    assert ended.returncode != 0
    assert_refused(ended, ended.returncode, str(lab.base / "none"))


def test_a_wrong_passphrase(tmp_path: Path) -> None:
    with lab_in(tmp_path) as lab:
        (lab.base / "right").write_text("right\n")
        (lab.base / "wrong").write_text("wrong\n")
        for name in ("right", "wrong"):
            (lab.base / name).chmod(0o600)
        vault = lab.base / "with-passphrase"
        lab.must("init", vault, "--passphrase-file", lab.base / "right")
        ended = mount(lab, vault, lab.mountpoint, "--passphrase-file", lab.base / "wrong")
        assert_refused(ended, 12)
        lab.must("verify", vault, "--passphrase-file", lab.base / "right")


def test_not_a_vault(lab: Lab) -> None:
    (lab.base / "dir").mkdir()
    for source in (lab.base / "dir", lab.base / "none", lab.key):
        assert_refused(mount(lab, source, lab.mountpoint, *lab.with_key), 10, str(source))


@pytest.mark.parametrize("content", [b"", b"{}", b"{", b"\xff" * 100, b"[]", b"null"])
def test_a_damaged_vault_json(lab: Lab, content: bytes) -> None:
    lab.damaged = True
    (lab.vault / "vault.json").write_bytes(content)
    assert_refused(mount(lab, lab.vault, lab.mountpoint, *lab.with_key), 11, "vault.json")


def test_a_truncated_vault_json(lab: Lab) -> None:
    lab.damaged = True
    os.truncate(lab.vault / "vault.json", 100)
    assert_refused(mount(lab, lab.vault, lab.mountpoint, *lab.with_key), 11, "vault.json")


def test_an_altered_vault_json(lab: Lab) -> None:
    """One digit of a salt: the checksum tells it from a wrong key."""
    lab.damaged = True
    document = json.loads((lab.vault / "vault.json").read_text())
    document["unit_size"] *= 2
    (lab.vault / "vault.json").write_text(json.dumps(document))
    assert_refused(mount(lab, lab.vault, lab.mountpoint, *lab.with_key), 11)


def test_a_newer_version(lab: Lab) -> None:
    lab.damaged = True
    document = json.loads((lab.vault / "vault.json").read_text())
    (lab.vault / "vault.json").write_text(json.dumps(document | {"version": 2}))
    assert_refused(mount(lab, lab.vault, lab.mountpoint, *lab.with_key), 13)


def test_a_damaged_root_directory_id(lab: Lab) -> None:
    lab.damaged = True
    lab.mount()
    (lab.mountpoint / "file").touch()
    lab.umount()
    (lab.vault / "cisfs.dir").write_bytes(bytes(32))
    assert_refused(mount(lab, lab.vault, lab.mountpoint, *lab.with_key), 11)


def test_a_missing_mount_point(lab: Lab) -> None:
    assert_refused(mount(lab, lab.vault, lab.base / "none", *lab.with_key), 17, "mkdir")


def test_a_file_as_mount_point(lab: Lab) -> None:
    assert_refused(mount(lab, lab.vault, lab.key, *lab.with_key), 17, "not a directory")


def test_a_mount_point_that_is_not_empty(lab: Lab) -> None:
    (lab.mountpoint / "file").touch()
    assert_refused(mount(lab, lab.vault, lab.mountpoint, *lab.with_key), 17, "not empty")
    (lab.mountpoint / "file").unlink()


def test_a_mount_point_that_is_one_already(
    lab: Lab, tmp_path_factory: pytest.TempPathFactory
) -> None:
    lab.mount()
    with lab_in(tmp_path_factory.mktemp("other")) as other:
        assert_refused(mount(other, other.vault, lab.mountpoint, *other.with_key), 17)


def test_the_same_mount_twice(lab: Lab) -> None:
    lab.mount()
    ended = mount(lab, lab.vault, lab.mountpoint, *lab.with_key)
    assert ended.returncode in (15, 17)
    assert_refused(ended, ended.returncode)


def test_a_mount_point_inside_the_vault(lab: Lab) -> None:
    (lab.vault / "inside").mkdir()
    assert_refused(mount(lab, lab.vault, lab.vault / "inside", *lab.with_key), 17)
    (lab.vault / "inside").rmdir()
    assert_refused(mount(lab, lab.vault, lab.vault, *lab.with_key), 17)


def test_a_vault_inside_the_mount_point(lab: Lab) -> None:
    assert_refused(mount(lab, lab.vault, lab.base, *lab.with_key), 17)


def test_a_vault_mounted_read_write_is_locked(lab: Lab) -> None:
    lab.mount()
    (lab.base / "second").mkdir()
    for options in ([], ["--read-only"]):
        ended = mount(lab, lab.vault, lab.base / "second", *options, *lab.with_key)
        assert_refused(ended, 15, str(lab.vault))
    assert_refused(lab.cisfs("verify", lab.vault, *lab.with_key), 15)


def test_a_vault_may_be_mounted_read_only_twice(lab: Lab) -> None:
    (lab.base / "second").mkdir()
    lab.mount("--read-only")
    lab.must("mount", lab.vault, lab.base / "second", "--read-only", *lab.with_key)
    (lab.base / "third").mkdir()
    ended = mount(lab, lab.vault, lab.base / "third", *lab.with_key)
    assert_refused(ended, 15)
    lab.must("umount", lab.base / "second")


def test_init_where_something_is(lab: Lab) -> None:
    assert_refused(lab.cisfs("init", lab.vault, *lab.with_key), 2)
    assert_refused(lab.cisfs("init", lab.base, *lab.with_key), 2)


def test_wrong_use_of_the_command_line(lab: Lab) -> None:
    for words in (["mount"], ["mount", "--nonsense", "a", "b"], ["nonsense"], []):
        ended = lab.cisfs(*words)
        assert ended.returncode == 2
        assert "Traceback" not in ended.stderr


def in_private_namespace(lab: Lab, preparation: str, *words: str | Path) -> Ended:
    """Run a command where a shell line has rearranged the mounts, for it alone."""
    script = f'set -e; {preparation}; exec "$@"'
    return lab.run(["unshare", "--mount", "sh", "-c", script, "sh", *command(*words)])


MISSING = "mount -t tmpfs none /dev; mknod /dev/null c 1 3; mknod /dev/urandom c 1 9"
DEAD = "touch x; mount --bind x /dev/fuse"
NO_DEVICE = "mknod y c 10 230; mount --bind y /dev/fuse"


@pytest.mark.parametrize("preparation", [MISSING, NO_DEVICE])
def test_no_dev_fuse(lab: Lab, preparation: str) -> None:
    words: list[str | Path] = ["mount", lab.vault, lab.mountpoint, *lab.with_key]
    assert_refused(in_private_namespace(lab, preparation, *words), 18, "/dev/fuse")


@pytest.mark.parametrize("preparation", [DEAD, "mount --bind /dev/null /dev/fuse"])
def test_a_dev_fuse_that_is_something_else(lab: Lab, preparation: str) -> None:
    words: list[str | Path] = ["mount", lab.vault, lab.mountpoint, *lab.with_key]
    ended = in_private_namespace(lab, preparation, *words)
    assert ended.returncode in (17, 18)
    assert_refused(ended, ended.returncode)


def test_no_permission_to_mount(lab: Lab) -> None:
    """Root without CAP_SYS_ADMIN, as in a container."""
    words = command("mount", lab.vault, lab.mountpoint, *lab.with_key)
    without = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"]
    ended = lab.run([*without, *words])
    assert_refused(ended, 17, "ermi")


def test_umount_of_what_is_not_mounted(lab: Lab) -> None:
    assert_refused(lab.cisfs("umount", lab.mountpoint), 17, "not a mount point")
    assert_refused(lab.cisfs("umount", lab.base / "none"), 17)


def test_umount_of_what_is_not_ours(lab: Lab) -> None:
    assert_refused(lab.cisfs("umount", "/proc"), 17, "not one of cisfs")
    assert os.path.ismount("/proc")


def test_umount_of_a_mount_in_use(lab: Lab) -> None:
    lab.mount()
    with (lab.mountpoint / "file").open("wb"):
        assert_refused(lab.cisfs("umount", lab.mountpoint), 17, "in use", str(os.getpid()))
        assert lab.is_mounted


def test_umount_lazily_of_a_mount_in_use_loses_nothing(lab: Lab) -> None:
    lab.mount()
    with (lab.mountpoint / "file").open("wb", buffering=0) as file:
        file.write(b"first")
        lab.umount("--lazy")
        assert not lab.is_mounted
        file.write(b"second")
    from tests.mount.harness.processes import wait_until

    wait_until(lambda: lab.cisfs("verify", lab.vault, *lab.with_key).returncode == 0, "released")
    lab.mount()
    assert (lab.mountpoint / "file").read_bytes() == b"firstsecond"
