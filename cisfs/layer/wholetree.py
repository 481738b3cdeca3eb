"""A vault's tree for whoever reads or copies all of it: nothing is passed over, holes stay holes.

A mounted tree shows what it can and logs the rest; this one raises.  Does not know what is made of
it.  One thread at a time.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from cisfs.errors import IntegrityError
from cisfs.layer.file import EncryptedFile
from cisfs.layer.nodes import Node
from cisfs.layer.tree import VaultTree
from cisfs.layer.vault import Vault


class WholeTree(VaultTree):
    """A tree that lists directories whole or not at all, and once."""

    @property
    def vault(self) -> Vault:
        """The vault that this is the tree of."""
        return self._vault

    def opendir(self, node: int) -> int:
        """Open a directory; IntegrityError if it has an entry whose name cannot be read."""
        directory = self._table[node]
        _, complaints = self._places.listing(directory)
        if complaints:
            path = self._places.plain_path(directory)
            raise IntegrityError(f"{path}: {complaints[0]}; cisfs verify tells more")
        return super().opendir(node)

    def releasedir(self, handle: int) -> None:
        """Close a directory, and forget its listing, which would be half as large as the index."""
        directory, _ = self._listings[handle]
        super().releasedir(handle)
        directory.listing = None

    def names(self, node: int) -> list[bytes]:
        """Return the names in a directory; IntegrityError as `opendir`."""
        handle = self.opendir(node)
        try:
            return [name for name, _, _ in self.readdir(handle, 0)]
        finally:
            self.releasedir(handle)

    def path(self, node: int) -> str:
        """Return a node's path in the vault, for messages."""
        return self._places.plain_path(self._table[node])

    def data_spans(self, handle: int) -> Iterator[tuple[int, int]]:
        """See `EncryptedFile.data_spans`; an error names the file."""
        node, file = self._opened(handle)
        with self._places.naming(node):
            yield from file.data_spans()

    def discard(self, handle: int, offset: int, length: int) -> None:
        """See `EncryptedFile.discard`; an error names the file."""
        node, file = self._opened(handle)
        with self._places.naming(node):
            file.discard(offset, length)

    def is_intact(self, handle: int) -> bool:
        """Check every unit of an open file, decrypting none."""
        return not self._opened(handle)[1].damaged_units()

    def _opened(self, handle: int) -> tuple[Node, EncryptedFile]:
        node = self._table[handle]
        if node.file is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return node, node.file
