"""The ephemeral scratch: a file without a name, encrypted under a key that is only in memory.

Takes the content of a source that can be read only once.  It is an encrypted file of a vault
(docs/FORMAT.md, section 3) whose master key is drawn here and never leaves the process: when that
ends, nothing is left, and what the blocks on the disk held is lost.  Each unit is written once, so
there is no older state of one that could be put back.

Does not know what the content is.  One thread writes; then forked processes read.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from cisfs.build.index import Bytes
from cisfs.crypto.keys import ID_SIZE, SecretKey
from cisfs.errors import FormatError, IntegrityError
from cisfs.format.header import FileHeader
from cisfs.layer.file import EncryptedFile, FileContext
from cisfs.layer.nameless import nameless
from cisfs.layer.units import Buffers, Units

UNIT_SIZE = 1 << 15  # small files are read one by one: half the time of 64 KiB; writes lose little
_BATCH = 1 << 20  # written in one go: whole units


class Scratch:
    """One scratch file: `append` to it, `finish` it, `read` it; `size` in bytes of plaintext."""

    def __init__(self, directory: Path) -> None:
        """Make one on the file system of `directory`.  Raises OSError."""
        self.size = 0
        self._fd = nameless(directory)
        self._context = FileContext(SecretKey.generate(), UNIT_SIZE, Buffers(), journal=None)
        header = FileHeader(UNIT_SIZE, secrets.token_bytes(ID_SIZE))
        self._units = Units(self._fd, header, self._context.master, self._context.buffers)
        self._units.write_at(header.pack(), 0)
        self._batch = bytearray(_BATCH)
        self._filled = 0
        self._file: EncryptedFile | None = None

    def append(self, data: Bytes) -> None:
        """Write all of `data` after what is there.  Raises OSError."""
        rest = memoryview(data)
        while rest:
            part = rest[: _BATCH - self._filled]
            self._batch[self._filled : self._filled + len(part)] = part
            self._filled += len(part)
            self.size += len(part)
            rest = rest[len(part) :]
            if self._filled == _BATCH:
                self._flush(None)

    def finish(self) -> None:
        """Write the rest; from here on there is no `append`, but `read`.  Raises OSError."""
        self._flush(self.size)
        self._file = EncryptedFile.open(self._fd, self._context)

    def read(self, offset: int, size: int) -> memoryview:
        """Return bytes of a finished scratch; the view is valid until the next read.

        Raises IntegrityError or FormatError if they are not what was written, OSError.
        """
        if self._file is None:
            raise ValueError("the scratch is not finished")
        try:
            return self._file.read(offset, size)
        except (FormatError, IntegrityError) as error:
            raise type(error)(f"the scratch file: {error}") from None

    def close(self) -> None:
        """Let it go, with everything in it."""
        os.close(self._fd)

    def _flush(self, end_at: int | None) -> None:
        """Write what has been gathered; `end_at` is the size of a file that ends with it."""
        batch = memoryview(self._batch)[: self._filled]
        first = self._units.geometry.unit_at(self.size - len(batch))
        spans = [batch[at : at + UNIT_SIZE] for at in range(0, len(batch), UNIT_SIZE)]
        self._units.store(first, spans, end_at)
        self._filled = 0
