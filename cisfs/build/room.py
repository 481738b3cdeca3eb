"""Room for a plaintext image, where it gets to no disk.

    memory that is never swapped out    a tmpfs with "noswap" (Linux 6.4), for root
    memory, while there is no swap      memfd_create(2)
    an ephemeral vault                  a file in a vault beside the output, under a random key

Memory is used if the image fits in half of what is free.  Does not know how an image is made.  One
thread.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cisfs.build import interrupts, memory
from cisfs.build.workplace import Workplace
from cisfs.errors import MountError, NoFuseError
from cisfs.keys.credentials import KEY_SIZE, RawKey
from cisfs.layer import vault as vaults
from cisfs.layer.vault import Vault
from cisfs.mount import server, syscalls

_SHARE = 2  # of the free memory one part may be taken
_TMPFS = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC


@dataclass(frozen=True, slots=True)
class Room:
    """Where an image is to be written: an empty file that nobody else can name.

    `limit` is how many bytes there may be, None for as many as the disk has room for.
    """

    fd: int
    limit: int | None

    def settle(self) -> None:
        """Let a write that failed after it was acknowledged be known.  Raises OSError."""
        os.fsync(self.fd)


@contextlib.contextmanager
def room(needed: int, place: Workplace) -> Iterator[Room]:
    """Make room for an image that takes up to `needed` bytes of memory with its making.

    Raises NoFuseError where there is only an ephemeral vault left and no FUSE for it, MountError,
    OSError.
    """
    limit = memory.available() // _SHARE
    with contextlib.ExitStack() as undo:
        with interrupts.held():
            fd = _in_memory(place) if needed <= limit else None
            if fd is not None:
                undo.callback(os.close, fd)
        if fd is not None:
            yield Room(fd, limit)
        else:
            yield Room(undo.enter_context(_in_vault(place)), None)


def _in_memory(place: Workplace) -> int | None:
    """Return the descriptor of a file in memory, None if it could be swapped out."""
    fd = _unswappable(place.parent) if place.is_private else None
    if fd is None and not memory.is_swapped():
        fd = os.memfd_create("cisfs image")
    return fd


def _unswappable(directory: Path) -> int | None:
    """Mount a tmpfs, open a file in it, and take the mount away: the file keeps the rest.

    It covers `directory` for that moment, in our own namespace; any directory would do.
    """
    try:
        syscalls.mount("cisfs", str(directory), "tmpfs", _TMPFS, "mode=0700,noswap")
    except OSError:
        return None  # an older kernel
    try:
        return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    finally:
        syscalls.unmount(str(directory), syscalls.MNT_DETACH)


@contextlib.contextmanager
def encrypted_directory(place: Workplace) -> Iterator[Path]:
    """Show an empty directory whose files are encrypted under a key that goes with this block.

    Raises NoFuseError, MountError, OSError.
    """
    path, mountpoint = place.directory("vault"), place.directory("image")
    key = RawKey(secrets.token_bytes(KEY_SIZE))
    vaults.create(path, key)
    vault = Vault.open(path, key)
    with contextlib.ExitStack() as undo:
        undo.callback(vault.abandon)
        with interrupts.held():
            started = server.start(vault, mountpoint, server.MountOptions(detach=False))
            undo.callback(_stop, started)
        yield mountpoint


@contextlib.contextmanager
def _in_vault(place: Workplace) -> Iterator[int]:
    """Yield the descriptor of a file in a mounted vault."""
    with contextlib.ExitStack() as undo:
        try:
            mountpoint = undo.enter_context(encrypted_directory(place))
        except NoFuseError as error:
            raise NoFuseError(
                "the image is too large for memory, or could be swapped out, and an encrypted "
                f"file for it takes FUSE: {error}"
            ) from None
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        fd = os.open(mountpoint / "image", flags, 0o600)
        undo.callback(_forget, fd)
        yield fd


def _stop(running: server.Server) -> None:
    """End the server, however it ends: nobody wants its files any more."""
    with contextlib.suppress(MountError):
        running.stop()


def _forget(fd: int) -> None:
    """Close an image in a vault; what has not been written to it yet never will be."""
    with contextlib.suppress(OSError):
        os.truncate(fd, 0)
    os.close(fd)
