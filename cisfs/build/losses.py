"""What mkfs.erofs 1.5 would lose of an index, looked for before it is run.

It cuts long names short, leaves names out, and takes attributes that the kernel then cannot read,
mostly without a word (v1.5: lib/inode.c, erofs_d_alloc and erofs_mkfs_build_tree; lib/xattr.c).
Does no I/O.  Safe anywhere.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from cisfs.build.index import Directory, Entry, Index, quoted
from cisfs.errors import UsageError
from cisfs.format.erofs import xattrs_size

_NAME_MAX = 254
_PATH_MAX = 4095
_LEFT_OUT = b"lost+found"
_REMEDY = "rename it, or seal without --compression"


def check(index: Index, mountpoint: Path) -> int:
    """Look at an index that is shown at `mountpoint`; return how many inodes will be left out.

    That is at most one, the empty lost+found that is on top of each ext4.  Raises UsageError that
    names the first thing that would be lost.
    """
    left_out = 0
    for path, entry in _walk(index.root):
        name = path[path.rfind(b"/") + 1 :]
        if len(name) > _NAME_MAX or len(os.fsencode(mountpoint)) + 1 + len(path) > _PATH_MAX:
            raise UsageError(
                f"{quoted(path)}: mkfs.erofs takes names of up to {_NAME_MAX} bytes and paths of "
                f"some {_PATH_MAX}: {_REMEDY}"
            )
        if name.startswith(_LEFT_OUT):
            if path != _LEFT_OUT or not isinstance(entry, Directory) or entry.children:
                raise UsageError(f"{quoted(path)}: mkfs.erofs would leave it out: {_REMEDY}")
            left_out = 1
        try:
            xattrs_size(entry.xattrs)
        except ValueError as error:
            raise UsageError(f"{quoted(path)}: {error}") from None
    return left_out


def _walk(root: Directory) -> Iterator[tuple[bytes, Entry]]:
    """Every name in an index: the path, without a slash at the beginning, and what it is of."""
    yield b"", root
    waiting = [(b"", root)]
    while waiting:
        directory, entry = waiting.pop()
        for name, child in entry.children.items():
            path = os.path.join(directory, name)
            yield path, child
            if isinstance(child, Directory):
                waiting.append((path, child))
