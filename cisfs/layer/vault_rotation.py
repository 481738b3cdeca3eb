"""Rotating a vault: its tree is copied into a new vault, under a fresh master key.

docs/FORMAT.md, section 14.  The new vault is made in a partial directory beside the old one,
which nobody else may use meanwhile, and stays as it is until the two change places.  What an
earlier run left is built upon if its record is authentic under both master keys.  Does not know
what is in a tree (`cisfs.layer.vault_copy`).  One call at a time in a process.
"""

from __future__ import annotations

import hmac
import logging
import os
import stat
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from cisfs.crypto.keys import SecretKey, rotated_key, rotation_key
from cisfs.errors import (
    CisfsError,
    FormatError,
    IntegrityError,
    NotAVaultError,
    UsageError,
    WrongKeyError,
)
from cisfs.format.rotation import VaultRecord
from cisfs.keys.credentials import MasterKey, Recipients
from cisfs.keys.reopening import are_for, reopened
from cisfs.layer import vault as vaults
from cisfs.layer import vault_file
from cisfs.layer.partial import Partial, claimed_directory, partial_directory
from cisfs.layer.renaming import RENAME_EXCHANGE, renameat2
from cisfs.layer.rotation_request import Request, Rotated, naming_full_disks
from cisfs.layer.vault import Vault
from cisfs.layer.vault_copy import TreeCopy, Unusable
from cisfs.layer.vault_partial import (
    NEW,
    PROBES,
    check_contents,
    clear,
    read_record,
    write_record,
)
from cisfs.layer.wholetree import WholeTree

log = logging.getLogger(__name__)


def rotate_vault(path: Path, request: Request) -> Rotated:
    """Rotate the vault at `path`, which is no symlink, or go on where an earlier run ended.

    If that had nothing left to do but to remove the old vault, it is removed, and the rotation that
    is asked for now begins.  Raises what `Vault.open` and `claimed_directory` raise, CisfsError
    where the two cannot change places or there is no space, FormatError or IntegrityError that
    names a damaged file, OSError.
    """
    master, vault_id = vaults.master_key(path, request.opener), vaults.identifier(path)
    with (
        naming_full_disks(path, partial_directory(path)),
        claimed_directory(path) as partial,
        _no_umask(),
    ):
        check_contents(partial)
        if _is_over(partial, master, vault_id):
            # That is not all: the record may have been kept, and put back by whoever wants to stay
            # when somebody is to be dropped.
            clear(partial)
            log.warning(
                "%s: an earlier rotation of it had come to its end, and the old vault that it left "
                "was removed; now it is rotated once more",
                path,
            )
        with closing(WholeTree(Vault.open(path, MasterKey(master)))) as source:
            return _Making(path, partial, source).rotate(request)


def _is_over(partial: Partial, master: SecretKey, vault_id: bytes) -> bool:
    """Tell whether the new vault is in its place already."""
    record = read_record(partial)
    if record is None or record.vault_id != vault_id:
        return False
    expected = _mac(rotated_key(master, vault_id), record)
    return hmac.compare_digest(expected, record.new_mac)


class _Making:
    """A new vault that is being made, in a partial directory, of one that is open and locked."""

    def __init__(self, path: Path, partial: Partial, source: WholeTree) -> None:
        self._path = path
        self._partial = partial
        self._new = partial.path / os.fsdecode(NEW)
        self._source = source
        self._old = source.vault

    def rotate(self, request: Request) -> Rotated:
        """Make it, or go on making it, and put it in the old one's place."""
        _check_exchange(self._path, self._partial, self._old.fd)
        wanted = request.recipients_after(self._old.config.slots)
        there = self._left_over(request, wanted)
        continued = there is not None and self._fill(request, there)
        if not continued or there is None:
            there = self._begun(wanted)
            if not self._fill(request, there):  # it was empty, so the disk keeps nothing
                raise CisfsError(f"what was just written to {self._new} is damaged already")
        self._exchange(request, there)
        return Rotated(there.config.vault_id.hex(), None, continued)

    def _left_over(self, request: Request, wanted: Recipients) -> Vault | None:
        """Open what an earlier run left, if it is to be trusted."""
        record = read_record(self._partial)
        if record is None or record.source != self._old.config.vault_id:
            return None
        try:
            slots = vaults.slots(self._new)
            new = reopened(slots, request.opener, wanted, record.vault_id)
            if new is None or not hmac.compare_digest(self._mac(new, record), record.mac):
                return None
            if not are_for(slots, wanted, new, record.vault_id):
                return None
            vault = Vault.open(self._new, MasterKey(new))
        except (NotAVaultError, FormatError, IntegrityError, WrongKeyError):
            return None
        if (vault.config.vault_id, vault.config.slots) == (record.vault_id, slots):
            return vault
        vault.close()
        return None

    def _begun(self, wanted: Recipients) -> Vault:
        """Make a new vault, empty, and a record that says what it is for."""
        clear(self._partial)
        write_record(self._partial, b"")  # what is made before the record is ours, too
        try:
            new = vaults.create(self._new, wanted, unit_size=self._old.config.unit_size)
        except BaseException:
            clear(self._partial)  # there is nothing to go on with
            raise
        vault = Vault.open(self._new, MasterKey(new))
        try:
            vault_id = vault.config.vault_id
            record = VaultRecord(vault_id, self._old.config.vault_id)
            new_mac = _mac(rotated_key(new, vault_id), record)
            record = replace(record, mac=self._mac(new, record), new_mac=new_mac)
            write_record(self._partial, record.pack())
        except BaseException:
            vault.close()
            raise
        return vault

    def _mac(self, new: SecretKey, record: VaultRecord) -> bytes:
        return _mac(rotation_key(new, self._old.keys.master, record.vault_id), record)

    def _fill(self, request: Request, vault: Vault) -> bool:
        """Copy the tree, durably, and close the new vault; False if that is damaged."""
        copied, total = 0, _estimate(self._old.fd)

        def report(size: int) -> None:
            nonlocal copied
            copied += size
            request.progress(min(copied, total), total)

        with closing(WholeTree(vault)) as target:
            try:
                TreeCopy(self._source, target, report).run()
            except Unusable:
                return False
            vault.sync()
        request.progress(total, total)
        return True

    def _exchange(self, request: Request, vault: Vault) -> None:
        """Let the two change places, in one step, and remove the old one."""
        keys = self._old.scratch_key(), vault.scratch_key()
        request.switching(*keys)
        at, name = self._partial.directory, os.fsencode(self._path.name)
        os.fsync(self._partial.fd)
        with vault_file.changing(self._old.fd, self._path):
            there = os.stat(name, dir_fd=at, follow_symlinks=False)
            same = os.path.samestat(there, os.fstat(self._old.fd))
            if not same or vaults.slots(self._path) != self._old.config.slots:
                raise CisfsError(f"{self._path} was changed while it was rotated: rotate it again")
            renameat2(at, name, self._partial.fd, NEW, RENAME_EXCHANGE)
        os.fsync(at)
        os.fsync(self._partial.fd)
        request.switched(*keys)
        clear(self._partial)


def _check_exchange(path: Path, partial: Partial, fd: int) -> None:
    """See at the start whether the new vault will be able to take the old one's place."""
    if os.geteuid() not in (0, os.fstat(fd).st_uid):
        raise UsageError(f"{path} is another user's: only root can rotate it")
    if _mount_id(fd) != _mount_id(partial.directory):
        raise UsageError(f"{path} is a mount point: nothing else can take its place")
    for probe in PROBES:
        os.mkdir(probe, 0o700, dir_fd=partial.fd)
    try:
        renameat2(partial.fd, PROBES[0], partial.fd, PROBES[1], RENAME_EXCHANGE)
    except OSError as error:
        raise CisfsError(
            f"the file system of {path} cannot exchange two directories ({error.strerror}), which "
            "it takes to rotate a vault in one step: copy it to ext4, XFS, Btrfs or a tmpfs"
        ) from None
    finally:
        for probe in PROBES:
            os.rmdir(probe, dir_fd=partial.fd)


def _mount_id(fd: int) -> str:
    """Which mount a descriptor is of, proc(5): bind mounts have the same device."""
    lines = Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
    return next(line for line in lines if line.startswith("mnt_id:"))


def _mac(key: bytes, record: VaultRecord) -> bytes:
    return hmac.digest(key, record.body(), "sha256")


def _estimate(root: int) -> int:
    """About how many bytes there are to be copied: what is stored of the files, without holes."""
    total = 0
    for _, _, names, fd in os.fwalk(".", dir_fd=root):
        for name in names:
            with suppress(OSError):
                status = os.stat(name, dir_fd=fd, follow_symlinks=False)
                if stat.S_ISREG(status.st_mode):
                    total += min(status.st_size, status.st_blocks * 512)
    return total


@contextmanager
def _no_umask() -> Iterator[None]:
    """Modes are copied as they are."""
    before = os.umask(0)
    try:
        yield
    finally:
        os.umask(before)
