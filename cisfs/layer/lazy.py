"""Layers of the local store that are not all here: made, found beside others, and read.

    STORE/sealed/sha256:HEX/layer.cis    the layer, with holes where data is missing
                            present      what is here (`cisfs.layer.presence`); gone when all is
                            source.json  where the rest is (`cisfs.layer.origin`); its time of
                                         modification is when the layer was last opened
                            fetch        the socket of whoever fetches it

The directory lets anyone pass who holds it open, as unprivileged processes do that ask for data;
STORE/sealed lets nobody but its owner pass.  Does not know who fetches or how.  Made before a fork,
a PartialLayer serves the processes forked afterwards.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cisfs.crypto.units import XtsCipher
from cisfs.errors import AbsentError, FormatError, IntegrityError, UntrustedError
from cisfs.format.presence import header_for
from cisfs.format.sealed import LayerHeader
from cisfs.format.sealed_geometry import HEADER_SIZE, SLOTS_OFFSET
from cisfs.format.slotarea import SlotText
from cisfs.layer import origin, presence
from cisfs.layer.filling import claim
from cisfs.layer.image_reader import ImageReader, ReadLayer
from cisfs.layer.origin import Origin
from cisfs.layer.presence import Presence
from cisfs.layer.pulled import LAYER, directory_of, is_stored
from cisfs.layer.writing import sync_directory

SOCKET = "fetch"
_MOST_BITS = 1 << 30  # of units and blocks: 64 TiB with units of 64 KiB, and 256 MiB of files here


@dataclass(frozen=True)
class PartialLayer:
    """What is known of a layer that is not all here; `fd` is of its directory."""

    directory: Path
    fd: int
    presence: Presence

    def close(self) -> None:
        """Close this process's descriptor.  Raises OSError."""
        os.close(self.fd)


def is_partial(path: Path) -> bool:
    """Tell whether the layer at `path` is one of our store of which something is missing."""
    return (
        is_stored(path)
        and _is_ours(path.parent)
        and not presence.says_complete(path.parent / presence.NAME)
    )


def find(path: Path, header: LayerHeader) -> PartialLayer | None:
    """Return what is known of an opened layer, None if it is all here.

    The caller holds its shared lock, so that nothing goes meanwhile.  Takes note that it was used.
    Raises FormatError, UntrustedError if something is missing and
    others could say where it is, OSError.
    """
    if not is_stored(path):
        return None
    if not _is_ours(path.parent):
        if os.path.lexists(path.parent / presence.NAME):
            raise UntrustedError(
                f"{path} is not all here, and others can write to its directory: pull it anew"
            )
        return None
    with contextlib.suppress(OSError):  # it may be on a disk that is only read
        os.utime(path.parent / origin.NAME)
    try:
        fd = os.open(path.parent / presence.NAME, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        found = Presence(fd)
    except FormatError as error:
        raise FormatError(f"{path.parent / presence.NAME}: {error}; pull the layer again") from None
    finally:
        os.close(fd)
    if found.header.bits != header_for(header.identity, header.geometry).bits:
        raise FormatError(f"{path.parent / presence.NAME} is of another layer; pull it again")
    if found.is_complete:
        for name in (SOCKET, presence.NAME):
            with contextlib.suppress(OSError):  # that it is there says no more than that it may go
                (path.parent / name).unlink()
        return None
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    return PartialLayer(path.parent.absolute(), os.open(path.parent, flags), found)


def presence_of(path: Path, header: LayerHeader) -> Presence | None:
    """Return only what is here of a layer, None if all of it is.  Raises as `find` does."""
    found = find(path, header)
    if found is None:
        return None
    found.close()
    return found.presence


def units_here(path: Path) -> tuple[int, int] | None:
    """Return how many units of the layer at `path` are here, and of how many; None if it is whole.

    Raises FormatError and others as `LayerHeader.parse` does, OSError.
    """
    if not is_partial(path):
        return None
    with path.open("rb", buffering=0) as file:
        fcntl.flock(file, fcntl.LOCK_SH)  # or what `find` takes away could be wanted again by then
        header = LayerHeader.parse(file.read(HEADER_SIZE))
        found = presence_of(path, header)
    count = header.geometry.unit_count
    return (found.count(range(count)), count) if found is not None else None


def create(store: Path, header: bytes, slots: SlotText, source: Origin) -> Path:
    """Make a layer of which nothing but `header` and `slots` is here; return its path.

    `header` is the start of the stored file, 4096 bytes.  One that is there already is left as it
    is.  Appears whole or not at all.  Raises FormatError and others as `LayerHeader.parse` does,
    FormatError for one that is too large, BusyError while another makes it, OSError.
    """
    parsed = LayerHeader.parse(header[:HEADER_SIZE])
    if header_for(parsed.identity, parsed.geometry).bits > _MOST_BITS:
        raise FormatError(f"a layer of {parsed.image_size} bytes is too large to be read lazily")
    directory = directory_of(store, parsed.identity)
    if (directory / LAYER).exists():
        return directory / LAYER
    directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = directory.parent / f".{secrets.token_hex(8)}"
    new.mkdir(mode=0o711)
    new.chmod(0o711)
    try:
        _write(new / LAYER, {0: header[:HEADER_SIZE], SLOTS_OFFSET: slots.pack()}, parsed)
        _write(new / origin.NAME, {0: source.pack()})
        write_presence(new / presence.NAME, parsed)
        sync_directory(new)
        _rename(new, directory)
    finally:
        shutil.rmtree(new, ignore_errors=True)
    sync_directory(directory.parent)
    return directory / LAYER


def _rename(source: Path, target: Path) -> None:
    try:
        source.rename(target)
    except OSError:
        if not target.exists():
            raise
        claimed = claim(target)  # or else what a pull puts there would be replaced
        try:
            if not (target / LAYER).exists():  # else another was faster, and its own is as good
                # A pull was here, or is: the layer goes last, by which all this is found.
                for name in (presence.NAME, origin.NAME, LAYER):
                    (source / name).rename(target / name)
                sync_directory(target)
        finally:
            os.close(claimed)


def _write(path: Path, pieces: dict[int, bytes], layer: LayerHeader | None = None) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        if layer is not None:
            os.ftruncate(fd, layer.geometry.stored_size)
        for offset, data in pieces.items():
            os.pwrite(fd, data, offset)
        os.fsync(fd)
    finally:
        os.close(fd)


def write_presence(path: Path, layer: LayerHeader, *, full: bool = False) -> None:
    """Make a file that says that nothing of a layer is here, or all of it.  Raises OSError."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        presence.create(fd, header_for(layer.identity, layer.geometry), full=full)
    finally:
        os.close(fd)


def _is_ours(directory: Path) -> bool:
    """Tell whether nobody else can put files, or links, where a fetcher works with our rights."""
    try:
        found = [each.stat() for each in (directory, directory.parent)]
    except OSError:
        return False
    return all(
        each.st_uid == os.geteuid() and not each.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        for each in found
    )


class LazyReader(ImageReader):
    """Reads the image of a layer that is not all here."""

    __slots__ = ("_presence",)

    def __init__(
        self,
        layer: ReadLayer,
        xts: XtsCipher,
        kept_units: int,
        before_waiting: Callable[[], None],
        found: Presence,
    ) -> None:
        """Believe `found` on what is here; see `ImageReader` for the rest."""
        super().__init__(layer, xts, kept_units, before_waiting)
        self._presence = found

    def read(self, offset: int, size: int) -> memoryview:
        """Return what `ImageReader.read` does.

        Raises AbsentError, and returns nothing, if any of it is missing, or `doubtful` where what
        is here is not what it should be: it may be fetched again.
        """
        size = min(size, self._geometry.image_size - offset)
        if offset < 0 or size <= 0:
            return super().read(offset, size)
        units = self._geometry.units_of(offset, size)
        if not self._presence.has_all(units):
            raise self._absent(units, "not been fetched yet")
        try:
            return super().read(offset, size)
        except IntegrityError:
            if self._presence.is_complete:
                raise
            raise self._absent(units, "been damaged here", doubtful=True) from None

    def _absent(self, units: range, words: str, *, doubtful: bool = False) -> AbsentError:
        which = f"units {units[0]} to {units[-1]}" if len(units) > 1 else f"unit {units[0]}"
        return AbsentError(f"{self._path}: {which} has {words}", units, doubtful=doubtful)
