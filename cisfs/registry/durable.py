"""Files of a layout: there under their names only when all of them is on the disk.

Does not know what they are.  Any number of processes may write side by side.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cisfs.layer.writing import sync_directory, write_all


class Publisher:
    """Gives a finished file its name."""

    def __init__(self, fd: int, temporary: Path) -> None:
        self._fd = fd
        self._temporary = temporary

    def __call__(self, path: Path) -> None:
        """Make it durable, and have it replace what is at `path`."""
        os.fsync(self._fd)
        self._temporary.rename(path)
        sync_directory(path.parent)


@contextmanager
def durable(directory: Path) -> Iterator[tuple[int, Publisher]]:
    """Yield a new file's descriptor, and what gives it its name; without that it goes away."""
    temporary = directory / f".{secrets.token_hex(8)}.part"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    try:
        yield fd, Publisher(fd, temporary)
    finally:
        os.close(fd)
        temporary.unlink(missing_ok=True)


def replace_file(path: Path, content: bytes) -> None:
    """Have a small file at `path` be of that content, durably.  Raises OSError."""
    with durable(path.parent) as (fd, publish):
        write_all(fd, content)
        publish(path)
