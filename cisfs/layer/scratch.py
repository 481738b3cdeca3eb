"""The ephemeral writable layer of a container: a block image that nothing is left of.

It is a file without a name, encrypted under a key that is drawn here and never leaves the process
(docs/FORMAT.md, section 12).  What vouches for the ciphertext is in memory too: each unit's tag and
its version, a number that grows with every unit that is written.  So neither an altered nor an
earlier state of the file passes.  When the process ends, the disk holds noise.

Does not know file systems or FUSE.  One thread; a forked process may take the image over.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

from cisfs.crypto.units import VersionedCipher
from cisfs.errors import IntegrityError
from cisfs.format import scratch_geometry as geometry
from cisfs.layer.fallocate import punch
from cisfs.layer.nameless import nameless
from cisfs.layer.scratch_records import Records, Written

_PIECE = 1 << 20  # bytes that are encrypted and written in one go
_BUFFER = _PIECE + 2 * geometry.MAX_UNIT_SIZE
_DIRECT = 256 << 10  # bytes
_MOST_EMPTY = 4096
_ZEROS = memoryview(bytes(_BUFFER))


class EphemeralImage:
    """One such image (`BlockImage`); `size` in bytes."""

    durable = False

    def __init__(self, directory: Path, size: int) -> None:
        """Make one of at least `size` bytes on the file system of `directory`.

        It takes no space before it is written.  Raises OSError.
        """
        self.size = geometry.whole_units(size)
        self._fd = nameless(directory)
        os.ftruncate(self._fd, self.size)
        self._direct = _reopened(self._fd)
        key = bytearray(VersionedCipher.KEY_SIZE)
        _draw(key)
        self._cipher: VersionedCipher | None = VersionedCipher(key)
        self._records = Records(geometry.covered(0, self.size)[1])
        self._version = 0
        self._empty: list[tuple[int, int]] = []  # blocks whose space is to be given back
        self._stored = memoryview(mmap.mmap(-1, _BUFFER))  # aligned, as O_DIRECT wants it
        self._plain = memoryview(bytearray(_BUFFER))

    def descriptors(self) -> set[int]:
        """The backing file's."""
        return {self._fd, self._direct}

    # -- reading ---------------------------------------------------------------------------

    def read(self, offset: int, size: int) -> memoryview:
        """Return bytes; a unit is checked before a byte of it is decrypted.

        The view is valid until the next call.  Raises IntegrityError, OSError.
        """
        size = min(size, self.size - offset)
        if size > _PIECE:
            pieces = range(offset, offset + size, _PIECE)
            return memoryview(
                b"".join(self.read(at, min(_PIECE, offset + size - at)) for at in pieces)
            )
        if size <= 0:
            return _ZEROS[:0]
        first, end = geometry.touched(offset, size)
        skip = geometry.within_block(offset)
        return self._load(first, end)[skip : skip + size]

    def _load(self, first: int, end: int) -> memoryview:
        """Return the decrypted blocks from `first` to `end` or somewhat further."""
        cipher = self._alive()
        written = self._records.written(first, end)
        if not written:
            return _ZEROS
        low = min(first, written[0].unit.block)
        stored = self._fetch(written[0].unit.block, written[-1].unit.end)
        source, target = -geometry.offset_of(written[0].unit.block), -geometry.offset_of(low)
        at = low
        for each in written:
            unit, version, tag, blank = each
            self._blank(low, at, unit.block)
            start, stop = geometry.offset_of(unit.block), geometry.offset_of(unit.end)
            body = stored[source + start : source + stop]
            if not cipher.verify(unit.block, version, body, tag):
                raise IntegrityError(f"block {unit.block} of the scratch was altered")
            cipher.decrypt_into(
                unit.block, body, self._plain[target + start : target + stop], version
            )
            if blank:
                for block in each.blank_blocks():
                    self._blank(low, block, block + 1)
            at = unit.end
        self._blank(low, at, end)
        return self._plain[geometry.length(low, first) :]

    def _blank(self, low: int, first: int, end: int) -> None:
        """Put zeros where the blocks [first, end) belong, in a buffer that begins at `low`."""
        if first < end:
            start, stop = geometry.length(low, first), geometry.length(low, end)
            self._plain[start:stop] = _ZEROS[: stop - start]

    def _fetch(self, first: int, end: int) -> memoryview:
        """Return the stored blocks [first, end), read in one go."""
        stored = self._stored[: geometry.length(first, end)]
        if os.preadv(self._fd, [stored], geometry.offset_of(first)) != len(stored):
            raise IntegrityError(f"the file of the scratch was cut off after block {first}")
        return stored

    def _alive(self) -> VersionedCipher:
        if self._cipher is None:
            raise OSError(errno.ESHUTDOWN, "the scratch was destroyed")
        return self._cipher

    # -- writing ---------------------------------------------------------------------------

    def write(self, offset: int, data: memoryview) -> None:
        """Write all of `data`.  Raises IntegrityError if a unit that changes in part was altered.

        An OSError, as for want of space, leaves what was there, or some of the new content from
        its beginning on.
        """
        for at in range(0, len(data), _PIECE):
            self._write_piece(offset + at, data[at : at + _PIECE])

    def _write_piece(self, offset: int, data: memoryview) -> None:
        if self._cipher is None:
            return
        first, end = geometry.touched(offset, len(data))
        if geometry.length(first, end) != len(data):
            blocks = bytearray(self._load(first, end)[: geometry.length(first, end)])
            skip = geometry.within_block(offset)
            blocks[skip : skip + len(data)] = data
            data = memoryview(blocks)
        self._store(first, end, data)

    def _store(self, first: int, end: int, data: memoryview) -> None:
        """Write whole blocks; a unit that they are a part of is divided, and the rest kept."""
        parts = [(first, end, data)]
        before, after = self._records.divided(first), self._records.divided(end)
        if before is not None:
            parts.insert(0, (before.block, first, self._copy(before.block, first)))
        if after is not None:
            parts.append((end, after.end, self._copy(end, after.end)))
        self._put(parts)

    def _copy(self, first: int, end: int) -> memoryview:
        return memoryview(bytes(self._load(first, end)[: geometry.length(first, end)]))

    def _put(self, parts: list[tuple[int, int, memoryview]], *, again: bool = False) -> None:
        """Encrypt neighbouring parts, write them in one go, and then remember them.

        `again`: they have their space, so they are not to be cut short.
        """
        low, high = parts[0][0], parts[-1][1]
        out = self._stored[: geometry.length(low, high)]
        written = [each for part in parts for each in self._encrypted(low, out, *part)]
        done = self._write_out(out, geometry.offset_of(low))
        if done < len(out) and self._empty:
            while self.tidy():
                pass
            done = self._write_out(out, geometry.offset_of(low))
        if done < len(out):
            if not again:
                self._keep_beginning(parts, low + geometry.touched(0, done)[1])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        for each in written:
            self._records.put(each)

    def _encrypted(
        self, low: int, out: memoryview, first: int, end: int, data: memoryview
    ) -> Iterator[Written]:
        """Encrypt `data` to where it belongs in `out`, which begins at `low`."""
        cipher = self._alive()
        skip = geometry.length(low, first)
        for unit in geometry.units(first, end):
            start, stop = geometry.length(first, unit.block), geometry.length(first, unit.end)
            body = out[skip + start : skip + stop]
            self._version += 1
            cipher.encrypt_into(unit.block, data[start:stop], body, self._version)
            yield Written(unit, self._version, cipher.tag(unit.block, self._version, body))

    def _write_out(self, data: memoryview, offset: int) -> int:
        """Write ciphertext; what is large goes past the page cache, for nobody will read it soon.

        Returns how much was written: less than all of it on a full disk.
        """
        direct = len(data) >= _DIRECT and self._direct != self._fd
        try:
            return os.pwrite(self._direct if direct else self._fd, data, offset)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                return 0
            if direct and error.errno == errno.EINVAL:  # the disk's blocks are larger than ours
                return os.pwrite(self._fd, data, offset)
            raise

    def _keep_beginning(self, parts: list[tuple[int, int, memoryview]], end: int) -> None:
        """The disk is full after block `end`: write what has its space by now once more.

        In units that end there; or the old ones would be half overwritten, and lost.
        """
        torn = self._records.divided(end)
        if torn is not None:  # only where overwriting takes space; reading it will be an error
            end = torn.block
        kept = [
            (first, min(stop, end), data[: geometry.length(first, min(stop, end))])
            for first, stop, data in parts
            if first < end
        ]
        if kept:
            self._put(kept, again=True)

    # -- giving back -----------------------------------------------------------------------

    def discard(self, offset: int, size: int) -> None:
        """Make bytes zeros; the space of whole blocks is given back where the file system can."""
        if self._cipher is None or size <= 0:
            return
        first, end = geometry.covered(offset, size)
        if first >= end:
            self.write(offset, _ZEROS[:size])
            return
        start, stop = geometry.offset_of(first), geometry.offset_of(end)
        self.write(offset, _ZEROS[: start - offset])
        self.write(stop, _ZEROS[: offset + size - stop])
        for unit in self._records.blank(first, end):
            self._note_empty(unit.block, unit.end)

    def _note_empty(self, first: int, end: int) -> None:
        """Remember blocks whose space is to be given back, together with their neighbours'."""
        if self._empty and self._empty[-1][1] == first:
            first, _ = self._empty.pop()
        self._empty.append((first, end))
        if len(self._empty) > _MOST_EMPTY:
            self.tidy()

    def tidy(self) -> bool:
        """Give back some of what was discarded; tells whether there was any.

        To punch a hole takes ten times as long as to note that one is due, and holes grow together
        while files are deleted: this is for when nobody waits.
        """
        if not self._empty:
            return False
        block, end = self._empty.pop()
        # It may have been written to since.
        for written in [*self._records.written(block, end), None]:
            stop = end if written is None else written.unit.block
            if block < stop:
                punch(self._fd, geometry.offset_of(block), geometry.length(block, stop))
            if written is not None:
                block = written.unit.end
        return True

    # -- the end ---------------------------------------------------------------------------

    def sync(self) -> None:
        """Nothing is meant to last: the kernel is told not to ask (ENOSYS)."""
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    def destroy(self) -> None:
        """Forget the key, and what is decrypted: reads fail now, and what is written is dropped."""
        if self._cipher is not None:
            self._cipher.forget()
            self._cipher = None
        self._plain[:] = _ZEROS

    def close(self) -> None:
        """Let it go, with everything in it."""
        self.destroy()
        for descriptor in self.descriptors():
            os.close(descriptor)
        self._records.close()

    def abandon(self) -> None:
        """Forget this process's copy of the key, and let its descriptor go."""
        self.close()


def _reopened(fd: int) -> int:
    """Open a file once more, past the page cache; return `fd` itself where that cannot be."""
    try:
        return os.open(f"/proc/self/fd/{fd}", os.O_RDWR | os.O_DIRECT | os.O_CLOEXEC)
    except OSError:
        return fd


def _draw(key: bytearray) -> None:
    """Fill `key` from the operating system without a copy that could not be overwritten."""
    with open("/dev/urandom", "rb", buffering=0) as source:
        if source.readinto(key) != len(key):
            raise OSError(errno.EIO, "/dev/urandom gave too little")
