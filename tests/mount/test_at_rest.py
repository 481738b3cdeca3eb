"""What lies on the disk: nothing to be found by searching, and the sizes that FORMAT.md states."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.mount.harness.lab import Lab

pytestmark = [pytest.mark.fuse, pytest.mark.root]

UNIT = 32 * 1024
CONTENT, NAME, LONG_NAME = b"THE-SECRET-CONTENT", "the-secret-name", "the-secret-long-name" * 10
TARGET, XATTR, VALUE = "/the/secret/target", "user.the-secret-xattr", b"the-secret-value"


def everything_stored(vault: Path) -> bytes:
    """Every byte of every backing object: names, contents, targets and attributes."""
    parts = []
    for directory, names, files in os.walk(vault):
        for name in (*names, *files):
            path = Path(directory, name)
            parts.append(os.fsencode(name))
            if path.is_symlink():
                parts.append(os.fsencode(os.readlink(path)))
            elif path.is_file():
                parts.append(path.read_bytes())
            for xattr in os.listxattr(path, follow_symlinks=False):
                parts += [xattr.encode(), os.getxattr(path, xattr, follow_symlinks=False)]
    return b"\0".join(parts)


def test_nothing_of_content_or_names_is_found(lab: Lab) -> None:
    root = lab.mount()
    (root / NAME).mkdir()
    (root / NAME / LONG_NAME).write_bytes(CONTENT * 5000)
    os.setxattr(root / NAME / LONG_NAME, XATTR, VALUE)
    (root / "link").symlink_to(TARGET)
    os.setxattr(root / "link", "trusted.the-secret-xattr", VALUE, follow_symlinks=False)
    (root / "gone").write_bytes(CONTENT)
    (root / "gone").unlink()
    lab.umount()
    stored = everything_stored(lab.vault).lower()
    for secret in (CONTENT, NAME.encode(), LONG_NAME.encode(), TARGET.encode(), b"secret", VALUE):
        assert secret.lower() not in stored
    assert b"cisfsvf" in stored  # so that the search can find something


def test_equal_content_looks_different(lab: Lab) -> None:
    root = lab.mount()
    for name in ("a", "b"):
        (root / name).write_bytes(bytes(range(256)) * 512)
    bodies = [lab.stored(root / name).read_bytes()[32:] for name in ("a", "b")]
    lab.umount()
    blocks = [body[at : at + 16] for body in bodies for at in range(0, 128 * 1024, 16)]
    assert len(set(blocks)) == len(blocks)


@pytest.mark.parametrize("size", [0, 1, 16, 17, UNIT - 1, UNIT, UNIT + 1, 10 * UNIT + 12345])
def test_the_stored_size_is_the_one_of_the_format(here: Path, shared: Lab, size: int) -> None:
    (here / "file").write_bytes(bytes(size))
    with (here / "file").open("rb") as file:
        os.fsync(file.fileno())
    units = -(-size // UNIT)
    assert shared.stored(here / "file").stat().st_size == size + 64 + 16 * units


def test_modes_owners_and_device_numbers_are_those_of_the_stored_objects(
    here: Path, shared: Lab
) -> None:
    (here / "file").touch(0o640)
    os.chown(here / "file", 1001, 1002)
    os.mknod(here / "device", 0o020600, os.makedev(5, 1))
    file, device = (shared.stored(here / name).lstat() for name in ("file", "device"))
    assert (file.st_mode & 0o7777, file.st_uid, file.st_gid) == (0o640, 1001, 1002)
    assert device.st_rdev == os.makedev(5, 1)


def test_the_journal_is_clean_after_an_unmount(lab: Lab) -> None:
    root = lab.mount()
    (root / "file").write_bytes(bytes(100_000))
    with (root / "file").open("r+b") as file:
        file.write(b"over")
        os.fsync(file.fileno())
    lab.umount()
    journal = lab.vault / "cisfs.journal"
    assert not journal.exists() or not any(journal.read_bytes()[64:])
