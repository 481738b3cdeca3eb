"""A vault on disk: making one, and opening one with a key.

docs/FORMAT.md, section 2.  Does not know nodes or FUSE; `cisfs.layer.tree` is the file system in
it.  One thread at a time; an opened vault survives fork, and the lock goes with the last copy.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
from collections.abc import Callable
from dataclasses import replace
from hmac import compare_digest
from hmac import digest as hmac_digest
from pathlib import Path
from typing import Self

from cisfs.crypto.keys import ID_SIZE, SecretKey, VaultKeys, scratch_key
from cisfs.crypto.names import NameCipher
from cisfs.errors import (
    FormatError,
    UsageError,
)
from cisfs.format import config as form
from cisfs.format.config import SlotFields, VaultConfig
from cisfs.format.geometry import Geometry
from cisfs.keys.credentials import MasterKey, Opener, Recipients
from cisfs.keys.slots import SlotChange, describe_slots, new_slots, open_slots, unauthentic
from cisfs.layer import vault_file
from cisfs.layer.candidate import Admission, Candidate
from cisfs.layer.directory import StoredNames, create_id, read_id, sync_id
from cisfs.layer.file import FileContext
from cisfs.layer.journal import Journal, read_left_over
from cisfs.layer.recovery import recover
from cisfs.layer.renaming import is_at
from cisfs.layer.units import Buffers
from cisfs.layer.writing import sync_file_system

DEFAULT_UNIT_SIZE = 32 * 1024

log = logging.getLogger(__name__)


def create(path: Path, recipients: Recipients, *, unit_size: int = DEFAULT_UNIT_SIZE) -> SecretKey:
    """Make `path`, a missing or empty directory, a vault that each of `recipients` opens.

    Returns its master key.  `unit_size` is in bytes, a power of two from 4 KiB to 1 MiB.  Raises
    UsageError if there is something at `path` already or there are too many recipients, BusyError
    if another makes one there, ValueError for none and for a unit size that cannot be, CisfsError
    when a device or service fails, OSError; then `path` is as it was.
    """
    Geometry(unit_size)  # raises ValueError
    is_new = _made(path)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _check_empty(fd, path)
        vault_file.lock(fd, path, read_only=False)  # nobody else's is cleared away below
        _check_empty(fd, path)
        try:
            return _fill(fd, recipients, unit_size)
        except BaseException:
            with contextlib.suppress(OSError):
                for left in os.listdir(fd):
                    os.unlink(left, dir_fd=fd)
                if is_new:
                    path.rmdir()
            raise
    finally:
        os.close(fd)


def _made(path: Path) -> bool:
    """Make a directory; tells whether it is new.  Raises OSError."""
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        if not path.is_dir():
            raise
        return False
    return True


def _check_empty(fd: int, path: Path) -> None:
    if os.listdir(fd):
        raise UsageError(f"{path} is not empty: a vault is made in a new or an empty directory")


def _fill(fd: int, recipients: Recipients, unit_size: int) -> SecretKey:
    """Make the empty directory `fd` a vault; returns its master key.  Raises as `create` does."""
    master, vault_id = SecretKey.generate(), secrets.token_bytes(ID_SIZE)
    slots = new_slots(master, recipients, vault_id)
    config = VaultConfig(vault_id=vault_id, unit_size=unit_size, slots=tuple(slots))
    data = vault_file.packed(_authenticate(config, VaultKeys.derive(master, vault_id)))
    create_id(fd)
    vault_file.write_config(fd, data)
    sync_id(fd)
    return master


def describe(path: Path) -> dict[str, object]:
    """Return what `vault.json` says to anyone, for `inspect`; nothing is authenticated.

    Raises NotAVaultError, FormatError or UnsupportedVersionError, OSError.
    """
    config = vault_file.stored_config(path)
    return {
        "type": "vault",
        "path": str(path),
        "version": form.VERSION,
        "vault_id": config.vault_id.hex(),
        "cipher": "AES-256-XTS",
        "tags": "BLAKE3 keyed, 128 bits per unit",
        "names": "AES-256-SIV",
        "unit_size": config.unit_size,
        "slots": describe_slots(config.slots),
    }


def identifier(path: Path) -> bytes:
    """Return the 16-byte id of the vault at `path`; nothing is authenticated.

    Raises as `describe` does.
    """
    return vault_file.stored_config(path).vault_id


def master_key(path: Path, opener: Opener) -> SecretKey:
    """Return the master key of the vault at `path`, which may be mounted meanwhile.

    Raises as `Vault.open` does, but never BusyError.
    """
    return _authentic_keys(path, vault_file.stored_config(path), opener).master


def slots(path: Path) -> tuple[SlotFields, ...]:
    """Return the key slots of the vault at `path`; nothing is authenticated.

    Raises as `describe` does.
    """
    return vault_file.stored_config(path).slots


def change_slots(path: Path, opener: Opener, change: SlotChange) -> None:
    """Put others in the place of the key slots; the vault may be mounted meanwhile.

    `vault.json` is replaced whole.  Raises as `Vault.open` does, but BusyError only while another
    changes them, or when another vault takes its place meanwhile; what `change` raises, UsageError
    if there is no room.
    """
    fd = vault_file.open_directory(path)
    try:
        before = vault_file.read_config(fd, path)
        keys = _authentic_keys(path, before, opener)
        make = change(keys.master, before.vault_id)
        with vault_file.changing(fd, path):
            if not is_at(path, fd):
                raise vault_file.replaced(path)
            config = vault_file.read_config(fd, path)
            _authentic_keys(path, config, MasterKey(keys.master))
            changed = replace(config, slots=make(config.slots))
            vault_file.write_config(fd, vault_file.packed(_authenticate(changed, keys)))
    finally:
        os.close(fd)


class Vault:
    """An opened vault: its keys, its root descriptor, its lock and its journal."""

    def __init__(self, path: Path, fd: int, config: VaultConfig, read_only: bool) -> None:
        """Used by `open` only."""
        self.path = path
        self.fd = fd
        self.config = config
        self.read_only = read_only

    @classmethod
    def open(
        cls,
        path: Path,
        credential: Opener | Callable[[], Opener],
        *,
        read_only: bool = False,
        admission: Admission | None = None,
    ) -> Self:
        """Open and lock the vault at `path`; what a crash left in flight is mended.

        `credential` may be a function, called only when the vault is there and free, and when
        `admission`, which is asked before, has let it in.  Raises NotAVaultError, FormatError,
        UnsupportedVersionError, WrongKeyError, IntegrityError, BusyError, OSError, what
        `admission` raises.
        """
        fd = vault_file.open_directory(path)
        try:
            config = vault_file.read_config(fd, path)
            vault_file.lock(fd, path, read_only)
            if admission is not None:
                admission(Candidate(path, fd))
            vault = cls(path, fd, config, read_only)
            vault._unlock(credential() if callable(credential) else credential)
            vault._begin()
        except BaseException:
            os.close(fd)
            raise
        return vault

    def _unlock(self, opener: Opener) -> None:
        self.keys = _authentic_keys(self.path, self.config, opener)
        try:
            self.root_id = read_id(self.fd, heal=False)
        except FormatError as error:
            raise type(error)(f"{self.path}: {error}") from None
        self.names = NameCipher(self.keys)
        self.stored_names = StoredNames(self.names)

    def _begin(self) -> None:
        """Mend what the last mount left in flight, and start a journal of this one's own."""
        context = FileContext(self.keys.master, self.config.unit_size, Buffers(), None)
        left = read_left_over(self.fd, self.keys.journal)
        self.mended: list[str] = []
        if left.file_ids() and self.read_only:
            log.warning(
                "%s was not closed cleanly: mount it read-write once, or run cisfs verify "
                "--salvage, to mend what was in flight",
                self.path,
            )
        elif left.file_ids():
            self.mended = recover(self.fd, context, left)
            for line in self.mended:
                log.warning("%s: %s", self.path, line)
        if not self.read_only:
            journal = Journal(self.fd, self.keys.journal, lambda: sync_file_system(self.fd))
            context = replace(context, journal=journal)
        self.context = context

    def scratch_key(self) -> SecretKey:
        """Return the key of persistent scratches made for this vault's containers."""
        return scratch_key(self.keys.master, self.config.vault_id)

    def sync(self) -> None:
        """Make everything in the vault durable.  Raises OSError."""
        sync_file_system(self.fd)

    def close(self) -> None:
        """Close the vault: the journal is emptied and the lock released.  Raises OSError."""
        if self.context.journal is not None:
            self.context.journal.close()
        self.abandon()

    def abandon(self) -> None:
        """Close this process's copy of a vault that a forked process serves on."""
        os.close(self.fd)


def _authentic_keys(path: Path, config: VaultConfig, opener: Opener) -> VaultKeys:
    """Return the keys that `opener` gives, under which the config is authentic."""
    try:
        master = open_slots(config.slots, opener, config.vault_id)
    except FormatError as error:
        raise FormatError(f"{path}/vault.json is damaged: {error}") from None
    keys = VaultKeys.derive(master, config.vault_id)
    if not compare_digest(_authenticate(config, keys).mac, config.mac):
        altered = (
            f"{path}/vault.json was altered by someone without the key; restore it from a backup"
        )
        raise unauthentic(opener, path, altered)
    return keys


def _authenticate(config: VaultConfig, keys: VaultKeys) -> VaultConfig:
    return replace(config, mac=hmac_digest(keys.header_mac, config.body(), "sha256"))
