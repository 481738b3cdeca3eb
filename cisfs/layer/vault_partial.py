"""What is in the partial directory of a vault's rotation, and what is not taken for it.

docs/FORMAT.md, section 14.  Does not know keys, nor what is in a vault.  One thread, which holds
the directory's lock.
"""

from __future__ import annotations

import os
import shutil
import stat
from contextlib import suppress

from cisfs.errors import FormatError, UsageError
from cisfs.format.rotation import VAULT_MAGIC, VAULT_RECORD_SIZE, VaultRecord
from cisfs.layer.directory import open_regular
from cisfs.layer.partial import Partial

NEW = b"new"  # the vault that is being made; after the exchange, the old one
PROBES = (b"probe.1", b"probe.2")
_RECORD = b"source"


def check_contents(partial: Partial) -> None:
    """Take no directory for ours that somebody else made, or put anything in.

    Raises UsageError.
    """
    found = {os.fsencode(name) for name in os.listdir(partial.fd)}
    ours = found <= {NEW, _RECORD, *PROBES} and (NEW not in found or _RECORD in found)
    start = _stored_record(partial)[: len(VAULT_MAGIC)]
    if not ours or (any(start) and start != VAULT_MAGIC):  # zeros after a power cut
        raise UsageError(f"{partial.path} is in the way, which cisfs did not make: remove it")
    for probe in found.intersection(PROBES):
        os.rmdir(probe, dir_fd=partial.fd)


def _stored_record(partial: Partial) -> bytes:
    """Return the record's bytes, none if there is none, or one too many."""
    try:
        fd = open_regular(partial.fd, _RECORD)
    except (FileNotFoundError, FormatError):
        return b""
    try:
        return os.read(fd, VAULT_RECORD_SIZE + 1)
    finally:
        os.close(fd)


def read_record(partial: Partial) -> VaultRecord | None:
    """Return the record, None if there is none that can be read; it is not yet authentic."""
    try:
        return VaultRecord.parse(_stored_record(partial))
    except FormatError:
        return None


def write_record(partial: Partial, data: bytes) -> None:
    """Write the record, durably.  Raises OSError."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    with os.fdopen(os.open(_RECORD, flags, 0o600, dir_fd=partial.fd), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.fsync(partial.fd)


def clear(partial: Partial) -> None:
    """Remove everything in the partial directory; the record last, which says what the rest is.

    Raises OSError.
    """
    with suppress(FileNotFoundError):
        _remove_tree(partial.fd, NEW)
    with suppress(FileNotFoundError):
        os.unlink(_RECORD, dir_fd=partial.fd)
    os.fsync(partial.fd)


def _remove_tree(directory: int, name: bytes) -> None:
    """Remove a stored tree, whose directories may be closed to an owner who is not root."""
    if os.geteuid() != 0:
        for _, _, inner, fd in os.fwalk(name, dir_fd=directory):
            for each in inner:
                if not stat.S_ISLNK(os.stat(each, dir_fd=fd, follow_symlinks=False).st_mode):
                    os.chmod(each, 0o700, dir_fd=fd)
    shutil.rmtree(name, dir_fd=directory)
