"""Where nodes are stored: directory descriptors, directory ids, stored names, listings.

Keeps what costs a system call or a decryption to find again.  Knows nothing of files' contents,
metadata or FUSE.  One thread at a time.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections import OrderedDict
from collections.abc import Iterator

from cisfs.errors import CisfsError, FormatError, IntegrityError
from cisfs.format.names import is_helper, is_long, is_reserved
from cisfs.layer.directory import read_id, sync_id
from cisfs.layer.nodes import Node, NodeTable
from cisfs.layer.vault import Vault

_DIR_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_DIRECTORIES = 256  # descriptors kept, of the directories used last


class Places:
    """Finds the backing object of a node."""

    def __init__(self, vault: Vault, table: NodeTable) -> None:
        self._vault = vault
        self._table = table
        self._open: OrderedDict[Node, int] = OrderedDict()
        self._unsynced: set[int] = set()  # inodes of new directories, their ids not yet durable
        self._device = os.fstat(vault.fd).st_dev

    def fd(self, directory: Node) -> int:
        """Return a descriptor of the backing directory; valid until another is asked for."""
        way = []
        while directory is not self._table.root and directory not in self._open:
            way.append(directory)
            directory = self._parent(directory)[0]
        fd = self._vault.fd
        if directory is not self._table.root:
            fd = self._open[directory]
            self._open.move_to_end(directory)
        for directory in reversed(way):
            fd = self._open[directory] = self._opened(fd, self._parent(directory)[1])
            if len(self._open) > _OPEN_DIRECTORIES:
                os.close(self._open.popitem(last=False)[1])
        return fd

    def _opened(self, parent: int, stored: bytes) -> int:
        try:
            return os.open(stored, _DIR_FLAGS, dir_fd=parent)
        except PermissionError:
            # A directory that its owner may not list can still be passed through.
            return os.open(stored, _DIR_FLAGS | os.O_PATH, dir_fd=parent)

    def _parent(self, node: Node) -> tuple[Node, bytes]:
        for link in node.links:
            return link
        raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))

    def at(self, node: Node) -> tuple[int, bytes]:
        """Return (descriptor of the parent, stored name); OSError ESTALE if it has no place."""
        if node is self._table.root:
            return self._vault.fd, b"."
        parent, stored = self._parent(node)
        return self.fd(parent), stored

    def path(self, node: Node) -> bytes:
        """Return a path to the backing object, for calls that take no descriptor."""
        return b"/proc/self/fd/%d/%s" % self.at(node)

    def status(self, node: Node) -> os.stat_result:
        """stat(2) of the backing object."""
        fd, stored = self.at(node)
        return os.stat(stored, dir_fd=fd, follow_symlinks=False)

    def look(self, parent: Node, stored: bytes) -> os.stat_result:
        """stat(2) of an entry; OSError EXDEV where another file system is mounted inside."""
        status = os.stat(stored, dir_fd=self.fd(parent), follow_symlinks=False)
        if status.st_dev != self._device:
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        return status

    def forget(self, directory: Node) -> None:
        """Close the descriptor of a directory that goes away."""
        fd = self._open.pop(directory, None)
        if fd is not None:
            os.close(fd)

    def close(self) -> None:
        """Close every descriptor."""
        for fd in self._open.values():
            os.close(fd)
        self._open.clear()

    # -- names -----------------------------------------------------------------------------

    def dir_id(self, directory: Node) -> bytes:
        """Return the id of a directory, which its names are encrypted with."""
        if directory.dir_id is None:
            try:
                directory.dir_id = read_id(self.fd(directory), heal=not self._vault.read_only)
            except FormatError as error:
                raise self.named(directory, error) from None
        return directory.dir_id

    def stored(self, parent: Node, name: bytes) -> bytes:
        """Return the stored name of `name` in `parent`."""
        return self._vault.stored_names.stored(self.dir_id(parent), name)

    def prepare(self, parent: Node, name: bytes, stored: bytes) -> None:
        """Make ready for a new entry."""
        parent.listing = None
        self._vault.stored_names.prepare(self.fd(parent), self.dir_id(parent), name, stored)

    def discard(self, parent: Node, stored: bytes) -> None:
        """Clean up after an entry that is gone, or was not made; one that is there stays."""
        parent.listing = None
        if is_long(stored):
            try:
                self.look(parent, stored)
            except FileNotFoundError:
                self._vault.stored_names.discard(self.fd(parent), stored)

    def listing(self, directory: Node) -> tuple[list[tuple[bytes, bytes]], list[str]]:
        """Return a directory's entries as (name, stored name), and complaints about the others."""
        if directory.listing is not None:
            return directory.listing, []
        dir_id, fd = self.dir_id(directory), self.fd(directory)
        entries, complaints = [], []
        for text in os.listdir(fd):
            stored = os.fsencode(text)
            if is_reserved(stored):
                continue
            try:
                entries.append((self._vault.stored_names.plain(fd, dir_id, stored), stored))
            except CisfsError as error:
                complaints.append(f"{text}: {error}")
        directory.listing = entries
        return entries, complaints

    def helpers(self, directory: Node) -> list[str]:
        """What an empty directory holds of cisfs's own; OSError ENOTEMPTY if it has an entry."""
        found = os.listdir(self.fd(directory))
        if not all(is_helper(os.fsencode(text)) for text in found):
            raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY))
        return found

    # -- messages and durability -----------------------------------------------------------

    def plain_path(self, node: Node) -> str:
        """The path of a node in the vault, for messages."""
        parts: list[str] = []
        while node is not self._table.root:
            link = next(iter(node.links), None)
            if link is None:
                parts.append("(deleted)")
                break
            parent, stored = link
            name = os.fsdecode(stored)
            with contextlib.suppress(CisfsError, OSError):
                plain = self._vault.stored_names.plain(self.fd(parent), self.dir_id(parent), stored)
                name = os.fsdecode(plain)
            parts.append(name)
            node = parent
        return "/" + "/".join(reversed(parts))

    def named(self, node: Node, error: CisfsError) -> CisfsError:
        """The same error, saying which file it is about."""
        return type(error)(f"{self.plain_path(node)}: {error}")

    @contextlib.contextmanager
    def naming(self, node: Node) -> Iterator[None]:
        """Say in a FormatError or IntegrityError which file it is about."""
        try:
            yield
        except (FormatError, IntegrityError) as error:
            raise self.named(node, error) from None

    def is_new(self, directory: Node) -> None:
        """Note that a directory was made and its id is not durable."""
        self._unsynced.add(directory.ino)

    def sync(self, directory: Node) -> None:
        """Make a directory's entries durable.  Raises OSError."""
        sync_id(self.fd(directory))
        self._unsynced.discard(directory.ino)

    def sync_way_to(self, node: Node) -> None:
        """Make durable what is needed to find a node again: the ids of new directories."""
        if not self._unsynced:
            return
        directories = [parent for parent, _ in node.links]
        while directories:
            directory = directories.pop()
            if directory.ino in self._unsynced:
                self.sync(directory)
            directories += [parent for parent, _ in directory.links]
