"""How far a new sealed layer is, kept in the file itself so that another process can go on.

docs/FORMAT.md, section 14.  A record vouches for the hashes of the units that are done, and they
for the units; what no authentic record vouches for is not there.  Does not know what opens slots,
nor how units are encrypted.  One thread; `check` reads in several processes.
"""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace

from cisfs.crypto.hashes import HASH_SIZE, unit_hash
from cisfs.errors import FormatError
from cisfs.format.rotation import LAYER_RECORD_SIZE, LayerRecord
from cisfs.format.sealed_geometry import SLOTS_OFFSET, UNITS_OFFSET, LayerGeometry
from cisfs.layer.forked import share_out
from cisfs.layer.sealing import BATCH, batch_count
from cisfs.layer.writing import write_at


class Checkpoints:
    """The records in the file `fd`, of a layer that is made of the one with the identity `source`.

    `leaves` is level 0 of its tree, where whoever encrypts puts the hashes.
    """

    def __init__(self, fd: int, geometry: LayerGeometry, leaves: memoryview, source: str) -> None:
        self._fd = fd
        self._geometry = geometry
        self._leaves = leaves
        self._source = bytes.fromhex(source.removeprefix("sha256:"))
        self._places = (0, geometry.stored_size)
        self._record: LayerRecord
        self._mac: hmac.HMAC
        self._next: int  # where the next record goes: not where the last one is

    @property
    def size(self) -> int:
        """Bytes of the image, from its beginning, that are done."""
        return self._record.done

    def begin(self, layer_id: bytes, mac_key: bytes) -> None:
        """Begin with nothing done; the slots are there."""
        self._record = LayerRecord(layer_id, self._source, self._slots_hash(), 0)
        self._mac = hmac.new(mac_key, digestmod="sha256")
        self._next = 0

    def stored(self) -> list[LayerRecord]:
        """Return the records about this layer, the latest first; none is authentic yet."""
        found = []
        for place in (0, 1):
            with suppress(FormatError):
                found.append(LayerRecord.parse(self._read(place)))
        size = self._geometry.image_size
        about = [
            each
            for each in found
            if each.source == self._source
            and 0 < each.done <= size
            and (each.done == size or not each.done % BATCH)
        ]
        return sorted(about, key=lambda each: each.done, reverse=True)

    def take_up(self, record: LayerRecord, mac_key: bytes) -> bool:
        """Go on from a record and the hashes it is about, if they are authentic."""
        if record.slots != self._slots_hash():
            return False
        self._record = record
        self._mac = hmac.new(mac_key, digestmod="sha256")
        self._next = 1 if self._read(0) == record.pack() else 0
        end = self._leaves_end(record.done)
        if os.preadv(self._fd, [self._leaves[:end]], self._geometry.tree_offset) != end:
            return False
        self._mac.update(self._leaves[:end])
        return hmac.compare_digest(_mac_of(self._mac, record), record.mac)

    def check(self, workers: int | None) -> Generator[int, None, None]:
        """Read what is done, in pieces; yield the bytes in each, 0 if a unit is not as written."""
        written = _Written(self._fd, self._geometry, self._leaves, self.size)
        return share_out(batch_count(self.size), written.check, workers)

    def advance(self, done: int) -> None:
        """Have a record say that `done` bytes are done, when they are durable.  Raises OSError."""
        start, end = self._leaves_end(self.size), self._leaves_end(done)
        if start == end:
            return
        write_at(self._fd, self._leaves[start:end], self._geometry.tree_offset + start)
        os.fdatasync(self._fd)
        mac = self._mac.copy()
        mac.update(self._leaves[start:end])
        record = replace(self._record, done=done)
        record = replace(record, mac=_mac_of(mac, record))
        self._mac, self._record = mac, record
        self._write(self._next)
        self._next = 1 - self._next  # if the next one is torn, this one is there

    def leave_behind(self) -> None:
        """Have the last record where no header will be written over it.  Raises OSError."""
        self._write(1)
        os.fdatasync(self._fd)

    def _read(self, place: int) -> bytes:
        return os.pread(self._fd, LAYER_RECORD_SIZE, self._places[place])

    def _write(self, place: int) -> None:
        write_at(self._fd, self._record.pack(), self._places[place])

    def _leaves_end(self, done: int) -> int:
        """Where the hashes of the units in `done` bytes of the image end in the leaves."""
        return self._geometry.hash_offset(len(self._geometry.units_of(0, done))) if done else 0

    def _slots_hash(self) -> bytes:
        area = os.pread(self._fd, UNITS_OFFSET - SLOTS_OFFSET, SLOTS_OFFSET)
        return hashlib.sha256(area).digest()


@dataclass(frozen=True, slots=True)
class _Written:
    """Units that an earlier run wrote, and the authentic hashes that they must have."""

    fd: int
    geometry: LayerGeometry
    leaves: memoryview
    done: int

    def check(self, batches: Iterator[int]) -> Iterator[int]:
        """Read batch after batch; yields the bytes in each, 0 if a unit is not as written."""
        buffer = memoryview(bytearray(BATCH))
        for batch in batches:
            start = batch * BATCH
            cipher = buffer[: min(BATCH, self.done - start)]
            got = os.preadv(self.fd, [cipher], self.geometry.stored_offset(start))
            yield len(cipher) if got == len(cipher) and self._is_right(start, cipher) else 0

    def _is_right(self, start: int, cipher: memoryview) -> bool:
        at = 0
        for unit in self.geometry.units_of(start, len(cipher)):
            length, place = self.geometry.unit_length(unit), self.geometry.hash_offset(unit)
            if unit_hash(cipher[at : at + length]) != self.leaves[place : place + HASH_SIZE]:
                return False
            at += length
        return True


def _mac_of(of_leaves: hmac.HMAC, record: LayerRecord) -> bytes:
    mac = of_leaves.copy()
    mac.update(record.body())
    return mac.digest()
