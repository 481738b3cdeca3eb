"""Rotating a sealed layer: its image is encrypted once more, under a fresh layer key.

docs/FORMAT.md, section 14.  The new layer is made in a partial file beside the old one, which
stays as it is, and may be mounted, until the new one takes its name.  Of what an earlier run left,
only that is built upon which its record vouches for, under keys that take both layer keys, and
which is still what was written.  Does not know what is in the image.  One call at a time in a
process.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import stat
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

from cisfs.crypto.keys import ID_SIZE, LayerKeys, SecretKey, rotation_key
from cisfs.crypto.units import XtsCipher
from cisfs.errors import BusyError, CisfsError, FormatError
from cisfs.format.rotation import LAYER_RECORD_SIZE
from cisfs.format.sealed_geometry import SLOTS_OFFSET
from cisfs.format.slotarea import SlotText
from cisfs.keys.credentials import MasterKey, Recipients
from cisfs.keys.reopening import are_for, reopened
from cisfs.layer import sealed, slotarea
from cisfs.layer.checkpoints import Checkpoints
from cisfs.layer.fallocate import allocate
from cisfs.layer.image_reader import ImageReader
from cisfs.layer.partial import Partial, claimed_file, partial_file
from cisfs.layer.pulled import check_is_own
from cisfs.layer.rotation_request import Request, Rotated, naming_full_disks
from cisfs.layer.sealed import SealedLayer
from cisfs.layer.sealing import BATCH, Sealing, batch_count, empty_leaves, packed_slots
from cisfs.layer.writing import write_at

CHECKPOINT = 256 << 20  # bytes of the image, at least, between two records


def rotate_layer(path: Path, request: Request) -> Rotated:
    """Rotate the layer at `path`, which is no symlink, or go on where an earlier run ended.

    Raises UsageError for one in a store, what `SealedLayer.open` and `claimed_file` raise,
    IntegrityError that names a damaged unit, CisfsError when there is no space, OSError.
    """
    check_is_own(path)
    master = sealed.master_key(path, request.opener)
    with closing(SealedLayer.open(path, MasterKey(master))) as layer:
        wanted = request.recipients_after(layer.slots)
        with naming_full_disks(path, partial_file(path)), claimed_file(path) as partial:
            making = _Making(layer, master, partial)
            continued = making.go_on(request, wanted)
            if not continued:
                making.begin(wanted)
            making.run(request)
            identity = making.take_place(request)
            return Rotated(making.layer_id.hex(), identity, continued)


@dataclass(slots=True)
class _LayerImage:
    """The image of a layer, each process with a reader of its own."""

    layer: SealedLayer
    _reader: ImageReader | None = None

    @property
    def size(self) -> int:
        """See `Image`."""
        return self.layer.image_size

    def read_into(self, offset: int, out: memoryview) -> None:
        """See `Image`; never called before the fork."""
        if self._reader is None:
            self._reader = self.layer.reader(kept_units=0)
        out[:] = self._reader.read(offset, len(out))


class _Making:
    """A new layer that is being made, in a partial file."""

    def __init__(self, layer: SealedLayer, master: SecretKey, partial: Partial) -> None:
        self._layer = layer
        self._master = master
        self._partial = partial
        self._fd = partial.fd
        self._geometry = layer.geometry
        self._leaves = empty_leaves(layer.geometry)
        self._done = Checkpoints(partial.fd, layer.geometry, self._leaves, layer.identity)

    def go_on(self, request: Request, wanted: Recipients) -> bool:
        """Take up what an earlier run left; tells whether there is anything to be trusted.

        What there is is read once: some may not have got to the disk, and the old layer goes when
        the new one is made.
        """
        size = self._geometry.stored_size + LAYER_RECORD_SIZE
        if os.fstat(self._fd).st_size != size:
            return False
        try:
            slots = slotarea.read(self._fd).text.slots
        except FormatError:
            return False
        for record in self._done.stored():
            new = reopened(slots, request.opener, wanted, record.layer_id)
            if new is None or not self._done.take_up(record, self._mac_key(new, record.layer_id)):
                continue
            if are_for(slots, wanted, new, record.layer_id) and self._is_as_written(request):
                self._prepare(new, record.layer_id)
                return True
        return False

    def _is_as_written(self, request: Request) -> bool:
        checked = 0
        with closing(self._done.check(request.workers)) as results:
            for size in results:
                if not size:
                    return False
                checked += size
                request.progress(checked, self._geometry.image_size)
        return True

    def begin(self, wanted: Recipients) -> None:
        """Begin anew: the file gets its size and its slots, which whoever goes on will need."""
        os.ftruncate(self._fd, 0)
        new, layer_id = SecretKey.generate(), secrets.token_bytes(ID_SIZE)
        slots = packed_slots(new, layer_id, wanted)
        _keep_owner(self._fd, os.fstat(self._layer.fd))
        try:
            allocate(self._fd, self._geometry.stored_size + LAYER_RECORD_SIZE)
            write_at(self._fd, slots, SLOTS_OFFSET)
        except OSError:
            os.ftruncate(self._fd, 0)
            raise
        self._leaves[:] = bytes(len(self._leaves))
        self._done.begin(layer_id, self._mac_key(new, layer_id))
        self._prepare(new, layer_id)

    def _mac_key(self, new: SecretKey, layer_id: bytes) -> bytes:
        return rotation_key(new, self._master, layer_id)

    def _prepare(self, new: SecretKey, layer_id: bytes) -> None:
        self.layer_id = layer_id
        self._keys = LayerKeys.derive(new, layer_id)
        xts = XtsCipher(self._keys.units)
        image = _LayerImage(self._layer)
        self._sealing = Sealing(image, self._fd, self._geometry, xts, self._leaves)

    def run(self, request: Request) -> None:
        """Encrypt what is not yet done; what is done stays done, however this ends."""
        size = self._geometry.image_size
        run = _Run(batch_count(self._done.size))
        try:
            with closing(self._sealing.run(request.workers, run.end)) as batches:
                for batch in batches:
                    run.add(batch)
                    done = min(run.end * BATCH, size)
                    if done - self._done.size >= CHECKPOINT:
                        self._done.advance(done)
                    request.progress(done, size)
        finally:
            self._done.advance(min(run.end * BATCH, size))

    def take_place(self, request: Request) -> str:
        """Make it a layer, durable, and give it the old one's name; returns its identity."""
        self._done.leave_behind()
        header = self._sealing.finish(self._keys, self.layer_id, self._layer.header.base)
        os.fsync(self._fd)
        os.fchmod(self._fd, stat.S_IMODE(os.fstat(self._layer.fd).st_mode))
        keys = self._layer.scratch_key(), self._keys.scratch
        request.switching(*keys)
        name = os.fsencode(self._layer.path.name)
        at = self._partial.directory
        with slotarea.kept(self._layer.fd) as text:
            self._check_unchanged(text)
            _share_lock(self._fd, self._layer.path)
            os.ftruncate(self._fd, self._geometry.stored_size)  # until here, all of it is kept
            os.fsync(self._fd)
            os.rename(self._partial.name, name, src_dir_fd=at, dst_dir_fd=at)
        os.fsync(at)
        request.switched(*keys)
        return header.identity

    def _check_unchanged(self, text: SlotText) -> None:
        """See that nobody put another layer there, or changed its slots, since it was opened."""
        path = self._layer.path
        there = os.stat(path.name, dir_fd=self._partial.directory, follow_symlinks=False)
        same = os.path.samestat(there, os.fstat(self._layer.fd))
        if not same or text.slots != self._layer.slots:
            raise CisfsError(f"{path} was changed while it was rotated: rotate it again")


@dataclass(slots=True)
class _Run:
    """The batches from the beginning that are done without a gap: those before `end`."""

    end: int
    _ahead: set[int] = field(default_factory=set)

    def add(self, batch: int) -> None:
        """Note that a batch is done."""
        self._ahead.add(batch)
        while self.end in self._ahead:
            self._ahead.remove(self.end)
            self.end += 1


def _keep_owner(fd: int, status: os.stat_result) -> None:
    """Give a new file to whom the old one belongs."""
    own = os.fstat(fd)
    if (own.st_uid, own.st_gid) != (status.st_uid, status.st_gid):
        os.fchown(fd, status.st_uid, status.st_gid)


def _share_lock(fd: int, path: Path) -> None:
    """Keep others from changing the file, and nobody from opening it once it has its name."""
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        raise BusyError(f"{path} is being rotated by another cisfs command") from None
