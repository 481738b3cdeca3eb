"""Backing directories: the id each one holds, and the stored names in it.

docs/FORMAT.md, sections 4 and 5.  Works below directory descriptors, never by path; does not know
nodes, files' contents or FUSE.  One thread at a time.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat

from cisfs.crypto.keys import ID_SIZE
from cisfs.crypto.names import NameCipher
from cisfs.errors import FormatError, UnsupportedVersionError
from cisfs.format import names as spelling
from cisfs.format.header import DIRECTORY_SIZE, pack_directory, parse_directory
from cisfs.format.names import DIRECTORY_FILE, NAME_MAX

READ_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
READ_WRITE_FLAGS = os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC
_CREATE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC


def create_id(fd: int) -> bytes:
    """Give the backing directory `fd` a fresh id; returns its 16 bytes.  Raises OSError."""
    dir_id = secrets.token_bytes(ID_SIZE)
    write_id(fd, dir_id)
    return dir_id


def write_id(fd: int, dir_id: bytes) -> None:
    """Write a directory's id file.  Raises OSError."""
    _write_small(fd, DIRECTORY_FILE, pack_directory(dir_id))


def read_id(fd: int, *, heal: bool) -> bytes:
    """Return the id of the backing directory `fd`.

    A crash between making a directory and its id leaves an empty one without: with `heal` it gets
    one now.  Raises FormatError for any other damage, OSError.
    """
    try:
        return parse_directory(_read_small(fd, DIRECTORY_FILE, DIRECTORY_SIZE + 1))
    except UnsupportedVersionError:
        raise
    except (FileNotFoundError, FormatError):
        if not set(os.listdir(fd)) <= {os.fsdecode(DIRECTORY_FILE)}:
            raise FormatError("the directory's id is missing or damaged") from None
    return create_id(fd) if heal else bytes(ID_SIZE)


def sync_id(fd: int) -> None:
    """Make a directory's id and its entries durable.  Raises OSError."""
    with contextlib.suppress(FileNotFoundError):
        _sync_small(fd, DIRECTORY_FILE)
    os.fsync(fd)


class StoredNames:
    """Translates between names and stored names; long ones need a file beside the entry."""

    __slots__ = ("_cipher",)

    def __init__(self, cipher: NameCipher) -> None:
        self._cipher = cipher

    def stored(self, dir_id: bytes, name: bytes) -> bytes:
        """Return the stored name of `name` in a directory; OSError if it is too long."""
        if len(name) > NAME_MAX:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        spelled = self._spell(dir_id, name)
        return spelled if len(spelled) <= NAME_MAX else spelling.long_name(spelled)

    def plain(self, fd: int, dir_id: bytes, stored: bytes) -> bytes:
        """Return the name that `stored` stands for in the backing directory `fd`.

        Raises FormatError or IntegrityError for one that is not ours, OSError.
        """
        spelled = stored
        if spelling.is_long(stored):
            try:
                spelled = _read_small(fd, spelling.sidecar(stored), 512)
            except FileNotFoundError:
                raise FormatError("the file with a long name is missing") from None
            if spelling.long_name(spelled) != stored:
                raise FormatError("the file with a long name is damaged")
        return self._cipher.decrypt_name(dir_id, spelling.decode(spelled))

    def prepare(self, fd: int, dir_id: bytes, name: bytes, stored: bytes) -> None:
        """Write, durably, what a long stored name needs beside it, before the entry exists."""
        if spelling.is_long(stored):
            _write_small(fd, spelling.sidecar(stored), self._spell(dir_id, name))
            _sync_small(fd, spelling.sidecar(stored))

    def discard(self, fd: int, stored: bytes) -> None:
        """Remove what `prepare` wrote, after the entry is gone."""
        if spelling.is_long(stored):
            with contextlib.suppress(FileNotFoundError):
                os.unlink(spelling.sidecar(stored), dir_fd=fd)

    def _spell(self, dir_id: bytes, name: bytes) -> bytes:
        return spelling.encode(self._cipher.encrypt_name(dir_id, name))


def open_regular(fd: int, name: bytes, flags: int = READ_FLAGS) -> int:
    """Open a file of cisfs's own in `fd`.

    Raises FormatError for anything but a regular file (a FIFO would make the caller wait for
    ever), FileNotFoundError, OSError.
    """
    try:
        opened = os.open(name, flags | os.O_NONBLOCK, 0o600, dir_fd=fd)
        regular = stat.S_ISREG(os.fstat(opened).st_mode)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
            raise FormatError(f"{os.fsdecode(name)} is not a regular file") from None
        raise
    if not regular:
        os.close(opened)
        raise FormatError(f"{os.fsdecode(name)} is not a regular file")
    return opened


def open_own(fd: int, name: bytes, flags: int) -> int:
    """Open a stored file for what its owner may do with it, whatever the file's mode.

    The kernel has checked the mode against what the caller wants; to write a part of a unit takes
    reading the rest, which an ordinary user's own files may forbid (git makes them so).  Raises
    OSError.
    """
    try:
        return os.open(name, flags, dir_fd=fd)
    except PermissionError:
        status = os.stat(name, dir_fd=fd, follow_symlinks=False)
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid():
            raise
    mode = stat.S_IMODE(status.st_mode)
    os.chmod(name, mode | stat.S_IRUSR | stat.S_IWUSR, dir_fd=fd)
    try:
        return os.open(name, flags, dir_fd=fd)
    finally:
        os.chmod(name, mode, dir_fd=fd)


def _read_small(fd: int, name: bytes, most: int) -> bytes:
    file = open_regular(fd, name)
    try:
        return os.read(file, most)
    finally:
        os.close(file)


def _write_small(fd: int, name: bytes, data: bytes) -> None:
    file = os.open(name, _CREATE_FLAGS, 0o600, dir_fd=fd)
    try:
        if os.write(file, data) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        os.close(file)


def _sync_small(fd: int, name: bytes) -> None:
    file = os.open(name, READ_FLAGS, dir_fd=fd)
    try:
        os.fdatasync(file)
    finally:
        os.close(file)
