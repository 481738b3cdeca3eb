"""Sealed layers with a file system in them: made from trees, read past the kernel's cache, damaged.

Knows where things lie in a layer; makes images with mkfs.erofs(1), so as to judge what cisfs makes
of them.  Read-only but for what it is asked to make or damage; safe anywhere.
"""

from __future__ import annotations

import errno
import os
import secrets
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from cisfs.format.sealed import LayerHeader
from cisfs.format.sealed_geometry import HEADER_SIZE, LayerGeometry
from cisfs.keys.credentials import Credential, RawKey
from cisfs.layer.sealing import DEFAULT_UNIT_SIZE, StoredImage, seal_image

_PATIENCE = 90
_Read = TypeVar("_Read")
BLOCK = 4096
LARGE = 12 * 1024 * 1024 + 345  # bytes in a plain tree's large file

# ---- making layers


def make_image(tree: Path, image: Path) -> None:
    """Make an EROFS image of a tree."""
    words = ["mkfs.erofs", "-Enoinline_data", "--quiet", str(image), str(tree)]
    subprocess.run(words, check=True, capture_output=True, timeout=_PATIENCE)


def seal(
    image: Path, layer: Path, credential: Credential, *, unit_size: int = DEFAULT_UNIT_SIZE
) -> str:
    """Seal an image; returns the layer's identity."""
    with image.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        return seal_image(StoredImage(file.fileno(), size), layer, credential, unit_size=unit_size)


def plain_tree(tree: Path) -> None:
    """Make a tree of a large file, which takes many requests to read, and a small one."""
    tree.mkdir()
    (tree / "large").write_bytes(os.urandom(LARGE))
    (tree / "small").write_bytes(b"small")


@dataclass(frozen=True, slots=True)
class Material:
    """A layer, and what it was made of: sealed once, for any number of labs."""

    tree: Path
    image: Path
    layer: Path
    key: Path

    @classmethod
    def make(cls, base: Path, tree: Path, *, unit_size: int = DEFAULT_UNIT_SIZE) -> Material:
        """Make image, key and layer in `base`."""
        made = cls(tree, base / "image.erofs", base / "layer.cis", base / "key")
        made.key.touch(0o600)
        made.key.write_bytes(secrets.token_bytes(32))
        make_image(tree, made.image)
        seal(made.image, made.layer, made.credential, unit_size=unit_size)
        return made

    @property
    def credential(self) -> RawKey:
        """What opens the layer."""
        return RawKey(self.key.read_bytes())


def geometry(layer: Path) -> LayerGeometry:
    """Where everything lies in an undamaged layer."""
    with layer.open("rb") as file:
        return LayerHeader.parse(file.read(HEADER_SIZE)).geometry


# ---- reading


def forget(path: Path) -> None:
    """Have the kernel drop what it keeps of a file's content."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


def fresh(path: Path) -> bytes:
    """The content of a file, read anew from the layer."""
    forget(path)
    return path.read_bytes()


def block(path: Path, offset: int, size: int = BLOCK) -> bytes:
    """A piece of a file, read anew from the layer and without read-ahead."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        return os.pread(fd, size, offset)
    finally:
        os.close(fd)


# ---- damage


def flip(path: Path, offset: int, bit: int = 0) -> None:
    """Turn one bit of a file over."""
    with path.open("r+b", buffering=0) as file:
        byte = os.pread(file.fileno(), 1, offset)[0]
        os.pwrite(file.fileno(), bytes([byte ^ 1 << bit]), offset)


def unless_eio(read: Callable[[], _Read]) -> _Read | None:
    """What was read; None for EIO, the one error that damage may come to."""
    try:
        return read()
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        return None
