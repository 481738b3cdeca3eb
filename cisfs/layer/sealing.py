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
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from hmac import digest as hmac_digest
from pathlib import Path
from typing import Protocol

from cisfs.crypto.hashes import HASH_SIZE, unit_hash
from cisfs.crypto.keys import ID_SIZE, LayerKeys, SecretKey
from cisfs.crypto.signatures import SigningKey
from cisfs.crypto.units import XtsCipher
from cisfs.format.sealed import UNBOUND, LayerHeader
from cisfs.format.sealed_geometry import SLOTS_OFFSET, LayerGeometry, whole_blocks
from cisfs.format.slotarea import SlotText
from cisfs.keys.credentials import Recipients
from cisfs.keys.signing import signature_of
from cisfs.keys.slots import new_slots
from cisfs.layer.fallocate import allocate
from cisfs.layer.forked import share_out
from cisfs.layer.hashtree import build_tree
from cisfs.layer.sealed import slots_mac
from cisfs.layer.slotarea import packed
from cisfs.layer.wholefile import whole_file
from cisfs.layer.writing import write_at

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
    signing_key: SigningKey | None = None,
    progress: Callable[[int], None] | None = None,
    base: bytes = UNBOUND,
) -> str:
    """Seal `image`, and return the identity.

    The layer appears at `output` whole or not at all, each of `recipients` opens it, and with a
    `signing_key` it is signed.  `image` is read in `workers` processes (default: one for each CPU
    we may use); `progress` is told how many bytes are done.  `base` binds it to the layers below
    (`cisfs.format.sealed.base_of`).  Raises ValueError for a size that cannot be (see
    `LayerGeometry`), UsageError if there is something at `output` and not `force`, what
    `packed_slots` and reading the image raise, OSError.
    """
    geometry = LayerGeometry(unit_size, image.size)
    with whole_file(output, replace=force) as fd:
        layer_key, layer_id = SecretKey.generate(), secrets.token_bytes(ID_SIZE)
        keys = LayerKeys.derive(layer_key, layer_id)
        slots = packed_slots(layer_key, layer_id, recipients)
        allocate(fd, geometry.stored_size)
        sealing = Sealing(image, fd, geometry, XtsCipher(keys.units), empty_leaves(geometry))
        done = 0
        with closing(sealing.run(workers)) as batches:
            for batch in batches:
                done += sealing.batch_size(batch)
                if progress is not None:
                    progress(done)
        identity = sealing.finish(keys, layer_id, base).identity
        if signing_key is not None:
            text = SlotText.parse(slots)
            slots = packed(replace(text, signatures=(signature_of(signing_key, identity),)))
        write_at(fd, slots, SLOTS_OFFSET)
        return identity


def packed_slots(layer_key: SecretKey, layer_id: bytes, recipients: Recipients) -> bytes:
    """Return the bytes of key slots for `recipients`.

    Raises ValueError for none, UsageError for too many, CisfsError when a device or service fails.
    """
    text = SlotText(tuple(new_slots(layer_key, recipients, layer_id)))
    mac = slots_mac(text, LayerKeys.derive(layer_key, layer_id))
    return packed(replace(text, mac=mac))


def empty_leaves(geometry: LayerGeometry) -> memoryview:
    """Return level 0 of a layer's tree, all zeros, in memory that forked processes share."""
    return memoryview(mmap.mmap(-1, whole_blocks(geometry.hash_offset(geometry.unit_count))))


@dataclass(frozen=True, slots=True)
class Sealing:
    """What every worker gets: image, output, cipher, and level 0 of the tree to fill in."""

    image: Image
    fd: int
    geometry: LayerGeometry
    xts: XtsCipher
    leaves: memoryview  # shared by all

    def run(self, workers: int | None, first: int = 0) -> Generator[int, None, None]:
        """Seal the batches from `first` on in several processes; yield each one's number when done.

        They come in about their order.  Raises what reading the image raises, OSError.
        """
        rest = batch_count(self.geometry.image_size) - first
        return share_out(rest, lambda pieces: self._seal(first + each for each in pieces), workers)

    def batch_size(self, batch: int) -> int:
        """Bytes of the image in a batch; only the last may have fewer than BATCH."""
        return min(BATCH, self.geometry.image_size - batch * BATCH)

    def finish(self, keys: LayerKeys, layer_id: bytes, base: bytes = UNBOUND) -> LayerHeader:
        """Write the tree above the leaves, which are all there, and the header; return that."""
        levels, root = build_tree(self.leaves)
        offset: int = self.geometry.tree_offset
        for level in levels:
            write_at(self.fd, level, offset)
            offset += len(level)
        sizes = (self.geometry.unit_size, self.geometry.image_size)
        header = LayerHeader(*sizes, layer_id, root, base=base)
        header = replace(header, mac=hmac_digest(keys.header_mac, header.body(), "sha256"))
        write_at(self.fd, header.pack(), 0)
        return header

    def _seal(self, batches: Iterator[int]) -> Iterator[int]:
        """Seal batch after batch; yields their numbers."""
        geometry, xts = self.geometry, self.xts
        plain, cipher = memoryview(bytearray(BATCH)), memoryview(bytearray(BATCH))
        for batch in batches:
            start, size = batch * BATCH, self.batch_size(batch)
            self.image.read_into(start, plain[:size])
            at = 0
            for unit in geometry.units_of(start, size):
                length = geometry.unit_length(unit)
                xts.encrypt_into(unit, plain[at : at + length], cipher[at:])
                place = geometry.hash_offset(unit)
                self.leaves[place : place + HASH_SIZE] = unit_hash(cipher[at : at + length])
                at += length
            write_at(self.fd, cipher[:size], geometry.stored_offset(start))
            yield batch


def batch_count(size: int) -> int:
    """How many batches `size` bytes of an image are."""
    return -(-size // BATCH)
