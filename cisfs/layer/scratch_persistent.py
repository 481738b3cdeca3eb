"""A scratch that stays: a block image in a vault of its own, which a key slot opens again.

The vault (docs/FORMAT.md, sections 2 to 7) holds one file, and its journal makes each write whole
or mendable; its lock keeps a second container out.  Somebody who can write to the disk can put an
earlier state of the whole back, as with any vault.

Does not know file systems or FUSE.  One thread; a forked process may take the image over.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from cisfs.errors import FormatError, IntegrityError
from cisfs.format.scratch_geometry import whole_units
from cisfs.keys.credentials import Credential, Opener
from cisfs.layer import vault as vaults
from cisfs.layer.directory import READ_WRITE_FLAGS, sync_id
from cisfs.layer.file import EncryptedFile
from cisfs.layer.vault import Vault

# ext4 writes long runs: 1 GiB took 3.0 s with these units and 3.6 to 5 with those of 16 KiB, a copy
# of many small files 1.6 s and 2.2.  A page that is overwritten alone, and synced, takes 7 ms
# instead of 4; most of that is the journal's own fsync.
UNIT_SIZE = 64 * 1024
NAME = b"scratch.ext4"


class PersistentImage:
    """An image in an opened vault.  `size` in bytes."""

    durable = True

    def __init__(self, vault: Vault, file: EncryptedFile) -> None:
        """Used by `create` and `open` only."""
        self._vault = vault
        self._file: EncryptedFile | None = file
        self.size = file.size

    @classmethod
    def create(cls, path: Path, credential: Credential, size: int) -> Self:
        """Make `path`, a missing or empty directory, an image of at least `size` bytes.

        It takes no space before it is written.  Raises UsageError if there is something at `path`
        already, OSError; then nothing is there.
        """
        vaults.create(path, credential, unit_size=UNIT_SIZE)
        vault = Vault.open(path, credential)
        try:
            fd = os.open(_stored(vault), READ_WRITE_FLAGS | os.O_CREAT, 0o600, dir_fd=vault.fd)
            file = EncryptedFile.create(fd, vault.context)
            file.truncate(whole_units(size))
            file.sync(datasync=False)
            sync_id(vault.fd)
        except BaseException:
            shutil.rmtree(path, ignore_errors=True)  # which nobody else has: the lock is ours
            vault.close()
            raise
        return cls(vault, file)

    @classmethod
    def open(cls, path: Path, credential: Opener) -> Self:
        """Open the image at `path`; what a crash left in flight is mended.

        Raises BusyError if it is in use, and what `Vault.open` and `EncryptedFile.open` raise.
        """
        with contextlib.ExitStack() as undo:
            vault = Vault.open(path, credential)
            undo.callback(vault.close)
            fd = _open_stored(vault)
            undo.callback(os.close, fd)
            with _naming(path):
                image = cls(vault, EncryptedFile.open(fd, vault.context))
            undo.pop_all()
        return image

    def descriptors(self) -> set[int]:
        """The vault's, which hold its lock, and the file's."""
        return {self._vault.fd} | ({self._file.fd} if self._file is not None else set())

    def read(self, offset: int, size: int) -> memoryview:
        """Return bytes, fewer than `size` only at the end; the view is valid until the next call.

        Raises IntegrityError, OSError.
        """
        if self._file is None:
            raise OSError(errno.ESHUTDOWN, "the scratch was destroyed")
        with _naming(self._vault.path):
            return self._file.read(offset, size)

    def write(self, offset: int, data: memoryview) -> None:
        """Write all of `data`, which lies within the image.  Raises IntegrityError, OSError."""
        if self._file is not None:
            with _naming(self._vault.path):
                self._file.write(offset, data)

    def discard(self, offset: int, size: int) -> None:
        """Make bytes zeros; whole units become a hole.  Raises OSError: EOPNOTSUPP if it cannot."""
        if self._file is not None:
            with _naming(self._vault.path):
                self._file.discard(offset, size)

    def tidy(self) -> bool:
        """Nothing is ever put off."""
        return False

    def sync(self) -> None:
        """Make what was written durable.  Raises OSError."""
        if self._file is not None:
            self._file.sync(datasync=True)

    def destroy(self) -> None:
        """Go on without the key: reads fail now, and what is written is dropped.

        What is on the disk stays, for whoever can open the vault.
        """
        if self._file is not None:
            self._file.close()
            self._file = None

    def close(self) -> None:
        """Let the vault go, with everything durable that was written.  Raises OSError."""
        self.destroy()
        self._vault.close()

    def abandon(self) -> None:
        """Let go of this process's copy of an image that a forked process serves on."""
        self.destroy()
        self._vault.abandon()


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Say which scratch it was that was damaged."""
    try:
        yield
    except (FormatError, IntegrityError) as error:
        raise type(error)(f"the scratch {path}: {error}") from None


def _open_stored(vault: Vault) -> int:
    try:
        return os.open(_stored(vault), READ_WRITE_FLAGS, dir_fd=vault.fd)
    except FileNotFoundError:
        raise FormatError(
            f"{vault.path} is a vault, but there is no scratch in it: remove it, or name another"
        ) from None


def _stored(vault: Vault) -> bytes:
    return vault.stored_names.stored(vault.root_id, NAME)
