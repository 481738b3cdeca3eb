"""Checking a whole vault: every name, every unit, every extended attribute.

Decrypts names, to be able to say them, and no content.  With `salvage` it also mends what a crash
leaves behind; it never makes altered content pass for good.  Knows no FUSE.  One thread at a time,
on a vault that nothing else has open.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace

from cisfs.errors import CisfsError, FormatError
from cisfs.format import names as spelling
from cisfs.format.names import TARGET_NONCE_SIZE, is_long, is_reserved
from cisfs.layer.directory import READ_FLAGS, create_id, read_id
from cisfs.layer.file import EncryptedFile, FileContext, open_units
from cisfs.layer.mend import salvage_end
from cisfs.layer.vault import Vault
from cisfs.layer.xattrs import Xattrs

_UNBOUND = bytes(16)
_OWN_FILES = frozenset(
    {
        spelling.VAULT_FILE,
        spelling.NEW_VAULT_FILE,
        spelling.JOURNAL_FILE,
        spelling.DIRECTORY_FILE,
    }
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One damaged thing: the path in the vault, the unit if it is one, and what is wrong."""

    path: str
    unit: int | None
    problem: str
    mended: bool = False


def verify(vault: Vault, *, salvage: bool) -> Iterator[Finding]:
    """Read everything in `vault` and yield what is damaged, in the order of the walk.

    With `salvage` (on a vault opened for writing) files that a crash left without a header become
    empty ones, torn ends are cut back to the last whole unit, and stray helper files are removed.
    Altered units stay as they are.
    """
    for line in vault.mended:
        yield Finding(line.split(" ", 1)[0], None, line.split(" ", 1)[1], mended=True)
    yield from _Walk(vault, salvage).everything()


class _Walk:
    def __init__(self, vault: Vault, salvage: bool) -> None:
        self._vault = vault
        self._salvage = salvage
        self._xattrs = Xattrs(vault.names)
        self._reading: FileContext = replace(vault.context, journal=None)
        self._seen: set[int] = set()
        self._waiting: list[tuple[tuple[bytes, ...], str]] = [((), "")]

    def everything(self) -> Iterator[Finding]:
        """Check directory after directory; each is opened from the root, however deep it lies."""
        while self._waiting:
            stored_path, path = self._waiting.pop()
            try:
                fd = _open_directory(self._vault.fd, stored_path)
            except OSError as error:
                yield Finding(path or "/", None, f"cannot be read: {error.strerror}")
                continue
            try:
                yield from self._directory(fd, stored_path, path)
            finally:
                os.close(fd)

    def _directory(self, fd: int, stored_path: tuple[bytes, ...], path: str) -> Iterator[Finding]:
        try:
            dir_id = read_id(fd, heal=False)
        except FormatError as error:
            yield Finding(path or "/", None, f"{error}; nothing in it can be read")
            return
        if dir_id == bytes(len(dir_id)):  # empty, and without an id: a crash made it so
            if self._salvage:
                create_id(fd)
            yield Finding(path, None, "the empty directory has no id", mended=self._salvage)
            return
        yield from self._check_xattrs(b"/proc/self/fd/%d/." % fd, stat.S_IFDIR, dir_id, path)
        for text in sorted(os.listdir(fd)):
            stored = os.fsencode(text)
            if is_reserved(stored):
                yield from self._check_reserved(fd, stored, path)
                continue
            try:
                name = os.fsdecode(self._vault.stored_names.plain(fd, dir_id, stored))
            except CisfsError as error:
                yield Finding(f"{path}/{text}", None, f"its stored name: {error}")
                continue
            try:
                yield from self._entry(fd, stored, f"{path}/{name}", stored_path)
            except OSError as error:
                yield Finding(f"{path}/{name}", None, f"cannot be read: {error.strerror}")

    def _entry(
        self, fd: int, stored: bytes, path: str, parent: tuple[bytes, ...]
    ) -> Iterator[Finding]:
        status = os.stat(stored, dir_fd=fd, follow_symlinks=False)
        mode = status.st_mode
        if stat.S_ISDIR(mode):
            self._waiting.append(((*parent, stored), path))
            return
        if status.st_ino in self._seen:
            return
        if status.st_nlink > 1:
            self._seen.add(status.st_ino)
        if stat.S_ISREG(mode):
            yield from self._file(fd, stored, path)
            return
        if stat.S_ISLNK(mode):
            yield from self._symlink(fd, stored, path)
        yield from self._check_xattrs(b"/proc/self/fd/%d/%s" % (fd, stored), mode, _UNBOUND, path)

    def _file(self, fd: int, stored: bytes, path: str) -> Iterator[Finding]:
        opened = os.open(stored, READ_FLAGS, dir_fd=fd)
        try:
            try:
                file = EncryptedFile.open(opened, self._reading)
            except CisfsError as error:
                yield Finding(path, None, str(error), mended=self._mend_end(fd, stored))
                return
            for unit in file.damaged_units():
                yield Finding(path, unit, "altered")
            place = b"/proc/self/fd/%d/%s" % (fd, stored)
            yield from self._check_xattrs(place, stat.S_IFREG, file.file_id, path)
        finally:
            os.close(opened)

    def _symlink(self, fd: int, stored: bytes, path: str) -> Iterator[Finding]:
        try:
            sealed = spelling.decode(os.readlink(stored, dir_fd=fd))
            nonce, cipher = sealed[:TARGET_NONCE_SIZE], sealed[TARGET_NONCE_SIZE:]
            self._vault.names.decrypt_target(nonce, cipher)
        except CisfsError as error:
            yield Finding(path, None, str(error))

    def _check_xattrs(
        self, place: bytes, mode: int, owner_id: bytes, path: str
    ) -> Iterator[Finding]:
        try:
            for name in self._xattrs.names(place, mode, owner_id):
                self._xattrs.get(place, mode, owner_id, name)
        except CisfsError as error:
            yield Finding(path or "/", None, str(error))
        except OSError as error:
            yield Finding(path or "/", None, f"extended attributes: {error.strerror}")

    def _check_reserved(self, fd: int, stored: bytes, path: str) -> Iterator[Finding]:
        text = os.fsdecode(stored)
        if stored.startswith(spelling.LONG_NAME_PREFIX):
            entry = spelling.LONG_PREFIX + stored.removeprefix(spelling.LONG_NAME_PREFIX)
            if is_long(entry) and not _exists(fd, entry):
                if self._salvage:
                    os.unlink(stored, dir_fd=fd)
                yield Finding(f"{path}/{text}", None, "stray long name", mended=self._salvage)
        elif stored not in _OWN_FILES:
            yield Finding(f"{path}/{text}", None, "not written by cisfs; ignored")

    def _mend_end(self, fd: int, stored: bytes) -> bool:
        """Salvage a file whose end or header is missing; tells whether that worked."""
        if not self._salvage:
            return False
        opened = os.open(stored, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
        with contextlib.ExitStack() as stack:
            stack.callback(os.close, opened)
            if os.fstat(opened).st_size == 0:
                EncryptedFile.create(opened, self._vault.context)
                return True
            try:
                units, _ = open_units(opened, self._vault.context)
            except CisfsError:
                return False
            return salvage_end(units)


def _open_directory(root: int, stored_path: tuple[bytes, ...]) -> int:
    fd = os.open(b".", READ_FLAGS | os.O_DIRECTORY, dir_fd=root)
    for stored in stored_path:
        try:
            inner = os.open(stored, READ_FLAGS | os.O_DIRECTORY, dir_fd=fd)
        finally:
            os.close(fd)
        fd = inner
    return fd


def _exists(fd: int, stored: bytes) -> bool:
    try:
        os.stat(stored, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True
