"""The file system in a vault: nodes, names, metadata and open files, with POSIX semantics.

Takes node numbers and names as a kernel session gives them, and knows no FUSE: pyfuse3, or another
session one day, is an adapter over this.  Every method raises OSError with the errno that the
caller is to see, or a FormatError or IntegrityError that names the file.

One thread at a time, and each call is atomic for the others because nothing in it waits.  The
process's umask must be 0: modes come masked already.
"""

from __future__ import annotations

import errno
import itertools
import logging
import os
import stat
from collections.abc import Iterator
from typing import NamedTuple

from cisfs.format import names as spelling
from cisfs.format.geometry import Geometry
from cisfs.format.names import TARGET_NONCE_SIZE
from cisfs.layer.entries import Caller, Entries
from cisfs.layer.files import OpenFiles
from cisfs.layer.nodes import ROOT, Attr, Node, NodeTable
from cisfs.layer.places import Places
from cisfs.layer.renaming import RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT
from cisfs.layer.vault import Vault
from cisfs.layer.xattrs import ACL_NAMES, Target, Xattrs, has_own

__all__ = [
    "RENAME_EXCHANGE",
    "RENAME_NOREPLACE",
    "RENAME_WHITEOUT",
    "ROOT",
    "Attr",
    "Caller",
    "Change",
    "VaultTree",
]

_UNBOUND = bytes(16)  # symlinks and devices have nothing that their xattrs could be bound to

log = logging.getLogger(__name__)


class Change(NamedTuple):
    """What setattr is to change; None leaves a thing as it is.  `size` in bytes, times in ns."""

    mode: int | None = None
    uid: int | None = None
    gid: int | None = None
    size: int | None = None
    atime_ns: int | None = None
    mtime_ns: int | None = None


class VaultTree:
    """The tree of an opened vault.  Node numbers come from `lookup` and its kin, and ROOT."""

    def __init__(self, vault: Vault) -> None:
        """Serve `vault` until `close`, which closes the vault too."""
        self._vault = vault
        status = os.fstat(vault.fd)
        self._table = NodeTable(status.st_ino, Geometry(vault.config.unit_size))
        self._places = Places(vault, self._table)
        self._table.on_drop = self._places.forget
        self._entries = Entries(vault, self._table, self._places)
        self._files = OpenFiles(vault.context, self._places)
        self._xattrs = Xattrs(vault.names)
        self._table.root.dir_id = vault.root_id
        self._table.attr(self._table.root, status)
        self._listings: dict[int, tuple[Node, list[tuple[bytes, bytes]]]] = {}
        self._handles = itertools.count(1)

    def close(self) -> None:
        """Close every file and the vault.  Raises OSError if something could not be kept."""
        for node in self._table.nodes():
            self._files.close(node)
        self._places.close()
        self._vault.close()

    # -- nodes -----------------------------------------------------------------------------

    def lookup(self, parent: int, name: bytes) -> Attr:
        """Find an entry and take a reference to its node; FileNotFoundError if there is none."""
        directory = self._table[parent]
        stored = self._places.stored(directory, name)
        status = self._places.look(directory, stored)
        node = self._table.enter(status, directory, stored)
        return self._taken(node, self._table.attr(node, status))

    def hold(self, node: int) -> None:
        """Take one more reference to a node."""
        found = self._table[node]
        self._taken(found, self._getattr(found) if found.attr is None else found.attr)

    def forget(self, node: int, count: int) -> None:
        """Give back `count` references."""
        found = self._table[node]
        found.refs -= count
        self._table.drop_if_unused(found)

    def getattr(self, node: int) -> Attr:
        """Return a node's attributes."""
        return self._getattr(self._table[node])

    def setattr(self, node: int, change: Change) -> Attr:
        """Change attributes; returns them all."""
        self._check_writable()
        found = self._table[node]
        if change.mtime_ns is not None:
            found.kept_mtime_ns = change.mtime_ns
        if self._is_gone(found):
            # The kernel still writes times back to a file that was deleted: nothing keeps them.
            return self._getattr(found)
        if change.size is not None:
            self._files.truncate(found, change.size)
        if change.uid is not None or change.gid is not None:
            self._chown(found, change.uid, change.gid)
        if change.mode is not None:
            self._chmod(found, stat.S_IMODE(change.mode))
        if change.atime_ns is not None or change.mtime_ns is not None:
            self._set_times(found, change.atime_ns, change.mtime_ns)
        return self._getattr(found)

    def readlink(self, node: int) -> bytes:
        """Return a symlink's target."""
        found = self._table[node]
        fd, stored = self._places.at(found)
        text = os.readlink(stored, dir_fd=fd)
        with self._places.naming(found):
            sealed = spelling.decode(text)
            nonce, cipher = sealed[:TARGET_NONCE_SIZE], sealed[TARGET_NONCE_SIZE:]
            return self._vault.names.decrypt_target(nonce, cipher)

    def statfs(self) -> os.statvfs_result:
        """statvfs(3) of the backing file system."""
        return os.fstatvfs(self._vault.fd)

    def _getattr(self, node: Node) -> Attr:
        if node.file is not None:
            return self._table.attr(node, os.fstat(node.file.fd))
        if self._is_gone(node) and node.attr is not None:
            return node.attr  # something (a working directory) still refers to it
        return self._table.attr(node, self._places.status(node))

    def _is_gone(self, node: Node) -> bool:
        """Whether a node was deleted and is not open either."""
        return not node.links and node.file is None and node is not self._table.root

    def _chown(self, node: Node, uid: int | None, gid: int | None) -> None:
        ids = (-1 if uid is None else uid, -1 if gid is None else gid)
        if node.file is not None:
            os.fchown(node.file.fd, *ids)
        else:
            fd, stored = self._places.at(node)
            os.chown(stored, *ids, dir_fd=fd, follow_symlinks=False)

    def _chmod(self, node: Node, mode: int) -> None:
        if node.file is not None:
            os.fchmod(node.file.fd, mode)
            return
        # Through O_PATH: chmod(2) follows symlinks, and one may have been planted here.
        fd, stored = self._places.at(node)
        opened = os.open(stored, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
        try:
            os.chmod(f"/proc/self/fd/{opened}", mode)
        finally:
            os.close(opened)

    def _set_times(self, node: Node, atime: int | None, mtime: int | None) -> None:
        if atime is None or mtime is None:
            now = node.attr or self._getattr(node)
            atime = now.atime_ns if atime is None else atime
            mtime = now.mtime_ns if mtime is None else mtime
        if node.file is not None:
            os.utime(node.file.fd, ns=(atime, mtime))
        else:
            fd, stored = self._places.at(node)
            os.utime(stored, ns=(atime, mtime), dir_fd=fd, follow_symlinks=False)

    # -- entries ---------------------------------------------------------------------------

    def create(
        self, parent: int, name: bytes, mode: int, flags: int, caller: Caller
    ) -> tuple[int, Attr]:
        """Make a regular file and open it; returns (handle, attributes).  Takes a reference."""
        self._check_writable()
        try:
            node = self._entries.make_file(self._table[parent], name, mode, caller)
        except FileExistsError:
            if flags & os.O_EXCL:
                raise
            attr = self.lookup(parent, name)
            handle = self.open(attr.node, flags)
            return handle, self.getattr(attr.node)
        self._files.adopt(node)
        return node.number, self._taken(node)

    def mknod(self, parent: int, name: bytes, mode: int, rdev: int, caller: Caller) -> Attr:
        """Make a file, FIFO, socket or device (0:0 too).  Takes a reference."""
        self._check_writable()
        directory = self._table[parent]
        if not stat.S_ISREG(mode):
            return self._taken(self._entries.make_special(directory, name, mode, rdev, caller))
        node = self._entries.make_file(directory, name, mode, caller)
        self._files.close(node)
        return self._taken(node)

    def mkdir(self, parent: int, name: bytes, mode: int, caller: Caller) -> Attr:
        """Make a directory.  Takes a reference."""
        self._check_writable()
        directory = self._table[parent]
        return self._taken(self._entries.make_directory(directory, name, mode, caller))

    def symlink(self, parent: int, name: bytes, target: bytes, caller: Caller) -> Attr:
        """Make a symlink.  Takes a reference."""
        self._check_writable()
        directory = self._table[parent]
        return self._taken(self._entries.make_symlink(directory, name, target, caller))

    def link(self, node: int, new_parent: int, new_name: bytes) -> Attr:
        """Make a hard link.  Takes a reference."""
        self._check_writable()
        found = self._table[node]
        self._entries.link(found, self._table[new_parent], new_name)
        return self._taken(found, self._getattr(found))

    def unlink(self, parent: int, name: bytes) -> None:
        """Remove an entry that is not a directory."""
        self._check_writable()
        self._entries.unlink(self._table[parent], name)

    def rmdir(self, parent: int, name: bytes) -> None:
        """Remove an empty directory."""
        self._check_writable()
        self._entries.rmdir(self._table[parent], name)

    def rename(
        self, old_parent: int, old_name: bytes, new_parent: int, new_name: bytes, flags: int
    ) -> None:
        """renameat2(2): `flags` may be RENAME_NOREPLACE, _EXCHANGE or _WHITEOUT."""
        self._check_writable()
        source, target = self._table[old_parent], self._table[new_parent]
        self._entries.rename(source, old_name, target, new_name, flags)

    def _taken(self, node: Node, attr: Attr | None = None) -> Attr:
        attr = attr or node.attr or self._getattr(node)
        if not node.refs:
            node.kept_mtime_ns = attr.mtime_ns
        node.refs += 1
        return attr

    # -- files -----------------------------------------------------------------------------

    def open(self, node: int, flags: int) -> int:
        """Open a regular file; returns a handle."""
        found = self._table[node]
        writing = bool(flags & os.O_TRUNC) or flags & os.O_ACCMODE != os.O_RDONLY
        if writing:
            self._check_writable()
        self._files.open(found, write=writing)
        if flags & os.O_TRUNC:
            try:
                self._files.truncate(found, 0)
                self._drop_set_id(found)
            except BaseException:
                self.release(node)
                raise
        return node

    def read(self, handle: int, offset: int, size: int) -> memoryview:
        """Return up to `size` bytes; the view is valid until the next call into the tree."""
        return self._files.read(self._table[handle], offset, size)

    def write(self, handle: int, offset: int, data: bytes | memoryview) -> int:
        """Write all of `data`; returns its length."""
        return self._files.write(self._table[handle], offset, data)

    def release(self, handle: int) -> None:
        """The last descriptor of an open was closed."""
        node = self._table[handle]
        self._files.release(node)
        self._table.drop_if_unused(node)

    def fsync(self, handle: int, datasync: bool) -> None:
        """Make a file durable, and findable: the ids of new directories above it are synced too."""
        node = self._table[handle]
        self._files.sync(node, datasync)
        self._places.sync_way_to(node)

    def _drop_set_id(self, node: Node) -> None:
        """Take the set-id bits away, as for any write: an open that truncates is not announced."""
        mode = (node.attr or self._getattr(node)).mode
        kept = mode & ~stat.S_ISUID & ~(stat.S_ISGID if mode & stat.S_IXGRP else 0)
        if kept != mode:
            self._chmod(node, stat.S_IMODE(kept))

    # -- directories -----------------------------------------------------------------------

    def opendir(self, node: int) -> int:
        """Open a directory for listing; returns a handle."""
        directory = self._table[node]
        directory.opens += 1
        handle = next(self._handles)
        self._listings[handle] = (directory, [])
        return handle

    def readdir(self, handle: int, start: int) -> Iterator[tuple[bytes, Attr, int]]:
        """Yield (name, attributes, cookie of the next entry) from cookie `start` on.

        Takes no reference: call `hold` for an entry before asking for the next one.
        """
        directory, entries = self._listings[handle]
        if start == 0:
            entries, complaints = self._places.listing(directory)
            self._listings[handle] = (directory, entries)
            for line in complaints:
                log.warning("%s: %s", self._places.plain_path(directory), line)
        for index in range(start, len(entries)):
            name, stored = entries[index]
            try:
                status = self._places.look(directory, stored)
            except FileNotFoundError:
                continue  # removed since the listing began
            node = self._table.enter(status, directory, stored)
            try:
                yield name, self._table.attr(node, status), index + 1
            finally:
                self._table.drop_if_unused(node)

    def releasedir(self, handle: int) -> None:
        """Close a directory."""
        directory, _ = self._listings.pop(handle)
        directory.opens -= 1
        self._table.drop_if_unused(directory)

    def fsyncdir(self, handle: int) -> None:
        """Make a directory's entries durable."""
        directory, _ = self._listings[handle]
        self._places.sync(directory)
        self._places.sync_way_to(directory)

    # -- extended attributes ---------------------------------------------------------------

    def getxattr(self, node: int, name: bytes) -> bytes:
        """Return an extended attribute; OSError ENODATA if it is absent."""
        found = self._table[node]
        if name not in ACL_NAMES and self._is_bare(found):
            raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))
        with self._places.naming(found):
            return self._xattrs.get(*self._xattr_place(found), name)

    def setxattr(self, node: int, name: bytes, value: bytes) -> None:
        """Set an extended attribute."""
        self._check_writable()
        found = self._table[node]
        with self._places.naming(found):
            self._xattrs.set(*self._xattr_place(found), name, value)
        found.bare = found.bare and name in ACL_NAMES

    def listxattr(self, node: int) -> list[bytes]:
        """Return the names of all extended attributes."""
        found = self._table[node]
        with self._places.naming(found):
            return self._xattrs.names(*self._xattr_place(found))

    def removexattr(self, node: int, name: bytes) -> None:
        """Remove an extended attribute; OSError ENODATA if it is absent."""
        self._check_writable()
        found = self._table[node]
        with self._places.naming(found):
            self._xattrs.remove(*self._xattr_place(found), name)

    def _is_bare(self, node: Node) -> bool:
        """Whether a node has no extended attributes: asked at every write(2) by the kernel."""
        if not node.bare and node.links:
            node.bare = not has_own(self._places.path(node))
        return node.bare

    def _xattr_place(self, node: Node) -> tuple[Target, int, bytes]:
        mode = (node.attr or self._getattr(node)).mode
        if node.file is not None:
            return node.file.fd, mode, node.file.file_id
        return self._places.path(node), mode, self._object_id(node, mode)

    def _object_id(self, node: Node, mode: int) -> bytes:
        """The 16 bytes that a node's extended attributes are bound to."""
        if stat.S_ISDIR(mode):
            return self._places.dir_id(node)
        if not stat.S_ISREG(mode):
            return _UNBOUND
        if node.object_id is None:
            node.object_id = self._files.file_id(node)
        return node.object_id

    # -- the rest --------------------------------------------------------------------------

    def _check_writable(self) -> None:
        if self._vault.read_only:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
