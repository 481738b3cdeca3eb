"""Which layers are mounted where, as this process's mount table shows it.

Containers' layers are in mount namespaces of their own and not among them.  Does not know layers.
Looks anew at each call; safe from any thread.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from cisfs.mount import points, records
from cisfs.mount.points import EROFS, FSTYPE, MountEntry


class Mounted(NamedTuple):
    """A mount of ours: the layer's absolute path, and where it is mounted."""

    layer: Path
    mountpoint: Path


def mounted() -> list[Mounted]:
    """Return all mounts of layers, in the order of the mount table.

    Other people's EROFS mounts are told from ours by records that only root can read.
    """
    found = ((entry, _layer(entry)) for entry in points.mounts())
    return [Mounted(layer, entry.mountpoint) for entry, layer in found if layer is not None]


def _layer(entry: MountEntry) -> Path | None:
    if entry.fstype == FSTYPE:
        return Path(entry.source)
    return records.layer_of(entry) if entry.fstype == EROFS else None
