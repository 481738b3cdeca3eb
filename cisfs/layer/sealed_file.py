"""The file of a sealed layer, as it is without a key: found, locked, described, and signed.

docs/FORMAT.md, sections 8 to 10.  Nothing here is authenticated, but for signatures by who checks
them (`cisfs.layer.admission`).  Does not know keys (`cisfs.layer.sealed`).  Any number of
processes.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from cisfs.errors import (
    BusyError,
    FormatError,
    IntegrityError,
    NotAVaultError,
    UnsupportedVersionError,
)
from cisfs.format.sealed import LayerHeader
from cisfs.format.sealed_geometry import HEADER_SIZE, LayerGeometry
from cisfs.format.signatures import Signature, added
from cisfs.format.slotarea import SlotText
from cisfs.layer import slotarea
from cisfs.layer.candidate import Candidate
from cisfs.layer.renaming import is_at

_OPEN_FLAGS = os.O_CLOEXEC | os.O_NONBLOCK  # a FIFO must not make us wait for ever


@dataclass(frozen=True, slots=True)
class CarriedLayer:
    """A layer as whoever carries it has it, locked and not opened: its hashes take no key."""

    path: Path
    fd: int
    header: LayerHeader
    signatures: tuple[Signature, ...]  # embedded, and not checked

    @property
    def geometry(self) -> LayerGeometry:
        """Where everything lies in the layer."""
        return self.header.geometry

    @property
    def candidate(self) -> Candidate:
        """The layer, for who decides whether it may be used."""
        return Candidate(self.path, self.fd, self.header.identity, self.signatures)


def read_locked(fd: int, path: Path) -> tuple[LayerHeader, SlotText]:
    """Lock the layer at `path`, open as `fd`; return its header and the text of its key slots.

    Raises as `read_header`, `lock`, `slotarea.read` and `check_size` do.
    """
    with naming(path):
        header = read_header(fd)
        lock(fd, path)
        text = slotarea.read(fd).text
        check_size(fd, header)
    return header, text


@contextmanager
def carried(path: Path) -> Iterator[CarriedLayer]:
    """Find and lock the layer at `path` while the block runs.  Raises as `stored` and `lock` do."""
    fd = open_file(path)
    try:
        header, text = read_locked(fd, path)
        yield CarriedLayer(path, fd, header, text.signatures)
    finally:
        os.close(fd)


def embed(path: Path, identity: str, signature: Signature) -> None:
    """Put a signature of the layer at `path` into it; it may be mounted meanwhile.

    An earlier one of the same signer goes.  Raises as `update_slots` does.
    """
    update_slots(
        path, identity, lambda text: replace(text, signatures=added(text.signatures, signature))
    )


def update_slots(path: Path, identity: str, change: Callable[[SlotText], SlotText]) -> None:
    """Replace what the key slots of the layer at `path` say by what `change` makes of it.

    Raises UsageError if there is no room, BusyError if the layer has not this identity any more or
    another has taken its place; as `stored` does, what `change` raises.
    """
    fd = open_file(path, os.O_RDWR)

    def changed(text: SlotText) -> SlotText:
        # Only now: whoever puts another layer here keeps the slots' lock until it is done.
        if not is_at(path, fd):
            raise _replaced(path)
        return change(text)

    try:
        with naming(path):
            if read_header(fd).identity != identity:
                raise _replaced(path)
            slotarea.update(fd, changed)
    finally:
        os.close(fd)


def _replaced(path: Path) -> BusyError:
    return BusyError(f"{path} was replaced by another layer just now; try again")


def stored(path: Path) -> tuple[LayerHeader, SlotText]:
    """Return the header and the key slots of the layer at `path`.

    Raises NotAVaultError, FormatError or UnsupportedVersionError, which name it; OSError.
    """
    fd = open_file(path)
    try:
        with naming(path):
            header, text = read_header(fd), slotarea.read(fd).text
            check_size(fd, header)
    finally:
        os.close(fd)
    return header, text


def open_file(path: Path, access: int = os.O_RDONLY) -> int:
    """Return a descriptor of a file that may be a layer.  Raises NotAVaultError, OSError."""
    try:
        fd = os.open(path, access | _OPEN_FLAGS)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotAVaultError(f"{path} is not a sealed layer: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise NotAVaultError(f"{path} is not a sealed layer: it is not a regular file")
    return fd


@contextmanager
def naming(path: Path | str) -> Iterator[None]:
    """Say which layer an error is about, and what to do."""
    try:
        yield
    except NotAVaultError as error:
        raise NotAVaultError(f"{path} is not a sealed layer: {error}") from None
    except UnsupportedVersionError as error:
        raise UnsupportedVersionError(f"{path}: {error}") from None
    except (FormatError, IntegrityError) as error:
        raise type(error)(f"{path}: {error}; fetch it again or restore it from a backup") from None


def read_header(fd: int) -> LayerHeader:
    """Return the header; raises as `LayerHeader.parse` does, OSError."""
    return LayerHeader.parse(os.pread(fd, HEADER_SIZE, 0))


def lock(fd: int, path: Path) -> None:
    """Take the shared lock of those who use a layer; BusyError if it is being changed."""
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BusyError(
            f"layer {path} is being changed by another cisfs command; try again when it is done"
        ) from None


def check_size(fd: int, header: LayerHeader) -> None:
    """Raise FormatError if the file is not as long as the header says."""
    stored, right = os.fstat(fd).st_size, header.geometry.stored_size
    if stored < right:
        raise FormatError(f"cut off: it has {stored} bytes instead of {right}")
    if stored > right:
        raise FormatError(f"{stored - right} bytes were appended to it")
