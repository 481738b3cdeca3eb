"""A file that appears whole or not at all, and never in the place of another unless told so.

Knows nothing of what is in it.  One thread; the descriptor may be written by forked processes too.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cisfs.errors import UsageError

_FLAGS = os.O_WRONLY | os.O_CLOEXEC
_NO_TMPFILE = (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOSYS)
_NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)


@contextmanager
def whole_file(path: Path, *, replace: bool) -> Iterator[int]:
    """Yield a descriptor to write a new file through, which will be at `path` afterwards.

    When the block ends, the content is made durable and gets its name; when it raises, nothing is
    left.  The umask decides who may read it.  Raises UsageError, at the start or at the end, if
    there is something at `path` already and it is not to be replaced; OSError.
    """
    _check_free(path, replace)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    temporary = b".%s.%s.part" % (os.fsencode(path.name)[:200], secrets.token_hex(4).encode())
    try:
        fd, source = _create(directory, temporary)
        try:
            yield fd
            os.fsync(fd)
            _publish(directory, source, temporary, path, replace)
        finally:
            os.close(fd)
        os.fsync(directory)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary, dir_fd=directory)
        os.close(directory)


def _check_free(path: Path, replace: bool) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not replace:
        raise UsageError(f"{path} is there already; use --force to replace it")
    if not stat.S_ISREG(mode):
        raise UsageError(f"{path} is not a regular file, so it is not replaced")


def _create(directory: int, temporary: bytes) -> tuple[int, bytes]:
    """Create a file without a name, or where that cannot be with a temporary one.

    Returns its descriptor and a path to link it from.
    """
    try:
        fd = os.open(b".", _FLAGS | os.O_TMPFILE, 0o666, dir_fd=directory)
    except OSError as error:
        if error.errno not in _NO_TMPFILE:
            raise
    else:
        source = b"/proc/self/fd/%d" % fd  # open(2), on O_TMPFILE
        if os.path.exists(source):
            return fd, source
        os.close(fd)
    return os.open(temporary, _FLAGS | os.O_CREAT | os.O_EXCL, 0o666, dir_fd=directory), temporary


def _publish(directory: int, source: bytes, temporary: bytes, path: Path, replace: bool) -> None:
    """Give the file its name."""
    name = os.fsencode(path.name)
    if replace:
        if source != temporary:
            os.link(source, temporary, src_dir_fd=directory, dst_dir_fd=directory)
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
        return
    try:
        os.link(source, name, src_dir_fd=directory, dst_dir_fd=directory)
    except FileExistsError:
        raise UsageError(f"{path} has appeared meanwhile; it was left alone") from None
    except OSError as error:
        if source != temporary or error.errno not in _NO_LINKS:
            raise
        _check_free(path, replace)  # no better way where there are no links, as on FAT
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
