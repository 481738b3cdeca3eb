"""Finding a command in a tree without leaving it, and saying why it cannot run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cisfs.runtime.account import Account
from cisfs.runtime.bundle import DEFAULT_PATH
from cisfs.runtime.command import Refusal, refusal

ROOT = Account(0, 0)
ELF = b"\x7fELF\x02\x01\x01"


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "bin").mkdir()
    (tmp_path / "usr/bin").mkdir(parents=True)
    for name, content, mode in (
        ("bin/program", ELF, 0o755),
        ("bin/private", ELF, 0o700),
        ("bin/plain", ELF, 0o644),
        ("bin/text", b"hello\n", 0o755),
        ("bin/empty", b"", 0o755),
        ("bin/script", b"#! /bin/program -x\n", 0o755),
        ("bin/orphan", b"#!/no/interpreter\n", 0o755),
        ("bin/twice", b"", 0o644),
        ("usr/bin/twice", ELF, 0o755),
    ):
        (tmp_path / name).write_bytes(content)
        (tmp_path / name).chmod(mode)
    (tmp_path / "bin/absolute").symlink_to("/bin/program")
    (tmp_path / "bin/outside").symlink_to("../../../../../../../../../../bin/sh")
    (tmp_path / "bin/loop").symlink_to("loop")
    descriptor = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    yield descriptor
    os.close(descriptor)


def judge(tree: int, name: str, account: Account = ROOT, cwd: str = "/") -> Refusal | None:
    return refusal(tree, name, DEFAULT_PATH, cwd, account)


@pytest.mark.parametrize(
    "name",
    [
        "program",
        "/bin/program",
        "/bin/absolute",
        "script",
        "/proc/self/exe",
        "/dev/shm/x",
        "./bin/program",
    ],
)
def test_what_can_run(tree: int, name: str) -> None:
    assert judge(tree, name) is None


def test_relative_to_the_working_directory(tree: int) -> None:
    assert judge(tree, "./program", cwd="/bin") is None
    missing = judge(tree, "./program", cwd="/usr")
    assert missing is not None
    assert missing.exit_code == 127


@pytest.mark.parametrize(
    "name", ["absent", "/absent", "/bin/outside", "/bin/program/x", "", "orphan"]
)
def test_what_is_not_found(tree: int, name: str) -> None:
    found = judge(tree, name)
    assert found is not None
    assert found.exit_code == 127


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("/bin", "directory"),
        ("plain", "permission denied"),
        ("text", "neither"),
        ("empty", "neither"),
        ("/bin/loop", "symbolic links"),
    ],
)
def test_what_cannot_run(tree: int, name: str, reason: str) -> None:
    found = judge(tree, name)
    assert found is not None
    assert found.exit_code == 126
    assert reason in found.message


def test_permission_is_the_accounts(tree: int) -> None:
    assert judge(tree, "private") is None
    owner = os.stat("bin/private", dir_fd=tree).st_uid
    stranger = judge(tree, "private", Account(owner + 1, 12345))
    assert stranger is not None
    assert stranger.exit_code == 126
    assert judge(tree, "program", Account(owner + 1, 12345)) is None


def test_the_search_goes_on_after_what_cannot_run(tree: int) -> None:
    """PATH has /usr/bin before /bin; turned round, the good one comes second."""
    assert refusal(tree, "twice", "/bin:/usr/bin", "/", ROOT) is None
    only_bad = refusal(tree, "twice", "/bin", "/", ROOT)
    assert only_bad is not None
    assert only_bad.exit_code == 126
    assert refusal(tree, "twice", "", "/", ROOT) is not None


def test_owners_that_are_shown_as_others(tree: int, tmp_path: Path) -> None:
    """As in a user namespace: the tree shows the container's ids from some number on."""
    first, account = 1 << 20, Account(1000, 100, (7,))
    for owner, mode, fits in (
        ((first + 1000, first), 0o100, True),
        ((first + 1, first + 7), 0o010, True),
        ((1000, first), 0o100, False),
        ((first + 1, 7), 0o010, False),
    ):
        (tmp_path / "bin/program").chmod(mode)
        if os.geteuid() == 0:
            os.chown(tmp_path / "bin/program", *owner)
        else:
            pytest.skip("only root gives files away")
        found = refusal(tree, "program", DEFAULT_PATH, "/", account, first)
        assert (found is None) == fits
        if found is not None:
            assert f"owner {owner[0] - first}:{owner[1] - first}, running as 1000:100" in str(found)
