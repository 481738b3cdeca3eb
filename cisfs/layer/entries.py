"""Making, linking, moving and removing directory entries in the backing tree.

Each method changes the backing directories first and the node table after it succeeded.  Knows
names and nodes, and nothing of files' contents but how an empty one is made.  One thread at a time.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import stat
from collections.abc import Iterator
from typing import NamedTuple

from cisfs.format import names as spelling
from cisfs.format.names import TARGET_MAX, TARGET_NONCE_SIZE
from cisfs.layer.directory import create_id, write_id
from cisfs.layer.file import EncryptedFile
from cisfs.layer.nodes import Node, NodeTable
from cisfs.layer.places import Places
from cisfs.layer.renaming import RENAME_EXCHANGE, RENAME_WHITEOUT, renameat2
from cisfs.layer.vault import Vault

_CREATE_FLAGS = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Caller(NamedTuple):
    """Who asks: new objects become theirs."""

    uid: int
    gid: int


class Entries:
    """The directory entries of one vault."""

    def __init__(self, vault: Vault, table: NodeTable, places: Places) -> None:
        self._vault = vault
        self._table = table
        self._places = places
        self._is_root = os.geteuid() == 0
        self._me = Caller(os.geteuid(), os.getegid())

    def make_file(self, directory: Node, name: bytes, mode: int, caller: Caller) -> Node:
        """Make a regular file; its node holds it open for reading and writing."""
        with self._making(directory, name) as (fd, stored):
            file_fd = os.open(stored, _CREATE_FLAGS, stat.S_IMODE(mode), dir_fd=fd)
            try:
                file = EncryptedFile.create(file_fd, self._vault.context)
                owner = self._owner(directory, caller)
                if owner is not None:
                    os.fchown(file_fd, *owner)
                    os.fchmod(file_fd, stat.S_IMODE(mode))  # chown(2) clears the set-id bits
                status = os.fstat(file_fd)
            except BaseException:
                os.close(file_fd)
                os.unlink(stored, dir_fd=fd)
                raise
        node = self._table.enter(status, directory, stored)
        node.file, node.bare = file, True
        self._table.attr(node, status)
        return node

    def make_special(
        self, directory: Node, name: bytes, mode: int, rdev: int, caller: Caller
    ) -> Node:
        """Make a FIFO, socket or device."""
        with self._making(directory, name) as (fd, stored):
            os.mknod(stored, mode, rdev, dir_fd=fd)
            self._give(directory, stored, caller)
        return self._enter(directory, stored)

    def make_directory(self, directory: Node, name: bytes, mode: int, caller: Caller) -> Node:
        """Make a directory, with an id of its own."""
        mode = stat.S_IMODE(mode)
        with self._making(directory, name) as (fd, stored):
            # Open to this process until the id is in it: not every owner can enter what is theirs.
            os.mkdir(stored, mode | stat.S_IRWXU, dir_fd=fd)
        node = self._enter(directory, stored)
        try:
            node.dir_id = create_id(self._places.fd(node))
            self._give(directory, stored, caller)
            if mode & stat.S_IRWXU != stat.S_IRWXU:
                os.fchmod(self._places.fd(node), mode | _kept_bits(node))
        except OSError:
            # A full disk can give a directory and not its id.
            with contextlib.suppress(OSError):
                self._remove_backing(directory, stored, node)
            self._left(directory, stored)
            raise
        node.bare = True
        self._places.is_new(node)
        self._table.attr(node, self._places.status(node))
        return node

    def make_symlink(self, directory: Node, name: bytes, target: bytes, caller: Caller) -> Node:
        """Make a symlink; OSError ENAMETOOLONG for a target of more than 3039 bytes."""
        if len(target) > TARGET_MAX:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
        nonce = secrets.token_bytes(TARGET_NONCE_SIZE)
        text = spelling.encode(nonce + self._vault.names.encrypt_target(nonce, target))
        with self._making(directory, name) as (fd, stored):
            os.symlink(text, stored, dir_fd=fd)
            self._give(directory, stored, caller)
        return self._enter(directory, stored)

    def link(self, node: Node, directory: Node, name: bytes) -> None:
        """Make a hard link to `node`."""
        with self._making(directory, name) as (fd, stored):
            # The directory of the old name may be closed to make room for the new one's.
            old_fd, old = self._places.at(node)
            fd = self._places.fd(directory)
            os.link(old, stored, src_dir_fd=old_fd, dst_dir_fd=fd, follow_symlinks=False)
        self._table.link(node, directory, stored)

    def unlink(self, directory: Node, name: bytes) -> None:
        """Remove an entry that is not a directory."""
        stored = self._places.stored(directory, name)
        os.unlink(stored, dir_fd=self._places.fd(directory))
        self._left(directory, stored)

    def rmdir(self, directory: Node, name: bytes) -> None:
        """Remove an empty directory."""
        stored = self._places.stored(directory, name)
        node = self._enter(directory, stored)
        if not node.is_directory:
            raise OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        self._remove_backing(directory, stored, node)
        self._left(directory, stored)

    def rename(
        self, source: Node, old_name: bytes, target: Node, new_name: bytes, flags: int
    ) -> None:
        """renameat2(2), with NOREPLACE, EXCHANGE and WHITEOUT."""
        old = self._places.stored(source, old_name)
        moving = source.children.get(old)
        there = target.children.get(self._places.stored(target, new_name))
        if moving is not None and moving is there and not flags & RENAME_EXCHANGE:
            return  # two links of one inode: rename(2) leaves both
        with self._making(target, new_name) as (_, new):
            self._rename_backing(source, old, target, new, flags)
        source.listing = None
        moved = self._table.unlink(source, old)
        if flags & RENAME_EXCHANGE:
            other = self._table.unlink(target, new)
            if other is not None:
                self._table.link(other, source, old)
        else:
            self._gone(target, new)
            if not flags & RENAME_WHITEOUT:
                self._places.discard(source, old)
        if moved is not None:
            self._table.link(moved, target, new)

    # -- the backing side ------------------------------------------------------------------

    @contextlib.contextmanager
    def _making(self, directory: Node, name: bytes) -> Iterator[tuple[int, bytes]]:
        """Prepare a new entry, and clean up after it when it cannot be made."""
        stored = self._places.stored(directory, name)
        try:
            self._places.prepare(directory, name, stored)
            yield self._places.fd(directory), stored
        except BaseException:
            self._places.discard(directory, stored)
            raise

    def _enter(self, directory: Node, stored: bytes) -> Node:
        status = self._places.look(directory, stored)
        node = self._table.enter(status, directory, stored)
        self._table.attr(node, status)
        return node

    def _owner(self, directory: Node, caller: Caller) -> tuple[int, int] | None:
        """Whose a new object in `directory` must be made; None if it is theirs already."""
        if not self._is_root or caller == self._me:
            return None
        return caller.uid, -1 if directory.setgid else caller.gid

    def _give(self, directory: Node, stored: bytes, caller: Caller) -> None:
        """Give a new object that is no regular file to the caller."""
        owner = self._owner(directory, caller)
        if owner is not None:
            fd = self._places.fd(directory)
            os.chown(stored, *owner, dir_fd=fd, follow_symlinks=False)

    def _remove_backing(self, directory: Node, stored: bytes, node: Node) -> None:
        """rmdir(2) of a directory that may hold nothing but helpers, put back if that fails."""
        with self._passable(directory, stored, node):
            helpers = self._places.helpers(node)
            fd = self._places.fd(node)
            for text in helpers:
                os.unlink(text, dir_fd=fd)
            try:
                os.rmdir(stored, dir_fd=self._places.fd(directory))
            except OSError:
                if node.dir_id is not None:
                    write_id(self._places.fd(node), node.dir_id)
                raise

    @contextlib.contextmanager
    def _passable(self, directory: Node, stored: bytes, node: Node) -> Iterator[None]:
        """Let an ordinary user's server into the user's own directory, whatever its mode."""
        mode = node.attr.mode if node.attr is not None else stat.S_IRWXU
        if self._is_root or mode & stat.S_IRWXU == stat.S_IRWXU:
            yield
            return
        self._places.forget(node)
        os.chmod(stored, stat.S_IMODE(mode) | stat.S_IRWXU, dir_fd=self._places.fd(directory))
        try:
            yield
        except BaseException:
            os.chmod(stored, stat.S_IMODE(mode), dir_fd=self._places.fd(directory))
            raise

    def _rename_backing(
        self, source: Node, old: bytes, target: Node, new: bytes, flags: int
    ) -> None:
        try:
            self._renameat2(source, old, target, new, flags)
            return
        except OSError as error:
            replacing = flags in (0, RENAME_WHITEOUT)
            if not replacing or error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        # A directory may replace an empty one, but no backing directory is empty: the two change
        # places, and then the one that is to go is removed.
        node = self._enter(target, new)
        with self._passable(target, new, node):
            self._places.helpers(node)
        self._renameat2(source, old, target, new, RENAME_EXCHANGE)
        fd = self._places.fd(node)
        for text in self._places.helpers(node):
            os.unlink(text, dir_fd=fd)
        os.rmdir(old, dir_fd=self._places.fd(source))
        if flags & RENAME_WHITEOUT:
            os.mknod(old, stat.S_IFCHR, 0, dir_fd=self._places.fd(source))

    def _renameat2(self, source: Node, old: bytes, target: Node, new: bytes, flags: int) -> None:
        old_fd = self._places.fd(source)
        new_fd = self._places.fd(target)
        if not flags:
            os.rename(old, new, src_dir_fd=old_fd, dst_dir_fd=new_fd)
        else:
            renameat2(old_fd, old, new_fd, new, flags)

    def _left(self, directory: Node, stored: bytes) -> None:
        self._places.discard(directory, stored)
        self._gone(directory, stored)

    def _gone(self, directory: Node, stored: bytes) -> None:
        node = self._table.unlink(directory, stored)
        if node is not None:
            self._table.removed(node)


def _kept_bits(node: Node) -> int:
    """The set-gid bit that a new directory took over from its parent."""
    return stat.S_ISGID if node.setgid else 0
