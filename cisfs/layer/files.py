"""The open files of a tree: one encrypted file for each node, however often it is open.

Does not know node numbers, names or FUSE.  One thread at a time; what `read` returns is valid until
the next call.
"""

from __future__ import annotations

import errno
import os
from dataclasses import replace

from cisfs.format.geometry import HEADER_SIZE
from cisfs.format.header import FileHeader
from cisfs.layer.directory import open_own
from cisfs.layer.file import EncryptedFile, FileContext
from cisfs.layer.nodes import Node
from cisfs.layer.places import Places

_FLAGS = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK


class OpenFiles:
    """Opens, reads, writes and closes the files of nodes."""

    def __init__(self, context: FileContext, places: Places) -> None:
        self._writing = context
        self._reading = replace(context, journal=None)
        self._places = places
        # Root may read without leaving traces in the backing files' access times, which would
        # cost a metadata write for each.
        self._read_flags = _FLAGS | os.O_RDONLY | (os.O_NOATIME if os.geteuid() == 0 else 0)

    def open(self, node: Node, *, write: bool) -> None:
        """Open a node's file once more.  Raises FormatError, IntegrityError, OSError."""
        self._ready(node, write=write)
        node.opens += 1

    def adopt(self, node: Node) -> None:
        """Count as open a file that was just made."""
        node.opens += 1

    def release(self, node: Node) -> None:
        """Undo one `open`; the last closes the file."""
        node.opens -= 1
        if node.opens <= 0:
            self.close(node)

    def close(self, node: Node) -> None:
        """Close a node's file; its time of modification stays what the writer's kernel thinks.

        With write-back caching the kernel keeps that time itself and writes the content later, and
        it does not say so where the time is still the one that it was told.
        """
        if node.file is None:
            return
        if node.written:
            status = os.fstat(node.file.fd)
            if status.st_mtime_ns != node.kept_mtime_ns:
                os.utime(node.file.fd, ns=(status.st_atime_ns, node.kept_mtime_ns))
        node.written = False
        node.file.close()
        node.file = None

    def read(self, node: Node, offset: int, size: int) -> memoryview:
        """Return up to `size` bytes of an open file from `offset`."""
        with self._places.naming(node):
            return self._file(node).read(offset, size)

    def write(self, node: Node, offset: int, data: bytes | memoryview) -> int:
        """Write all of `data` to an open file; returns its length."""
        node.written = True
        with self._places.naming(node):
            return self._file(node).write(offset, data)

    def truncate(self, node: Node, size: int) -> None:
        """Set the size of a file, open or not."""
        file = self._ready(node, write=True)
        try:
            with self._places.naming(node):
                file.truncate(size)
        finally:
            if node.opens <= 0:
                self.close(node)

    def sync(self, node: Node, datasync: bool) -> None:
        """Make an open file's content durable, and its metadata too unless `datasync`."""
        self._file(node).sync(datasync)

    def file_id(self, node: Node) -> bytes:
        """Return the id in a file's header; nothing else of it is read or checked."""
        if node.file is not None:
            return node.file.file_id
        parent, stored = self._places.at(node)
        fd = open_own(parent, stored, self._read_flags)
        try:
            return FileHeader.parse(os.pread(fd, HEADER_SIZE, 0)).file_id
        finally:
            os.close(fd)

    def _file(self, node: Node) -> EncryptedFile:
        if node.file is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        return node.file

    def _ready(self, node: Node, *, write: bool) -> EncryptedFile:
        """Return the node's file, opened (again) for writing if need be."""
        if node.file is not None and (node.file.writable or not write):
            return node.file
        parent, stored = self._places.at(node)
        fd = open_own(parent, stored, _FLAGS | os.O_RDWR if write else self._read_flags)
        context = self._writing if write else self._reading
        try:
            with self._places.naming(node):
                if node.file is not None:
                    node.file.reopen(fd, context)
                else:
                    node.file = EncryptedFile.open(fd, context)
        except BaseException:
            os.close(fd)
            raise
        return node.file
