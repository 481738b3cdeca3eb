"""Images that are made already: telling an EROFS image, and whether it can be sealed as it is.

Reads the superblock (Linux, fs/erofs/erofs_fs.h) and nothing else; whether the rest is in order is
for the kernel to judge.  Safe anywhere.
"""

from __future__ import annotations

import os
import stat
import struct
from pathlib import Path
from typing import NamedTuple

from cisfs.errors import UsageError

# magic, log2 of the block size, inodes, blocks, further devices
_SUPERBLOCK = struct.Struct("<I8xB3xQ12xI46xH")
_OFFSET = 1024
_MAGIC = 0xE0F5E1E2
_ALIGNMENT = 4096  # docs/FORMAT.md, section 8


class Superblock(NamedTuple):
    """What is asked of an image: `size` in bytes, the number of inodes, and of other devices."""

    size: int
    inodes: int
    devices: int


def superblock(fd: int) -> Superblock | None:
    """Read the superblock of an EROFS image, None if the file is none."""
    data = os.pread(fd, _SUPERBLOCK.size, _OFFSET)
    if len(data) < _SUPERBLOCK.size:
        return None
    magic, block_bits, inodes, blocks, devices = _SUPERBLOCK.unpack(data)
    return Superblock(blocks << block_bits, inodes, devices) if magic == _MAGIC else None


def is_image(fd: int) -> bool:
    """Return whether the descriptor is one of a regular file with an EROFS image in it."""
    return stat.S_ISREG(os.fstat(fd).st_mode) and superblock(fd) is not None


def check_image(fd: int, path: Path) -> Superblock:
    """Return the superblock of a ready-made image at `path`.

    Raises UsageError for one that cannot be sealed as it is, with the next step.
    """
    found, size = superblock(fd), os.fstat(fd).st_size
    if found is None:
        raise UsageError(f"{path} is no EROFS image")
    if found.devices:
        raise UsageError(f"{path} keeps its data in another file: make it without --blobdev")
    if size < found.size or size % _ALIGNMENT:
        raise UsageError(
            f"{path} has {size} bytes, and an EROFS image of {found.size}, in whole blocks of "
            f"{_ALIGNMENT}, was expected: it is cut off, or not all of it is an image"
        )
    return found
