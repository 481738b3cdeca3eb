"""The persistent scratches of this host: listed, and destroyed.

Works below the descriptor of their directory, and follows no link in it.  Does not know any key:
what it destroys first is what a key would open.  One thread.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from cisfs.errors import BusyError, CisfsError, FormatError, UsageError
from cisfs.format.geometry import Geometry
from cisfs.format.names import DIRECTORY_FILE, VAULT_FILE
from cisfs.keys import keyring
from cisfs.layer.directory import READ_WRITE_FLAGS, open_regular
from cisfs.layer.locking import try_lock
from cisfs.layer.opening import describe, key_id
from cisfs.runtime import usage
from cisfs.runtime.scratch import is_name
from cisfs.runtime.store import SCRATCHES
from cisfs.runtime.usage import User

_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_BLOCK = 512  # bytes: what st_blocks counts, stat(2)
_LOCKS = Path("/proc/locks")


@dataclass(frozen=True, slots=True)
class Kept:
    """A persistent scratch.

    `size` is its limit in bytes, None if it is damaged; `used` the bytes it takes on the disk;
    `made` and `written` are in seconds since 1970; `in_use`: somebody holds its lock, such as one
    of the containers whose names are in `users`.
    """

    name: str
    size: int | None
    used: int
    made: float
    written: float
    in_use: bool
    users: tuple[str, ...]


def kept(store: Path) -> list[Kept]:
    """Return all scratches in a store, by name.  Raises OSError."""
    with _opened(store) as top:
        if top is None:
            return []
        names = sorted(name for name in os.listdir(top) if is_name(name))
        users = usage.users()
        return [each for name in names if (each := _kept(store, top, name, users)) is not None]


@contextlib.contextmanager
def claimed(store: Path, names: Sequence[str]) -> Iterator[Claim]:
    """Keep everybody else from some scratches, all or none, for the time of the `with` block.

    Raises UsageError for one that is not there, BusyError for one in use, OSError.
    """
    with _opened(store) as top, contextlib.ExitStack() as undo:
        held = {}
        for name in dict.fromkeys(names):
            fd = _open(store, top, name)
            undo.callback(os.close, fd)
            _lock(store, name, fd)
            held[name] = fd
        yield Claim(store, -1 if top is None else top, held)


@dataclass(frozen=True, slots=True)
class Claim:
    """Scratches that nobody else can open: `held` has the descriptor of each."""

    store: Path
    top: int
    held: dict[str, int]

    def destroy(self, name: str) -> None:
        """Destroy a scratch: first what its keys are in, then the rest.  Raises OSError.

        Killed in between, it leaves what nobody can read any more, and can be called again.
        """
        fd = self.held[name]
        with contextlib.suppress(CisfsError, OSError):  # it is not unlocked, or damaged
            keyring.forget(key_id(self.store / SCRATCHES / name))
        for file in (VAULT_FILE, VAULT_FILE + b".new"):
            _shred(fd, file)
        os.fsync(fd)
        shutil.rmtree(name, dir_fd=self.top)
        os.fsync(self.top)


@contextlib.contextmanager
def _opened(store: Path) -> Iterator[int | None]:
    """Give the descriptor of the directory of scratches, None if there is none."""
    try:
        top = os.open(store / SCRATCHES, _FLAGS)
    except FileNotFoundError:
        yield None
        return
    try:
        yield top
    finally:
        os.close(top)


def _open(store: Path, top: int | None, name: str) -> int:
    if top is not None and is_name(name):
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            return os.open(name, _FLAGS, dir_fd=top)
    raise UsageError(f"there is no scratch {name!r} in {store / SCRATCHES}")


def _lock(store: Path, name: str, fd: int) -> None:
    """Lock a scratch as whoever opens it does.  Raises BusyError."""
    if not try_lock(fd):
        users = ", ".join(_names(usage.users(), store / SCRATCHES / name))
        by = f" by container {users}: stop that first" if users else "; unmount it first"
        raise BusyError(f"scratch {name} is in use{by}")


def _shred(fd: int, name: bytes) -> None:
    """Overwrite a small file and remove it; what is no regular file is removed only."""
    try:
        file = open_regular(fd, name, READ_WRITE_FLAGS)
    except FileNotFoundError:
        return
    except FormatError:
        with contextlib.suppress(IsADirectoryError):
            os.unlink(name, dir_fd=fd)
        return
    try:
        os.pwrite(file, secrets.token_bytes(os.fstat(file).st_size), 0)
        os.fsync(file)
    finally:
        os.close(file)
    os.unlink(name, dir_fd=fd)


def _kept(store: Path, top: int, name: str, users: Sequence[User]) -> Kept | None:
    try:
        fd = os.open(name, _FLAGS, dir_fd=top)
    except (FileNotFoundError, NotADirectoryError):
        return None  # gone meanwhile, or none of ours
    try:
        path = store / SCRATCHES / name
        made, image = _stat(fd, DIRECTORY_FILE), _image(fd)
        status = os.fstat(fd)
        return Kept(
            name=name,
            size=_size(path, image),
            used=_used(fd),
            made=(made or status).st_mtime,
            written=(image or status).st_mtime,
            in_use=_is_locked(status),
            users=tuple(_names(users, path)),
        )
    finally:
        os.close(fd)


def _image(fd: int) -> os.stat_result | None:
    """Return the status of the one file that is not cisfs's own: those have dots in their names."""
    for name in os.listdir(os.fsencode(f"/proc/self/fd/{fd}")):
        found = _stat(fd, name) if b"." not in name else None
        if found is not None and stat.S_ISREG(found.st_mode):
            return found
    return None


def _stat(fd: int, name: bytes) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=fd, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _size(path: Path, image: os.stat_result | None) -> int | None:
    if image is None:
        return None
    try:
        unit_size = int(str(describe(path)["unit_size"]))
        return Geometry(unit_size).plain_size(image.st_size)
    except (CisfsError, OSError):
        return None


def _used(fd: int) -> int:
    blocks = 0
    for _, _, files, directory in os.fwalk(b".", dir_fd=fd):
        for name in files:
            found = _stat(directory, name)
            blocks += found.st_blocks if found is not None else 0
    return blocks * _BLOCK


def _is_locked(status: os.stat_result) -> bool:
    """Whether somebody holds a lock with flock(2): seen in proc(5), as trying would disturb."""
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    try:
        lines = _LOCKS.read_text().splitlines()
    except OSError:
        return False
    return any(" FLOCK " in line and f" {device} " in line for line in lines)


def _names(users: Iterable[User], path: Path) -> list[str]:
    """Return the names of those users of layers who use a scratch."""
    return [user.name for user in users if user.uses(path.resolve(), "")]
