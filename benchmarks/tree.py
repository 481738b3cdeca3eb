"""A source tree to copy, and a large file: the same in every run and on every machine.

Sizes and shapes follow what an installed Linux image holds: most files are small, most bytes are
in few.  Names, sizes and modes do not depend on the content, which `content` provides.  Knows
nothing of what reads it.  One writer.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

_SEED = 1619  # any constant
_ENTRIES_PER_DIRECTORY = (10, 30)
_SUBDIRECTORIES = 3
_SYMLINK_SHARE = 0.04

# Share of the files, and the range of their sizes in bytes (log-uniform within it): mean 19 KiB.
_SIZES = [
    (0.02, 0, 0),
    (0.70, 200, 8 << 10),
    (0.22, 8 << 10, 40 << 10),
    (0.055, 40 << 10, 160 << 10),
    (0.005, 500 << 10, 4 << 20),
]


# Makes the content of a file of as many random bytes.
Content = Callable[[bytes], bytes]


def incompressible(drawn: bytes) -> bytes:
    """Return the random bytes as they are."""
    return drawn


@dataclass
class Tree:
    """What was made: the number of directories, files and symlinks, and the files' bytes."""

    directories: int = 0
    files: int = 0
    symlinks: int = 0
    content: int = 0

    def __str__(self) -> str:
        return (
            f"{self.files} files, {self.directories} directories, {self.symlinks} symlinks, "
            f"{self.content / 2**20:.0f} MiB"
        )


def generate_file(path: Path, size: int, content: Content = incompressible) -> None:
    """Make a file of so many bytes, a multiple of 1 MiB."""
    chance = random.Random(_SEED)
    with path.open("wb") as file:
        for _ in range(size >> 20):
            file.write(content(chance.randbytes(1 << 20)))


def generate(root: Path, files: int, content: Content = incompressible) -> Tree:
    """Make `root` and at least `files` regular files below it."""
    chance = random.Random(_SEED)
    made = Tree()
    for directory in _directories(root):
        directory.mkdir()
        made.directories += 1
        for number in range(chance.randint(*_ENTRIES_PER_DIRECTORY)):
            path = directory / f"{chance.choice(_STEMS)}-{number:02}{chance.choice(_SUFFIXES)}"
            if chance.random() < _SYMLINK_SHARE:
                path.symlink_to(f"../{directory.name}/{chance.choice(_STEMS)}")
                made.symlinks += 1
                continue
            size = _size(chance)
            path.write_bytes(content(chance.randbytes(size)))
            path.chmod(chance.choice((0o644, 0o644, 0o755, 0o600)))
            os.utime(path, (1_600_000_000 + number, 1_600_000_000 + number))
            made.files += 1
            made.content += size
        if made.files >= files:
            return made
    raise AssertionError("the directories never end")


_STEMS = ["index", "module", "lib-core", "README", "messages", "a-rather-longer-file-name", "x"]
_SUFFIXES = [".py", ".so.1", ".json", "", ".html", ".pyc", ".conf"]


def _directories(root: Path) -> Iterator[Path]:
    """Yield directories breadth first, each with `_SUBDIRECTORIES` below it."""
    level = [root]
    while True:
        yield from level
        level = [parent / f"dir{number}" for parent in level for number in range(_SUBDIRECTORIES)]


def _size(chance: random.Random) -> int:
    (_, low, high), *_ = chance.choices(_SIZES, weights=[share for share, _, _ in _SIZES])
    return round(low * (high / low) ** chance.random()) if low else 0
