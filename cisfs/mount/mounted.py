"""Which layers are mounted where, as this process's mount table shows it.

Containers' layers are in mount namespaces of their own and not among them.  Does not know layers.
Looks anew at each call; safe from any thread.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from cisfs.mount import points, records
from cisfs.mount.points import EROFS, FSTYPE


class Mounted(NamedTuple):
    """A mount of ours: the layer's absolute path, and where it is mounted."""

    layer: Path
    mountpoint: Path


def mounted() -> list[Mounted]:
    """Return all mounts of layers, in the order of the mount table.

    Other people's EROFS mounts are told from ours by records that only root can read.
    """
    return [
        Mounted(Path(entry.source), entry.mountpoint)
        for entry in points.mounts()
        if entry.fstype == FSTYPE or (entry.fstype == EROFS and records.is_ours(entry))
    ]
