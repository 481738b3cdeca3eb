"""Opening a tar: as what it lies in allows, and compressed or not.

Does not know what is in it.  One thread.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path

from cisfs.build.archive import Archive, PlainArchive, StreamArchive
from cisfs.build.decompress import MAGIC_SIZE, Readable, Unpacked, is_compressed
from cisfs.build.files import OpenFile
from cisfs.build.index import Content
from cisfs.build.scratch import Scratch


class ContentReader:
    """Reads content from its start to its end."""

    def __init__(self, content: Content, size: int) -> None:
        self._content = content
        self._size = size
        self._at = 0

    def read(self, most: int) -> bytes:
        """Return the next bytes, at most so many, none at the end.  Raises as `Content` does."""
        piece = bytes(self._content.read(self._at, min(most, self._size - self._at)))
        self._at += len(piece)
        return piece


def open_archive(
    fd: int, label: str, max_size: int, scratch_directory: Path, *, hashed: bool = False
) -> Archive:
    """Read a tar from `fd`, plain or compressed; `label` is what messages call it later on.

    `max_size` is in bytes after decompression.  A scratch, where one is needed, is made on the file
    system of `scratch_directory`.  `hashed` has the digest of it be known.  Raises FormatError,
    UsageError, OSError.
    """
    source = Unpacked(fd)
    try:
        if stat.S_ISREG(os.fstat(fd).st_mode) and not source.compressed:
            source.close()
            file, start = OpenFile(fd, label), os.lseek(fd, 0, os.SEEK_CUR)
            return PlainArchive(file, start, file.state.size - start, max_size, file.close)
        return StreamArchive(source, Scratch(scratch_directory), max_size, hashed=hashed)
    except BaseException:
        source.close()
        raise


def open_content(
    content: Content, size: int, max_size: int, scratch_directory: Path, *, hashed: bool = False
) -> Archive:
    """Read a tar, plain or compressed, that is the first `size` bytes of `content`.

    Otherwise as `open_archive`.
    """
    if is_compressed(bytes(content.read(0, min(size, MAGIC_SIZE)))):
        reader = ContentReader(content, size)
        return open_stream(reader, max_size, scratch_directory, hashed=hashed)
    return PlainArchive(content, 0, size, max_size)


def open_stream(
    stream: Readable, max_size: int, scratch_directory: Path, *, hashed: bool = False
) -> Archive:
    """Read a tar, plain or compressed, that can be read once.  Otherwise as `open_archive`."""
    source = Unpacked(stream)
    try:
        return StreamArchive(source, Scratch(scratch_directory), max_size, hashed=hashed)
    except BaseException:
        source.close()
        raise
