"""Layers for tests, in memory, as an image would have them.

Knows the format of tars by `tests.unit.tars`.  One test at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from cisfs.build.archive import Archive
from cisfs.build.layers import Layer
from cisfs.build.opening import open_content


class Stored:
    """Content in memory."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def read(self, offset: int, size: int) -> bytes:
        return self._data[offset : offset + size]


def as_it_is(tar: bytes) -> bytes:
    return tar


def layer_of(tar: bytes, pack: Callable[[bytes], bytes] = as_it_is) -> Layer:
    """A layer whose tar is stored as `pack` makes it."""
    stored = pack(tar)

    def opened(max_size: int, scratch_directory: Path) -> Archive:
        return open_content(Stored(stored), len(stored), max_size, scratch_directory, hashed=True)

    return Layer("it", f"sha256:{hashlib.sha256(tar).hexdigest()}", opened)
