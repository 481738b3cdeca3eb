"""Binding a sealed layer to another base: a new header, over the same image and keys.

The layer is copied and takes its own place, so that it is whole at every instant and a mount of the
old one goes on.  Does not know images.  One call at a time on one layer.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from cisfs.format.sealed import UNBOUND, base_of
from cisfs.format.sealed_geometry import SLOTS_OFFSET
from cisfs.format.slotarea import AREAS_SIZE
from cisfs.keys.credentials import Opener
from cisfs.layer import slotarea
from cisfs.layer.pulled import check_is_own
from cisfs.layer.sealed import SealedLayer
from cisfs.layer.wholefile import whole_file
from cisfs.layer.writing import write_all

_PIECE = 1 << 27  # bytes that the kernel copies in one call, so that a signal is not long in coming


def rebase(
    path: Path, opener: Opener | Callable[[], Opener], diff_ids: list[str] | None
) -> tuple[str, int]:
    """Bind the layer at `path` to the layers with `diff_ids`, the lowest first; None: to nothing.

    Returns the new identity, and how many signatures it has lost: they are for the old one.  Raises
    UsageError for a layer in a store, what `SealedLayer.open` raises, OSError.
    """
    where = path.resolve()
    check_is_own(where)
    layer = SealedLayer.open(path, opener)
    try:
        header = layer.rebound(UNBOUND if diff_ids is None else base_of(diff_ids))
        if header == layer.header:
            return layer.identity, 0
        with slotarea.kept(layer.fd) as text:  # so that no slot comes back that is removed now
            slots = replace(text, signatures=()).pack().ljust(AREAS_SIZE, b"\0")
            with whole_file(where, replace=True) as fd:
                _keep_attributes(layer.fd, fd)
                write_all(fd, header.pack() + slots)
                _copy(layer.fd, fd, SLOTS_OFFSET + AREAS_SIZE)
    finally:
        layer.close()
    return header.identity, len(text.signatures)


def _keep_attributes(source: int, target: int) -> None:
    status = os.fstat(source)
    os.fchown(target, status.st_uid, status.st_gid)
    os.fchmod(target, stat.S_IMODE(status.st_mode))


def _copy(source: int, target: int, start: int) -> None:
    """Copy all from `start` on; by reference where the file system can."""
    os.lseek(source, start, os.SEEK_SET)
    size = os.fstat(source).st_size
    while start < size:
        copied = os.copy_file_range(source, target, min(_PIECE, size - start))
        if not copied:
            raise OSError(errno.EIO, "the layer was cut off while it was copied")
        start += copied
