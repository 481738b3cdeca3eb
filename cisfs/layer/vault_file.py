"""A vault's directory and its file vault.json, as they are without a key: found, locked, replaced.

docs/FORMAT.md, section 2.  Nothing here is authenticated.  Does not know keys
(`cisfs.layer.vault`).  Any number of processes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from cisfs.errors import (
    BusyError,
    FormatError,
    NotAVaultError,
    UnsupportedVersionError,
    UsageError,
)
from cisfs.format import config as form
from cisfs.format.config import VaultConfig
from cisfs.format.names import NEW_VAULT_FILE, VAULT_FILE
from cisfs.layer.directory import open_regular
from cisfs.layer.locking import try_lock


def stored_config(path: Path) -> VaultConfig:
    """Return what the vault at `path` says; nothing is authenticated.  Raises as `read_config`."""
    fd = open_directory(path)
    try:
        return read_config(fd, path)
    finally:
        os.close(fd)


def open_directory(path: Path) -> int:
    """Return a descriptor of what may be a vault.  Raises NotAVaultError, OSError."""
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotAVaultError(f"{path} is not a vault: {error.strerror}") from None


def read_config(fd: int, path: Path) -> VaultConfig:
    """Return what vault.json in the directory `fd` says, which messages call `path`.

    Raises NotAVaultError, FormatError or UnsupportedVersionError, OSError.
    """
    try:
        file = open_regular(fd, VAULT_FILE)
    except FormatError as error:
        raise FormatError(f"{path}: {error}") from None
    except FileNotFoundError:
        raise NotAVaultError(
            f"{path} is not a vault: it has no vault.json; make one with: cisfs init {path}"
        ) from None
    try:
        return VaultConfig.parse(os.read(file, form.MAX_SIZE + 1))
    except UnsupportedVersionError as error:
        raise UnsupportedVersionError(f"{path}: {error}") from None
    except FormatError as error:
        raise FormatError(
            f"{path}/vault.json is damaged: {error}; restore it from a backup"
        ) from None
    finally:
        os.close(file)


def packed(config: VaultConfig) -> bytes:
    """Return the bytes of vault.json.  Raises UsageError for more than are ever read again."""
    data = config.pack()
    if len(data) > form.MAX_SIZE:
        raise UsageError(
            f"there is no room: key slots that make {len(data)} bytes of vault.json, of "
            f"{form.MAX_SIZE}; remove some or name fewer recipients"
        )
    return data


def write_config(fd: int, data: bytes) -> None:
    """Write vault.json whole or not at all.  Raises OSError."""
    with contextlib.suppress(FileNotFoundError):  # of somebody who was killed
        os.unlink(NEW_VAULT_FILE, dir_fd=fd)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(NEW_VAULT_FILE, flags, 0o600, dir_fd=fd), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.rename(NEW_VAULT_FILE, VAULT_FILE, src_dir_fd=fd, dst_dir_fd=fd)
    os.fsync(fd)


@contextlib.contextmanager
def changing(fd: int, path: Path) -> Iterator[None]:
    """Let nobody else replace vault.json, nor the vault, while the block runs.

    The vault's own lock is a mount's, for long.  Raises BusyError, OSError.
    """
    file = _locked_config(fd, path)
    try:
        yield
    finally:
        os.close(file)


def lock(fd: int, path: Path, read_only: bool) -> None:
    """Take the lock of those who use a vault: a writer's is his alone.  Raises BusyError."""
    if not try_lock(fd, shared=read_only):
        how = "read-write" if read_only else "already"
        raise BusyError(
            f"vault {path} is mounted {how} or in use by another cisfs command; unmount it first"
        )


def _locked_config(fd: int, path: Path) -> int:
    while True:
        try:
            file = open_regular(fd, VAULT_FILE)
        except FileNotFoundError:  # of a vault that was here just now
            raise replaced(path) from None
        if not try_lock(file):
            os.close(file)
            raise BusyError(f"the keys of {path} are being changed by another command")
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file), os.stat(VAULT_FILE, dir_fd=fd)):
                return file
        os.close(file)


def replaced(path: Path) -> BusyError:
    """Return what to raise when another vault has taken the place of the one at `path`."""
    return BusyError(f"{path} was replaced by another vault just now; try again")
