"""Nodes: what the kernel knows of the vault's inodes, and where each one is stored.

A node number is the backing inode number (the root's is 1), so it stays the same across lookups,
hard links, renames and mounts; one that was deleted while the kernel still holds it keeps its
number, and a new inode that gets the same backing number is given another.

Does no I/O and knows neither keys nor files' contents.  One thread at a time.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from typing import NamedTuple

from cisfs.format.geometry import Geometry
from cisfs.format.names import target_size
from cisfs.layer.file import EncryptedFile

ROOT = 1
_REUSED_STEP = 1 << 48  # no file system at hand numbers its inodes that high


class Attr(NamedTuple):
    """What stat(2) says of a node: sizes in bytes of plaintext, times in ns since the epoch."""

    node: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    blksize: int
    blocks: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int


class Node:
    """One inode that the kernel knows.

    `links` are the places where it is stored, as far as they were looked up: (directory, stored
    name).  `refs` counts the kernel's lookups, `opens` its open handles.
    """

    __slots__ = (
        "attr",
        "bare",
        "children",
        "dir_id",
        "file",
        "ino",
        "kept_mtime_ns",
        "links",
        "listing",
        "number",
        "object_id",
        "opens",
        "refs",
        "written",
    )

    def __init__(self, number: int, ino: int) -> None:
        self.number = number
        self.ino = ino
        self.refs = 0
        self.opens = 0
        self.links: dict[tuple[Node, bytes], None] = {}
        self.file: EncryptedFile | None = None
        self.attr: Attr | None = None
        self.kept_mtime_ns = 0  # as the kernel has it, which keeps it itself once it knows the node
        self.written = False  # since it was opened
        self.bare = False  # known to have no extended attribute
        self.object_id: bytes | None = None  # what its extended attributes are bound to
        # directories only:
        self.dir_id: bytes | None = None
        self.children: dict[bytes, Node] = {}
        self.listing: list[tuple[bytes, bytes]] | None = None  # (name, stored name), until changed

    @property
    def is_directory(self) -> bool:
        """Whether this is a directory; its attributes were asked for before."""
        return self.attr is not None and stat.S_ISDIR(self.attr.mode)

    @property
    def setgid(self) -> bool:
        """Whether new entries of this directory inherit its group."""
        return self.attr is not None and bool(self.attr.mode & stat.S_ISGID)


class NodeTable:
    """All nodes, by number and by backing inode number."""

    def __init__(self, root_ino: int, geometry: Geometry) -> None:
        self._geometry = geometry
        self._by_number: dict[int, Node] = {}
        self._by_ino: dict[int, Node] = {}
        self.on_drop: Callable[[Node], object] = id  # until someone wants to know
        self.root = Node(ROOT, root_ino)
        self.root.refs = 1
        self._by_number[ROOT] = self._by_ino[root_ino] = self.root

    def __getitem__(self, number: int) -> Node:
        try:
            return self._by_number[number]
        except KeyError:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE)) from None

    def enter(self, status: os.stat_result, parent: Node, stored: bytes) -> Node:
        """Return the node of the backing inode that was found as `stored` in `parent`."""
        node = self._by_ino.get(status.st_ino)
        if node is None:
            node = Node(self._free_number(status.st_ino), status.st_ino)
            self._by_number[node.number] = self._by_ino[node.ino] = node
        if parent.children.get(stored) is not node:
            self.link(node, parent, stored)
        return node

    def link(self, node: Node, parent: Node, stored: bytes) -> None:
        """Note that `node` is stored as `stored` in `parent`, and nothing else is."""
        before = parent.children.get(stored)
        if before is not None:
            before.links.pop((parent, stored), None)
        parent.children[stored] = node
        node.links[(parent, stored)] = None

    def unlink(self, parent: Node, stored: bytes) -> Node | None:
        """Note that nothing is stored as `stored` in `parent` any more; returns what was."""
        node = parent.children.pop(stored, None)
        if node is not None:
            node.links.pop((parent, stored), None)
        return node

    def removed(self, node: Node) -> None:
        """Note that the backing inode lost a link; after the last its number may be reused."""
        if node.attr is None or node.attr.nlink <= 1 or stat.S_ISDIR(node.attr.mode):
            if self._by_ino.get(node.ino) is node:
                del self._by_ino[node.ino]
            if node.attr is not None:
                node.attr = node.attr._replace(nlink=0)
        else:
            node.attr = node.attr._replace(nlink=node.attr.nlink - 1)

    def nodes(self) -> list[Node]:
        """Every node there is."""
        return list(self._by_number.values())

    def drop_if_unused(self, node: Node) -> None:
        """Forget a node that neither the kernel nor another node needs."""
        candidates = [node]
        while candidates:
            node = candidates.pop()
            if node.refs > 0 or node.opens or node.children or node is self.root:
                continue
            if self._by_number.pop(node.number, None) is None:
                continue
            self.on_drop(node)
            if self._by_ino.get(node.ino) is node:
                del self._by_ino[node.ino]
            for parent, stored in list(node.links):
                self.unlink(parent, stored)
                candidates.append(parent)

    def attr(self, node: Node, status: os.stat_result) -> Attr:
        """Return (and remember) a node's attributes, from what the backing file system says."""
        mode, size = status.st_mode, status.st_size
        if stat.S_ISREG(mode):
            size = node.file.size if node.file else self._geometry.plain_size_below(size)
        elif stat.S_ISLNK(mode):
            size = target_size(size)
        node.attr = Attr(
            node.number,
            mode,
            status.st_nlink,
            status.st_uid,
            status.st_gid,
            status.st_rdev,
            size,
            status.st_blksize,
            status.st_blocks,
            status.st_atime_ns,
            status.st_mtime_ns,
            status.st_ctime_ns,
        )
        return node.attr

    def _free_number(self, ino: int) -> int:
        number = ino
        while number in self._by_number or number == ROOT:
            number += _REUSED_STEP
        return number
