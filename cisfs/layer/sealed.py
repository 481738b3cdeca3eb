"""A sealed layer on disk: opening one with a key, and reading its image.

docs/FORMAT.md, sections 8 to 11.  Does not know what is in the image, nor FUSE.  An opened layer
survives fork and holds a shared lock, which goes with the last copy.  A reader belongs to one
thread of one process: make it after the fork.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hmac import compare_digest
from hmac import digest as hmac_digest
from pathlib import Path
from typing import Self

from cisfs.crypto.hashes import unit_hash
from cisfs.crypto.keys import LayerKeys, SecretKey
from cisfs.crypto.units import XtsCipher
from cisfs.errors import (
    BusyError,
    FormatError,
    IntegrityError,
    NotAVaultError,
    UnsupportedVersionError,
)
from cisfs.format import sealed as form
from cisfs.format.config import SlotFields
from cisfs.format.sealed import LayerHeader
from cisfs.format.sealed_geometry import (
    HEADER_SIZE,
    RESERVED_SIZE,
    SLOTS_OFFSET,
    SLOTS_SIZE,
)
from cisfs.keys.credentials import Opener
from cisfs.keys.slots import describe_slots, open_slots, unauthentic
from cisfs.layer.hashtree import HashTree
from cisfs.layer.units import Buffers

KEPT_UNITS = 32  # 2 MiB for each reader, with units of 64 KiB

_OPEN_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # a FIFO must not make us wait for ever


def describe(path: Path) -> dict[str, object]:
    """Return what a sealed layer says to anyone, for `inspect`; nothing is authenticated.

    Raises NotAVaultError, FormatError or UnsupportedVersionError, OSError.
    """
    header, slots = _stored(path)
    return {
        "type": "sealed layer",
        "path": str(path),
        "version": form.VERSION,
        "layer_id": header.layer_id.hex(),
        "identity": header.identity,
        "content": "EROFS",
        "cipher": "AES-256-XTS",
        "hashes": "BLAKE3, 256 bits per unit",
        "unit_size": header.unit_size,
        "image_size": header.image_size,
        "stored_size": header.geometry.stored_size,
        "slots": describe_slots(slots),
    }


def identifier(path: Path) -> bytes:
    """Return the 16-byte id of the layer at `path`; nothing is authenticated.

    Raises as `describe` does.
    """
    return _stored(path)[0].layer_id


def master_key(path: Path, opener: Opener) -> SecretKey:
    """Return the layer key of the layer at `path`.  Raises as `SealedLayer.open` does.

    Opened layers do not hold it: their workers have no use for it.
    """
    header, slots = _stored(path)
    with _naming(path):
        master = open_slots(slots, opener, header.layer_id)
        _authentic_keys(path, header, master, opener)
    return master


class SealedLayer:
    """An opened layer: its header, its keys, its descriptor with the lock."""

    def __init__(self, path: Path, fd: int, header: LayerHeader, keys: LayerKeys) -> None:
        """Used by `open` only."""
        self.path = path
        self.fd = fd
        self.header = header
        self.geometry = header.geometry
        self.identity = header.identity
        self._keys = keys

    @classmethod
    def open(cls, path: Path, credential: Opener | Callable[[], Opener]) -> Self:
        """Open the layer at `path`, locked against changes; of the image nothing is read yet.

        `credential` may be a function, called only when the layer is there and as it should be.
        Raises NotAVaultError, FormatError, UnsupportedVersionError, BusyError, WrongKeyError,
        IntegrityError, OSError.
        """
        fd = _open_file(path)
        try:
            with _naming(path):
                header = _read_header(fd)
                _lock(fd, path)
                slots = _read_slots(fd)
                _check_size(fd, header)
            offered = credential() if callable(credential) else credential
            with _naming(path):
                master = open_slots(slots, offered, header.layer_id)
                keys = _authentic_keys(path, header, master, offered)
        except BaseException:
            os.close(fd)
            raise
        return cls(path.absolute(), fd, header, keys)

    @property
    def image_size(self) -> int:
        """Bytes in the image."""
        return self.header.image_size

    def scratch_key(self) -> SecretKey:
        """Return the key of persistent scratches made for this layer's containers."""
        return self._keys.scratch

    def reader(
        self,
        *,
        kept_units: int = KEPT_UNITS,
        before_waiting: Callable[[], None] = lambda: None,
    ) -> ImageReader:
        """Return a new reader of the image, for this process; at most `kept_units` stay decrypted.

        It reads from the layer's descriptor, which stays open meanwhile, and calls `before_waiting`
        each time before it waits for data that is not in memory.
        """
        return ImageReader(self, XtsCipher(self._keys.units), kept_units, before_waiting)

    def close(self) -> None:
        """Close this process's descriptor; the lock goes with the last copy.  Raises OSError."""
        os.close(self.fd)

    def abandon(self) -> None:
        """Close this process's copy of a layer that a forked process serves on."""
        self.close()


class ImageReader:
    """Reads, checks and decrypts the image of a layer."""

    __slots__ = (
        "_before_waiting",
        "_buffers",
        "_fd",
        "_geometry",
        "_kept",
        "_path",
        "_tree",
        "_xts",
    )

    def __init__(
        self,
        layer: SealedLayer,
        xts: XtsCipher,
        kept_units: int,
        before_waiting: Callable[[], None],
    ) -> None:
        """Used by `SealedLayer.reader` only."""
        self._path = layer.path
        self._fd = layer.fd
        self._geometry = layer.geometry
        self._tree = HashTree(layer.fd, layer.geometry, layer.header.root)
        self._xts = xts
        self._before_waiting = before_waiting
        self._buffers = Buffers()
        self._kept = _KeptUnits(kept_units)

    def read(self, offset: int, size: int) -> memoryview:
        """Return up to `size` bytes of the image from `offset`, fewer only at its end.

        The view is valid until the next call; the range takes twice its size in memory, from then
        on.  Raises IntegrityError, naming the unit, before a byte of an altered unit is decrypted,
        and then returns nothing of the others; OSError.
        """
        geometry = self._geometry
        if offset < 0:
            raise ValueError(f"image offset {offset}")
        size = min(size, geometry.image_size - offset)
        if size <= 0:
            return memoryview(b"")
        units, skip = geometry.units_of(offset, size), geometry.within_unit(offset)
        plain = self._kept.find(units[0]) if len(units) == 1 else None
        if plain is None:
            try:
                plain = self._load(units)
            except IntegrityError as error:
                raise IntegrityError(f"{self._path}: {error}") from None
            if skip:
                self._keep(units[0], units, plain)
            if offset + size < geometry.unit_end(units[-1]):
                self._keep(units[-1], units, plain)
        return plain[skip : skip + size]

    def _load(self, units: range) -> memoryview:
        """Return whole units, decrypted; those at the edges may be among the kept ones."""
        geometry = self._geometry
        self._buffers.reserve(len(units) * geometry.unit_size)
        plain = self._buffers.plain
        base = geometry.unit_start(units[0])
        missing = units
        for edge in (units[0], units[-1]):
            kept = self._kept.find(edge)
            if kept is not None:
                at = geometry.unit_start(edge) - base
                plain[at : at + len(kept)] = kept
                missing = missing[1:] if edge == units[0] else missing[:-1]
        if missing:
            self._decrypt(missing, plain[geometry.unit_start(missing[0]) - base :])
        return plain

    def _decrypt(self, units: range, plain: memoryview) -> None:
        """Read units in one system call, check and decrypt each, one after the other in `plain`."""
        geometry, tree, xts = self._geometry, self._tree, self._xts
        base, end = geometry.unit_start(units[0]), geometry.unit_end(units[-1])
        cipher = self._buffers.cipher[: end - base]
        got = self._fetch(cipher, geometry.unit_offset(units[0]))
        at = 0
        for unit in units:
            length = geometry.unit_length(unit)
            if at + length > got:
                raise IntegrityError(f"unit {unit} was cut off{self._place(unit)}")
            body = cipher[at : at + length]
            if unit_hash(body) != tree.unit_hash(unit):
                raise IntegrityError(f"unit {unit} was altered{self._place(unit)}")
            xts.decrypt_into(unit, body, plain[at:])
            at += length

    def _fetch(self, cipher: memoryview, offset: int) -> int:
        """Read into all of `cipher`; returns how many bytes there are, fewer only past the end."""
        try:
            if os.preadv(self._fd, [cipher], offset, os.RWF_NOWAIT) == len(cipher):
                return len(cipher)
        except OSError as error:
            # It is not in memory; or the file system cannot tell.
            if error.errno not in (errno.EAGAIN, errno.EOPNOTSUPP):
                raise
        self._before_waiting()
        return os.preadv(self._fd, [cipher], offset)

    def _place(self, unit: int) -> str:
        start, end = self._geometry.unit_start(unit), self._geometry.unit_end(unit)
        return f" (image bytes {start} to {end - 1})"

    def _keep(self, unit: int, units: range, plain: memoryview) -> None:
        """Keep one of the `units` that `plain` holds."""
        at = self._geometry.unit_start(unit) - self._geometry.unit_start(units[0])
        self._kept.keep(unit, plain[at : at + self._geometry.unit_length(unit)])


class _KeptUnits:
    """A few decrypted units, the ones used last; their buffers are used again and again."""

    __slots__ = ("_most", "_units")

    def __init__(self, most: int) -> None:
        self._most = most
        self._units: OrderedDict[int, memoryview] = OrderedDict()

    def find(self, unit: int) -> memoryview | None:
        """Return a kept unit; the view is valid until the next `keep`."""
        plain = self._units.get(unit)
        if plain is not None:
            self._units.move_to_end(unit)
        return plain

    def keep(self, unit: int, plain: memoryview) -> None:
        """Copy a unit; the one that was not asked for the longest makes room for it."""
        if unit in self._units or self._most == 0:
            return
        if len(self._units) < self._most:
            self._units[unit] = memoryview(bytearray(plain))
            return
        _, buffer = self._units.popitem(last=False)
        if len(buffer) != len(plain):  # only an image's last unit has a length of its own
            buffer = memoryview(bytearray(len(plain)))
        buffer[:] = plain
        self._units[unit] = buffer


def _open_file(path: Path) -> int:
    try:
        fd = os.open(path, _OPEN_FLAGS)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise NotAVaultError(f"{path} is not a sealed layer: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise NotAVaultError(f"{path} is not a sealed layer: it is not a regular file")
    return fd


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Say which layer an error is about, and what to do."""
    try:
        yield
    except NotAVaultError as error:
        raise NotAVaultError(f"{path} is not a sealed layer: {error}") from None
    except UnsupportedVersionError as error:
        raise UnsupportedVersionError(f"{path}: {error}") from None
    except (FormatError, IntegrityError) as error:
        raise type(error)(f"{path}: {error}; fetch it again or restore it from a backup") from None


def _stored(path: Path) -> tuple[LayerHeader, tuple[SlotFields, ...]]:
    fd = _open_file(path)
    try:
        with _naming(path):
            header, slots = _read_header(fd), _read_slots(fd)
            _check_size(fd, header)
    finally:
        os.close(fd)
    return header, slots


def _read_header(fd: int) -> LayerHeader:
    return LayerHeader.parse(os.pread(fd, HEADER_SIZE, 0))


def _lock(fd: int, path: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BusyError(
            f"layer {path} is being changed by another cisfs command; try again when it is done"
        ) from None


def _read_slots(fd: int) -> tuple[SlotFields, ...]:
    data = os.pread(fd, SLOTS_SIZE + RESERVED_SIZE, SLOTS_OFFSET)
    slots = form.parse_layer_slots(data[:SLOTS_SIZE])
    form.check_reserved(data[SLOTS_SIZE:])
    return slots


def _check_size(fd: int, header: LayerHeader) -> None:
    stored, right = os.fstat(fd).st_size, header.geometry.stored_size
    if stored < right:
        raise FormatError(f"cut off: it has {stored} bytes instead of {right}")
    if stored > right:
        raise FormatError(f"{stored - right} bytes were appended to it")


def _authentic_keys(
    path: Path, header: LayerHeader, master: SecretKey, opener: Opener
) -> LayerKeys:
    """Return the keys made of the one that `opener` gave, under which the header is authentic."""
    keys = LayerKeys.derive(master, header.layer_id)
    if not compare_digest(hmac_digest(keys.header_mac, header.body(), "sha256"), header.mac):
        raise unauthentic(opener, path, "its header was altered by someone without the key")
    return keys
