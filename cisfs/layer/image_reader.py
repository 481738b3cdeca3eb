"""The image of an opened sealed layer, read: checked, decrypted, and a few units of it kept.

docs/FORMAT.md, sections 8 and 11.  Does not know what is in the image, nor whose key it is.  A
reader belongs to one thread of one process.
"""

from __future__ import annotations

import errno
import os
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from cisfs.crypto.hashes import unit_hash
from cisfs.crypto.units import XtsCipher
from cisfs.errors import IntegrityError
from cisfs.format.sealed import LayerHeader
from cisfs.format.sealed_geometry import LayerGeometry
from cisfs.layer.hashtree import HashTree
from cisfs.layer.units import Buffers


class ReadLayer(Protocol):
    """What a reader has to know of the layer: its name for messages, and where it is stored."""

    path: Path
    fd: int
    header: LayerHeader
    geometry: LayerGeometry


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
        layer: ReadLayer,
        xts: XtsCipher,
        kept_units: int,
        before_waiting: Callable[[], None],
    ) -> None:
        """Read `layer` with its units cipher; see `SealedLayer.reader` for the rest."""
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
