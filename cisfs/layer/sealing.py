"""Sealing: an image becomes a sealed layer, encrypted by several processes at once.

docs/FORMAT.md, sections 8 to 11.  Does not know what is in the image (`cisfs.build`).  Hashes are
made of the very memory that was encrypted, and what was written is never read again, so whoever
else can write to the storage cannot slip anything in.  One call at a time in a process.
"""

from __future__ import annotations

import errno
import mmap
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from hmac import digest as hmac_digest
from pathlib import Path
from typing import Protocol

from cisfs.crypto.hashes import HASH_SIZE, unit_hash
from cisfs.crypto.keys import ID_SIZE, LayerKeys, SecretKey
from cisfs.crypto.units import XtsCipher
from cisfs.format.sealed import LayerHeader
from cisfs.format.sealed_geometry import SLOTS_OFFSET, LayerGeometry, whole_blocks
from cisfs.format.slotarea import SlotText
from cisfs.keys.credentials import Recipients
from cisfs.keys.slots import new_slots
from cisfs.layer.fallocate import allocate
from cisfs.layer.forked import share_out
from cisfs.layer.hashtree import build_tree
from cisfs.layer.sealed import slots_mac
from cisfs.layer.wholefile import whole_file

DEFAULT_UNIT_SIZE = 64 * 1024
BATCH = 1 << 20  # bytes of whole units that a worker takes at a time; more leave the CPU's cache


class Image(Protocol):
    """What can be sealed: `size` bytes, of which forked processes can make any part at any time."""

    @property
    def size(self) -> int:
        """Bytes in the image."""

    def read_into(self, offset: int, out: memoryview) -> None:
        """Fill `out` with what the image has from `offset` on.  Raises CisfsError, OSError."""


@dataclass(frozen=True, slots=True)
class StoredImage:
    """The first `size` bytes of what a descriptor refers to."""

    fd: int
    size: int

    def read_into(self, offset: int, out: memoryview) -> None:
        """Fill `out`; OSError if there is less than was said."""
        while out:
            got = os.preadv(self.fd, [out], offset)
            if not got:
                raise OSError(errno.EIO, f"the image ends at {offset} bytes, before its size")
            out, offset = out[got:], offset + got


def seal_image(
    image: Image,
    output: Path,
    recipients: Recipients,
    *,
    unit_size: int = DEFAULT_UNIT_SIZE,
    workers: int | None = None,
    force: bool = False,
    progress: Callable[[int], None] | None = None,
) -> str:
    """Seal `image`, and return the identity.

    The layer appears at `output` whole or not at all, and each of `recipients` opens it.  `image`
    is read in `workers` processes (default: one for each CPU we may use); `progress` is told how
    many bytes are done.  Raises ValueError for a size that cannot be (see `LayerGeometry`),
    UsageError if there is something at `output` and not `force`, what reading the image raises,
    OSError.
    """
    geometry = LayerGeometry(unit_size, image.size)
    with whole_file(output, replace=force) as fd:
        layer_key, layer_id = SecretKey.generate(), secrets.token_bytes(ID_SIZE)
        keys = LayerKeys.derive(layer_key, layer_id)
        text = SlotText(tuple(new_slots(layer_key, recipients, layer_id)))
        slots = replace(text, mac=slots_mac(text, keys)).pack()
        allocate(fd, geometry.stored_size)
        leaves = memoryview(mmap.mmap(-1, whole_blocks(geometry.hash_offset(geometry.unit_count))))
        _seal_units(_Sealing(image, fd, geometry, XtsCipher(keys.units), leaves), workers, progress)
        root = _write_tree(fd, geometry, leaves)
        header = LayerHeader(unit_size, image.size, layer_id, root)
        header = replace(header, mac=hmac_digest(keys.header_mac, header.body(), "sha256"))
        _write(fd, slots, SLOTS_OFFSET)
        _write(fd, header.pack(), 0)
    return header.identity


@dataclass(frozen=True, slots=True)
class _Sealing:
    """What every worker gets: image, output, cipher, and level 0 of the tree to fill in."""

    image: Image
    fd: int
    geometry: LayerGeometry
    xts: XtsCipher
    leaves: memoryview  # shared by all

    def seal(self, batches: Iterator[int]) -> Iterator[int]:
        """Seal batch after batch; yields how many bytes of the image each one was."""
        geometry, xts = self.geometry, self.xts
        plain, cipher = memoryview(bytearray(BATCH)), memoryview(bytearray(BATCH))
        for batch in batches:
            start = batch * BATCH
            size = min(BATCH, geometry.image_size - start)
            self.image.read_into(start, plain[:size])
            at = 0
            for unit in geometry.units_of(start, size):
                length = geometry.unit_length(unit)
                xts.encrypt_into(unit, plain[at : at + length], cipher[at:])
                place = geometry.hash_offset(unit)
                self.leaves[place : place + HASH_SIZE] = unit_hash(cipher[at : at + length])
                at += length
            _write(self.fd, cipher[:size], geometry.stored_offset(start))
            yield size


def _seal_units(
    sealing: _Sealing, workers: int | None, progress: Callable[[int], None] | None
) -> None:
    batches, done = -(-sealing.geometry.image_size // BATCH), 0
    with closing(share_out(batches, sealing.seal, workers)) as sizes:
        for size in sizes:
            done += size
            if progress is not None:
                progress(done)


def _write_tree(fd: int, geometry: LayerGeometry, leaves: memoryview) -> bytes:
    """Write the hash tree; returns its root."""
    levels, root = build_tree(leaves)
    offset: int = geometry.tree_offset
    for level in levels:
        _write(fd, level, offset)
        offset += len(level)
    return root


def _write(fd: int, data: bytes | memoryview, offset: int) -> None:
    """Write all of `data`; a short write is the full disk's way of saying ENOSPC."""
    rest = memoryview(data)
    while rest:
        written = os.pwrite(fd, rest, offset)
        if not written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        rest, offset = rest[written:], offset + written
