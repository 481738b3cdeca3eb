"""A compressed image of an index: mkfs.erofs is shown the index as a directory, and given room.

Knows who does what; how an index is shown, where there is room and how mkfs.erofs is run is known
elsewhere.  One image in a process; as root it leaves its mount namespace for one of its own.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from cisfs.build import interrupts, losses, mkfs
from cisfs.build.index import Index
from cisfs.build.progress import Progress
from cisfs.build.request import Request
from cisfs.build.room import room
from cisfs.build.serving import shown
from cisfs.build.superblock import superblock
from cisfs.build.workplace import Workplace
from cisfs.errors import CisfsError, UsageError
from cisfs.layer.sealing import StoredImage

_TRUSTED = b"trusted."  # shown by FUSE to root only, as by other file systems (xattr(7))


@contextlib.contextmanager
def image(index: Index, request: Request, progress: Progress) -> Iterator[StoredImage]:
    """Make an image, and keep it for this block.

    Raises UsageError for what mkfs.erofs has no room for, NoFuseError, MountError, CisfsError,
    OSError.
    """
    if os.geteuid() != 0 and any(name.startswith(_TRUSTED) for name in _attributes(index)):
        raise UsageError(
            "mkfs.erofs cannot see trusted.* attributes without root, and opaque directories are "
            "marked by one: seal as root, or without --compression"
        )
    totals = index.totals
    needed = totals.image + totals.entries * mkfs.MEMORY_PER_ENTRY
    with contextlib.ExitStack() as undo:
        place = undo.enter_context(Workplace(request.output))
        made = undo.enter_context(room(needed, place))
        progress.begin("compressing", totals.image)
        with contextlib.ExitStack() as shown_undo:
            with interrupts.held():
                source = shown_undo.enter_context(shown(index))
            left_out = losses.check(index, source)
            mkfs.make_image(
                request.mkfs,
                source,
                made.fd,
                request.compression,
                limit=made.limit,
                progress=progress.update,
            )
        made.settle()
        _check_entries(made.fd, totals.entries - left_out)
        yield StoredImage(made.fd, os.fstat(made.fd).st_size)


def _attributes(index: Index) -> Iterator[bytes]:
    return (name for entry in index.entries for name in entry.xattrs)


def _check_entries(fd: int, expected: int) -> None:
    """Raise CisfsError unless the image has as many inodes as the index."""
    found = superblock(fd)
    if found is None or found.inodes != expected:
        raise CisfsError(
            f"mkfs.erofs put {found.inodes if found else 0} of {expected} files and directories "
            "into its image: seal without --compression"
        )
