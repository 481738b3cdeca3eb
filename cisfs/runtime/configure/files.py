"""An engine's configuration file: read, compared, and replaced whole or not at all.

Does not know what is in it.  One thread; two commands at once on a directory wait for each other.
"""

from __future__ import annotations

import contextlib
import difflib
import fcntl
import os
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cisfs.errors import UsageError

MAX_SIZE = 4 << 20  # bytes; no engine's configuration is larger
SUFFIX = ".cisfs-backup"


@dataclass(frozen=True, slots=True)
class Edit:
    """What is to become of a file: its text, None where there is none."""

    path: Path
    before: str | None
    after: str | None

    @property
    def is_needed(self) -> bool:
        """Whether there is a difference."""
        return self.before != self.after

    def diff(self) -> str:
        """Return the difference as `diff -u` shows it."""
        name = str(self.path)
        lines = difflib.unified_diff(
            (self.before or "").splitlines(keepends=True),
            (self.after or "").splitlines(keepends=True),
            name if self.before is not None else os.devnull,
            name if self.after is not None else os.devnull,
        )
        ended = (line if line.endswith("\n") else f"{line}\n" for line in lines)
        return "".join(ended)


def real(path: Path) -> Path:
    """Return where a file is: what is replaced is it, never a link that leads there."""
    return path.resolve()


def read(path: Path) -> str | None:
    """Return the text of a file, None if there is none.  Raises UsageError, OSError."""
    try:
        with path.open("rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise UsageError(f"{path} is not a regular file")
            content = file.read(MAX_SIZE + 1)
    except FileNotFoundError:
        return None
    if len(content) > MAX_SIZE:
        raise UsageError(f"{path} is too long for an engine's configuration")
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise UsageError(
            f"{path} is not UTF-8 at byte {error.start}; nothing was changed"
        ) from None


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other commands from the directory of a file, which is made if it is missing."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
        os.fsync(directory)
    finally:
        os.close(directory)


def apply(edit: Edit) -> Path | None:
    """Make the change; return where the earlier text is kept, None if it is not.

    It is not when there was none, or when the change takes back an earlier one to the letter.  Call
    it inside `locked`.  Mode, owner and extended attributes stay.  Raises OSError, and then the
    file is as it was.
    """
    if edit.after is None:
        edit.path.unlink(missing_ok=True)
        return None
    restored = any(read(backup) == edit.after for backup in backups(edit.path))
    kept = None
    if edit.before is not None and not restored:
        kept = _back_up(edit.path, edit.before)
    _replace(edit.path, edit.path, edit.after)
    return kept


def backups(path: Path) -> list[Path]:
    """Return the backups of a file, the latest first."""
    found = path.parent.glob(f"{path.name}.*{SUFFIX}")
    return sorted(found, key=lambda each: each.stat().st_mtime_ns, reverse=True)


def _back_up(path: Path, text: str) -> Path:
    """Copy the file beside itself; under a name that engines do not read, and no file has."""
    date = time.strftime("%Y-%m-%d-%H%M%S")
    number = 1
    while True:
        count = "" if number == 1 else f"-{number}"
        backup = path.with_name(f"{path.name}.{date}{count}{SUFFIX}")
        if not os.path.lexists(backup):
            _replace(path, backup, text)
            return backup
        number += 1


def _replace(model: Path, path: Path, text: str) -> None:
    """Write a file that looks like `model`, if that is there."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            _look_like(model, fd)
            file.write(text.encode())
            file.flush()
            os.fsync(fd)
        os.rename(temporary, path)
    except BaseException:
        temporary.unlink()
        raise


def _look_like(model: Path, fd: int) -> None:
    try:
        status = model.stat()
    except FileNotFoundError:
        os.fchmod(fd, 0o644)
        return
    os.fchown(fd, status.st_uid, status.st_gid)
    os.fchmod(fd, stat.S_IMODE(status.st_mode))
    for name in os.listxattr(model):
        with contextlib.suppress(OSError):  # such as a security label that is given anyway
            os.setxattr(fd, name, os.getxattr(model, name))
