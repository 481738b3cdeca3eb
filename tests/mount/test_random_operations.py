"""The same random operations on a mount and on an ordinary directory give the same tree."""

from __future__ import annotations

import inspect
import os
import random
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.mount.harness.lab import Lab
from tests.mount.harness.linux import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    RENAME_WHITEOUT,
    drop_caches,
    renameat2,
)
from tests.mount.harness.trees import assert_same, snapshot

pytestmark = [pytest.mark.fuse, pytest.mark.root]

UNIT = 32 * 1024
SIZES = [0, 1, 15, 16, 17, 1000, UNIT - 1, UNIT, UNIT + 1, 3 * UNIT, 200_000]
NAMES = ["a", "b", "c", "d", "e", "L" * 180, "M" * 255]
Act = Callable[[Path], object]


class Sequence:
    """Draws operations; each is a function of the root that it is to be done in."""

    def __init__(self, seed: int) -> None:
        self._chance = random.Random(seed)

    def _path(self) -> str:
        depth = self._chance.choice([1, 1, 2, 2, 3])
        return "/".join(self._chance.choice(NAMES) for _ in range(depth))

    def draw(self) -> Act:
        """The next operation."""
        kinds = [
            self._write, self._write, self._overwrite, self._overwrite, self._append,
            self._truncate, self._rename, self._special_rename, self._link, self._symlink,
            self._mkdir, self._mkdir, self._remove, self._remove, self._mknod, self._chmod,
            self._chown, self._setxattr, self._removexattr, self._times, self._unlinked,
        ]  # fmt: skip
        return self._chance.choice(kinds)()

    def _write(self) -> Act:
        path, data = self._path(), self._chance.randbytes(self._chance.choice(SIZES))
        return lambda root: (root / path).write_bytes(data)

    def _overwrite(self) -> Act:
        path, data = self._path(), self._chance.randbytes(self._chance.choice(SIZES))
        offset = self._chance.choice([0, 5, UNIT - 1, UNIT, 4 * UNIT + 3, 9 * UNIT])

        def act(root: Path) -> None:
            with (root / path).open("r+b", buffering=0) as file:
                os.pwrite(file.fileno(), data, offset)

        return act

    def _append(self) -> Act:
        path, data = self._path(), self._chance.randbytes(self._chance.choice(SIZES))

        def act(root: Path) -> None:
            with (root / path).open("ab") as file:
                file.write(data)

        return act

    def _truncate(self) -> Act:
        path, size = self._path(), self._chance.choice([*SIZES, 20 * UNIT + 7])
        return lambda root: os.truncate(root / path, size)

    def _rename(self) -> Act:
        old, new = self._path(), self._path()
        return lambda root: os.rename(root / old, root / new)

    def _special_rename(self) -> Act:
        old, new = self._path(), self._path()
        flags = self._chance.choice([RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_WHITEOUT])
        return lambda root: renameat2(root / old, root / new, flags)

    def _link(self) -> Act:
        old, new = self._path(), self._path()
        return lambda root: os.link(root / old, root / new, follow_symlinks=False)

    def _symlink(self) -> Act:
        path, target = self._path(), self._path()
        return lambda root: os.symlink(target, root / path)

    def _mkdir(self) -> Act:
        path = self._path()
        return lambda root: os.mkdir(root / path)

    def _remove(self) -> Act:
        path = self._path()
        return lambda root: (
            os.rmdir if stat.S_ISDIR(os.lstat(root / path).st_mode) else os.unlink
        )(root / path)

    def _mknod(self) -> Act:
        path, kind = self._path(), self._chance.choice([stat.S_IFCHR, stat.S_IFSOCK, stat.S_IFREG])
        return lambda root: os.mknod(root / path, kind | 0o640, 0)

    def _chmod(self) -> Act:
        path, mode = self._path(), self._chance.choice([0o700, 0o644, 0o4755, 0o2775, 0o1777])
        return lambda root: os.chmod(root / path, mode)

    def _chown(self) -> Act:
        path, owner = self._path(), self._chance.randrange(3)
        return lambda root: os.chown(root / path, owner, owner, follow_symlinks=False)

    def _setxattr(self) -> Act:
        path, name = (
            self._path(),
            f"{self._chance.choice(['user', 'trusted'])}.x{self._chance.randrange(3)}",
        )
        value = self._chance.randbytes(self._chance.choice([0, 1, 40, 300]))
        return lambda root: os.setxattr(root / path, name, value, follow_symlinks=False)

    def _removexattr(self) -> Act:
        path, name = (
            self._path(),
            f"{self._chance.choice(['user', 'trusted'])}.x{self._chance.randrange(3)}",
        )
        return lambda root: os.removexattr(root / path, name, follow_symlinks=False)

    def _times(self) -> Act:
        path, ns = self._path(), self._chance.randrange(2**60)
        return lambda root: os.utime(root / path, ns=(ns, ns), follow_symlinks=False)

    def _unlinked(self) -> Act:
        path, data = self._path(), self._chance.randbytes(1000)

        def act(root: Path) -> bytes:
            with (root / path).open("r+b", buffering=0) as file:
                (root / path).unlink()
                os.pwrite(file.fileno(), data, UNIT - 500)
                return os.pread(file.fileno(), 3 * UNIT, 0)

        return act


def described(act: Act) -> str:
    """An operation with its arguments, for a message."""
    arguments = inspect.getclosurevars(act).nonlocals
    return f"{act.__qualname__.split('.')[1]} {str(arguments)[:500]}"


def outcome(act: Act, root: Path) -> object:
    """What an operation gave: a result, or an errno."""
    try:
        result = act(root)
    except OSError as error:
        return f"errno {error.errno}"
    return result


@pytest.mark.parametrize("seed", [1, 2])
def test_random_operations_give_the_same_tree(lab: Lab, tmp_path: Path, seed: int) -> None:
    mount, plain = lab.mount(), tmp_path / "plain"
    before = lab.open_files()
    plain.mkdir()
    sequence = Sequence(seed)
    succeeded = 0
    for step in range(2000):
        act = sequence.draw()
        ours, theirs = outcome(act, mount), outcome(act, plain)
        assert ours == theirs, f"step {step}: {described(act)}"
        succeeded += not str(ours).startswith("errno")
        if step % 500 == 250:
            drop_caches(3)
    assert succeeded > 400
    assert_same(snapshot(mount), snapshot(plain))
    drop_caches(3)
    assert_same(snapshot(mount), snapshot(plain))
    lab.judge_descriptors(before)
    lab.remount()
    assert_same(snapshot(mount), snapshot(plain))
