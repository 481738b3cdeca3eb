"""A sealed layer without its key slots, as registries get it: read for an upload, and completed.

docs/FORMAT.md, section 15.  Nothing here takes a key.  A source belongs to one thread at a time.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from cisfs.crypto.hashes import unit_hash
from cisfs.errors import BusyError, IntegrityError, UsageError, WrongContentError
from cisfs.format.sealed import LayerHeader
from cisfs.format.sealed_geometry import HEADER_SIZE, SLOTS_OFFSET, UNITS_OFFSET
from cisfs.format.slotarea import AREAS_SIZE, SlotText
from cisfs.layer.hashtree import HashTree
from cisfs.layer.lazy import is_partial
from cisfs.layer.sealed_file import naming, open_file, read_locked
from cisfs.registry.artifacts import PushedLayer, part, part_size
from cisfs.registry.descriptor import Descriptor

_PIECE = 1 << 20


class BareSource:
    """The layer at a path, to be uploaded: what is between header and units is zeros.

    It is locked until it is closed, so nothing of it leaves the disk meanwhile.
    """

    def __init__(self, path: Path) -> None:
        """What is no sealed layer is never read.

        Raises UsageError for one that is not all here, what `open_file` and `read_locked` raise.
        """
        self._path = path
        self._fd = open_file(path)
        try:
            self.header, self.text = read_locked(self._fd, path)
            if is_partial(path):
                raise UsageError(f"{path} is here in part only: pull it first, with cisfs pull")
            if not os.path.samestat(os.stat(path), os.fstat(self._fd)):
                raise BusyError(f"{path} was replaced by another layer just now; try again")
        except BaseException:
            self.close()
            raise

    @property
    def size(self) -> int:
        """In bytes."""
        return self.header.geometry.stored_size

    def read(self, offset: int, size: int) -> bytes:
        """Return up to `size` bytes from `offset`, fewer only at the end."""
        data = bytearray(os.pread(self._fd, min(size, self.size - offset), offset))
        start, end = max(SLOTS_OFFSET - offset, 0), min(UNITS_OFFSET - offset, len(data))
        if start < end:
            data[start:end] = bytes(end - start)
        return bytes(data)

    def spans(self) -> list[range]:
        """Return where the parts are in which the layer travels, in bytes."""
        step = part_size(self.size)
        return [range(at, min(at + step, self.size)) for at in range(0, self.size, step)]

    def described(self) -> PushedLayer:
        """Return the layer as it is in a registry; reads all of it."""
        return PushedLayer(self.header.identity, tuple(map(self.part, self.spans())))

    def part(self, span: range) -> Descriptor:
        """Return the descriptor of a part, which is read for it.

        Raises IntegrityError for a unit in it that is not what the identity vouches for: whoever
        pulls would refuse all of the layer.
        """
        with naming(self._path):
            _check_units(self._fd, self.header, self._units(span))
        digest = hashlib.sha256()
        for offset in span[::_PIECE]:
            digest.update(self.read(offset, min(_PIECE, span.stop - offset)))
        return part(f"sha256:{digest.hexdigest()}", len(span), self.header.identity)

    def _units(self, span: range) -> range:
        """The units of which something is in a part."""
        start, stop = max(span.start - UNITS_OFFSET, 0), span.stop - UNITS_OFFSET
        size = min(stop, self.header.image_size) - start
        return self.header.geometry.units_of(start, size) if size > 0 else range(0)

    def close(self) -> None:
        """Close the file, and with it the lock."""
        os.close(self._fd)


def complete(fd: int, identity: str, text: SlotText) -> LayerHeader:
    """Give the bare layer at `fd` its key slots.

    All of it is read and held against the identity: the digests of its parts are those that were
    announced, by anybody.  Raises WrongContentError if it is not that layer, FormatError, OSError.
    """
    header = checked_header(os.pread(fd, HEADER_SIZE, 0), identity)
    if os.fstat(fd).st_size != header.geometry.stored_size:
        raise WrongContentError(f"the blob of {identity} has another size than its header says")
    if any(os.pread(fd, AREAS_SIZE, SLOTS_OFFSET)):
        raise WrongContentError(f"the blob of {identity} has key slots of its own")
    try:
        _check_units(fd, header, range(header.geometry.unit_count))
    except IntegrityError as error:
        raise WrongContentError(f"the blob of {identity} has another content: {error}") from None
    os.pwrite(fd, text.pack(), SLOTS_OFFSET)
    os.fsync(fd)
    return header


def _check_units(fd: int, header: LayerHeader, units: range) -> None:
    geometry = header.geometry
    tree = HashTree(fd, geometry, header.root)
    for unit in units:
        stored = os.pread(fd, geometry.unit_length(unit), geometry.unit_offset(unit))
        if unit_hash(stored) != tree.unit_hash(unit):
            raise IntegrityError(f"unit {unit} is wrong")


def checked_header(data: bytes, identity: str) -> LayerHeader:
    """Return the header of the layer of that identity.  Raises WrongContentError, FormatError."""
    if f"sha256:{hashlib.sha256(data).hexdigest()}" != identity:
        raise WrongContentError(f"what the registry sent is not the layer {identity}")
    return LayerHeader.parse(data)
