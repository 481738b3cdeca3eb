"""Files that decide whom to trust: whatever others could have changed is not read."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from cisfs.errors import UntrustedError
from cisfs.layer import trusted_file


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "directory/policy.toml"
    path.parent.mkdir(mode=0o755)
    path.touch(0o644)
    path.write_bytes(b"content")
    return path


def refused(path: Path, words: str) -> None:
    with pytest.raises(UntrustedError, match=re.escape(words)) as caught:
        trusted_file.read(path)
    assert str(path) in str(caught.value)


def test_ones_own_file_is_read(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert trusted_file.read(file) == b"content"
    monkeypatch.chdir(file.parent)
    assert trusted_file.read(Path("../directory/policy.toml")) == b"content"


@pytest.mark.parametrize("mode", [0o664, 0o646, 0o666, 0o620, 0o602])
def test_a_file_that_others_can_write(file: Path, mode: int) -> None:
    file.chmod(mode)
    refused(file, "others can write it: chmod 644 it")


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o777])
def test_a_directory_that_others_can_write(file: Path, mode: int) -> None:
    file.parent.chmod(mode)
    refused(file, f"they can write to {file.parent}")


def test_a_directory_further_up_that_others_can_write(file: Path) -> None:
    deep = file.parent / "a/b/policy.toml"
    deep.parent.mkdir(parents=True, mode=0o755)
    file.rename(deep)
    file.parent.chmod(0o777)
    refused(deep, f"they can write to {file.parent}")


def test_in_a_sticky_directory_ones_own_file_stays(file: Path) -> None:
    file.parent.chmod(0o1777)
    assert trusted_file.read(file) == b"content"


def test_links_are_followed_as_far_as_they_are_ones_own(file: Path) -> None:
    (file.parent / "link").symlink_to("policy.toml")
    (file.parent / "up").symlink_to("..")
    (file.parent / "absolute").symlink_to(file.parent)
    assert trusted_file.read(file.parent / "link") == b"content"
    assert trusted_file.read(file.parent / "up/directory/link") == b"content"
    assert trusted_file.read(file.parent / "absolute/absolute/link") == b"content"


def test_the_way_of_a_link_counts(file: Path, tmp_path: Path) -> None:
    """Whoever can write where the link is chooses what it leads to."""
    loose = tmp_path / "loose"
    loose.mkdir()
    (loose / "link").symlink_to(file)
    (tmp_path / "indirect").symlink_to(loose / "link")
    loose.chmod(0o777)
    refused(loose / "link", f"they can write to {loose}")
    refused(tmp_path / "indirect", f"they can write to {loose}")


def test_links_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "one").symlink_to("two")
    (tmp_path / "two").symlink_to("one")
    refused(tmp_path / "one", "leads astray")


def test_none_is_not_the_same_as_one_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        trusted_file.read(tmp_path / "policy.toml")
    with pytest.raises(FileNotFoundError):
        trusted_file.read(tmp_path / "directory/policy.toml")
    (tmp_path / "policy.toml").symlink_to("gone")
    refused(tmp_path / "policy.toml", f"leads nowhere: there is no {tmp_path / 'gone'}")
    (tmp_path / "directory").symlink_to("not-mounted")
    refused(tmp_path / "directory/policy.toml", "leads nowhere")


def test_what_is_no_file(tmp_path: Path, file: Path) -> None:
    os.mkfifo(tmp_path / "fifo", 0o600)
    refused(tmp_path / "fifo", "is not a regular file")
    refused(tmp_path, "is not a regular file")
    refused(file / "policy.toml", "Not a directory")


def test_what_is_too_large(file: Path) -> None:
    os.truncate(file, trusted_file.MAX_SIZE)
    assert len(trusted_file.read(file)) == trusted_file.MAX_SIZE
    os.truncate(file, trusted_file.MAX_SIZE + 1)
    refused(file, "is too large")


def test_what_belongs_to_another(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As seen by a user who is neither root nor the owner of anything here."""
    if os.geteuid() == 0:
        os.chown(file, 4321, -1)
        refused(file, "belongs to another user")
        os.chown(file, 0, -1)
        os.chown(file.parent, 4321, -1)
        refused(file, f"{file.parent} is another user's")
        os.chown(file.parent, 0, -1)
        (file.parent / "link").symlink_to(file)
        os.chown(file.parent / "link", 4321, -1, follow_symlinks=False)
        refused(file.parent / "link", "leads astray")
        return
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    refused(file, "another user's")
