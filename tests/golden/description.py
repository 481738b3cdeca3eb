"""What is in a vault, as a value that JSON can hold: to compare a golden vault with.

Reads through the tree only.  Large files are described by their stored content, a piece at a time.
"""

from __future__ import annotations

import hashlib
import os
import stat

from cisfs.layer.tree import ROOT, Attr, VaultTree

PIECE = 1 << 20


def described(tree: VaultTree) -> dict[str, dict[str, object]]:
    """Every path (its bytes in hex where they are no ASCII) with what is there."""
    found: dict[str, dict[str, object]] = {}
    _directory(tree, ROOT, "", found, {})
    return found


def _directory(
    tree: VaultTree,
    node: int,
    path: str,
    found: dict[str, dict[str, object]],
    seen: dict[int, str],
) -> None:
    handle = tree.opendir(node)
    for name in sorted(name for name, _, _ in tree.readdir(handle, 0)):
        attr = tree.lookup(node, name)
        where = f"{path}/{name.decode('ascii') if name.isascii() else '0x' + name.hex()}"
        first = seen.setdefault(attr.node, where)
        found[where] = {"same as": first} if first != where else _object(tree, attr)
        if stat.S_ISDIR(attr.mode):
            _directory(tree, attr.node, where, found, seen)
    tree.releasedir(handle)


def _object(tree: VaultTree, attr: Attr) -> dict[str, object]:
    said: dict[str, object] = {"mode": oct(attr.mode), "nlink": attr.nlink}
    if stat.S_ISDIR(attr.mode):
        del said["nlink"]  # a matter of the backing file system
    if stat.S_ISREG(attr.mode):
        said |= {"size": attr.size, "sha256 without zeros": _digest(tree, attr)}
    if stat.S_ISLNK(attr.mode):
        said |= {"size": attr.size, "target": tree.readlink(attr.node).decode()}
    if stat.S_ISREG(attr.mode) or stat.S_ISDIR(attr.mode):
        names = tree.listxattr(attr.node)
        said["xattrs"] = {
            name.decode(): tree.getxattr(attr.node, name).hex() for name in sorted(names)
        }
    if attr.mtime_ns < 1_750_000_000 * 10**9:
        said["mtime_ns"] = attr.mtime_ns  # one that was set, and not the day it was made on
    return said


def _digest(tree: VaultTree, attr: Attr) -> str:
    """SHA-256 of (offset, content) of every piece that is not all zeros.

    Only the first and last 8 MiB, and those around the middle, of a longer file are read.
    """
    digest = hashlib.sha256()
    handle = tree.open(attr.node, os.O_RDONLY)
    starts = range(0, attr.size, PIECE)
    if len(starts) > 24:
        middle = len(starts) // 2
        starts_read = [*starts[:8], *starts[middle - 4 : middle + 4], *starts[-8:]]
    else:
        starts_read = list(starts)
    for start in starts_read:
        piece = bytes(tree.read(handle, start, PIECE))
        if any(piece):
            digest.update(b"%d %d " % (start, len(piece)) + piece)
    tree.release(handle)
    return digest.hexdigest()
