"""Files with keys or passphrases: read only where nobody else can read them, and written so.

Does not know what is in them.  A file is opened once and judged by its descriptor, so
that what is read is what was judged.  One thread at a time for each path.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

from cisfs.errors import UsageError

PRIVATE = 0o600
PUBLIC = 0o644
MAX_SECRET_SIZE = 1 << 16  # bytes; a longer file is surely neither a key nor a passphrase


def read_private(path: Path, what: str = "private key") -> bytes:
    """Return a file's content, at most 64 KiB; `what` it is called in messages.

    Raises UsageError if it cannot be read, or if others than its owner and root can read or write
    it, or if it is neither ours nor root's.  A pipe has no others.
    """
    return _read(path, what, private=True)


def read_public(path: Path, what: str = "public key") -> bytes:
    """Return the content of a file that anyone may read, at most 64 KiB.  Raises UsageError."""
    return _read(path, what, private=False)


def write_pair(path: Path, private: bytes, public_path: Path, public: bytes) -> None:
    """Make a private file and the public one that belongs to it, durable: both, or none.

    Raises UsageError if there is anything at either path, OSError.
    """
    _write(path, private, PRIVATE)
    try:
        _write(public_path, public, PUBLIC)
    except BaseException:
        path.unlink()
        raise


def _read(path: Path, what: str, *, private: bool) -> bytes:
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if private and stat.S_ISREG(status.st_mode):
                _check_private(status, f"{what} {path}")
            data = file.read(MAX_SECRET_SIZE + 1)
    except OSError as error:
        raise UsageError(f"cannot read {what} {path}: {error.strerror}") from None
    except ValueError:  # a NUL in the path
        raise UsageError(f"cannot read {what} {str(path)!a}") from None
    return limited(data, f"{what} {path}")


def limited(data: bytes, called: str) -> bytes:
    """Return what was read, up to one byte too much.  Raises UsageError if it was too much."""
    if len(data) > MAX_SECRET_SIZE:
        raise UsageError(f"{called} is too long")
    return data


def _check_private(status: os.stat_result, called: str) -> None:
    if status.st_mode & 0o077:
        raise UsageError(f"others can read {called}; chmod 600 it")
    if status.st_uid not in _ours():
        raise UsageError(f"{called} belongs to another user; use a copy of your own")


def _ours() -> set[int]:
    """Return whose files we take: our own, root's, and, for root, those of who called sudo(8)."""
    ours = {0, os.geteuid()}
    caller = os.environ.get("SUDO_UID", "")
    if os.geteuid() == 0 and re.fullmatch("[0-9]{1,10}", caller):
        ours.add(int(caller))
    return ours


def _write(path: Path, data: bytes, mode: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    try:
        fd = os.open(path, flags, mode)
    except FileExistsError:
        raise UsageError(f"{path} is there already; it was left alone") from None
    try:
        with open(fd, "wb") as file:
            os.fchmod(fd, mode)
            file.write(data)
            file.flush()
            os.fsync(fd)
        _sync(path.parent)
    except BaseException:
        path.unlink()
        raise


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
