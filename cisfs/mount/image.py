"""Serving one file, a decrypted image, to the kernel: the whole life of a worker.

A worker must say which request it has in hand before it does anything with it: when it dies, that
request is answered by another, or failed, and never forgotten.  The root of the file system may be
the file itself.

Does not know keys, units or mounts.  One thread; any number of processes may read the same device,
because no answer depends on what was asked before.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass
from typing import Protocol

from cisfs.mount import wire
from cisfs.mount.board import Seat
from cisfs.mount.session import Answer, Session
from cisfs.mount.watch import Watch

_LARGE = 128 << 10  # bytes: what takes long enough for another worker to be worth waking
_DT_REG = stat.S_IFREG >> 12


class Readable(Protocol):
    """What is served: see `cisfs.layer.sealed.ImageReader`."""

    def read(self, offset: int, size: int) -> memoryview:
        """Return what is at `offset`, fewer than `size` bytes only at the end."""


@dataclass(frozen=True, slots=True)
class Shape:
    """How the file is shown: as the root itself, or under a name in a root directory."""

    file: wire.Attr
    root: wire.Attr | None = None
    name: bytes = b""

    @classmethod
    def bare(cls, size: int, mtime: int) -> Shape:
        """The root is the file: for a mount that covers a file, which only root can make."""
        return cls(wire.Attr(wire.ROOT_NODE, stat.S_IFREG | 0o400, size, mtime))

    @classmethod
    def in_directory(cls, name: bytes, size: int, mtime: int, *, for_all: bool) -> Shape:
        """The file lies in the root directory, and both belong to this process's user."""
        uid, gid = os.geteuid(), os.getegid()
        file_mode, root_mode = (0o444, 0o555) if for_all else (0o400, 0o500)
        file = wire.Attr(
            wire.ROOT_NODE + 1, stat.S_IFREG | file_mode, size, mtime, uid=uid, gid=gid
        )
        root = wire.Attr(wire.ROOT_NODE, stat.S_IFDIR | root_mode, 0, mtime, 2, uid, gid)
        return cls(file, root, name)


class ImageServer:
    """Answers requests on `device`, which may have other readers."""

    background = 64  # requests that may be under way with nobody waiting, such as read-ahead

    def __init__(
        self, device: int, image: Readable, shape: Shape, seat: Seat, watch: Watch
    ) -> None:
        self._watch = watch
        self._image = image
        self._shape = shape
        self._seat = seat
        handlers = {
            wire.INIT: self._init,
            wire.LOOKUP: self._lookup,
            wire.GETATTR: self._getattr,
            wire.OPEN: self._open,
            wire.READ: self._read,
            wire.STATFS: self._statfs,
            wire.OPENDIR: self._opendir,
            wire.READDIR: self._readdir,
            wire.RELEASE: self._nothing,
            wire.RELEASEDIR: self._nothing,
        }
        self._session = Session(
            device, handlers, failing="reading the layer failed", size=wire.REQUEST_BUFFER
        )

    def serve(self) -> None:
        """Answer until the file system is gone.  Raises OSError when the device fails."""
        session = self._session
        while not session.ended:
            self._watch.take()
            session.look()
            self._answer_next()

    def _answer_next(self) -> None:
        """Take the next request, waiting for it, and answer it."""
        session = self._session
        request = session.receive()
        if request is None:
            return
        self._seat.take(request.unique)
        if session.has_more():
            self._watch.pass_on()
        session.answer(request)
        self._seat.rest()

    def _init(self, _request: wire.Request) -> Answer:
        reply = wire.init_reply(self._session.request, background=self.background)
        if reply is None:
            raise OSError(errno.EPROTO, "this kernel's FUSE is too old")
        return [reply]

    def _lookup(self, _request: wire.Request) -> Answer:
        if wire.parse_name(self._session.request, self._session.length) != self._shape.name:
            raise FileNotFoundError(errno.ENOENT, "no such name")
        return [wire.entry_reply(self._shape.file)]

    def _getattr(self, request: wire.Request) -> Answer:
        file, root = self._shape.file, self._shape.root
        return [wire.attr_reply(file if root is None or request.node == file.node else root)]

    def _open(self, _request: wire.Request) -> Answer:
        return [wire.open_reply(wire.FOPEN_KEEP_CACHE | wire.FOPEN_NOFLUSH)]

    def _opendir(self, _request: wire.Request) -> Answer:
        return [wire.open_reply(wire.FOPEN_KEEP_CACHE | wire.FOPEN_CACHE_DIR)]

    def _read(self, _request: wire.Request) -> Answer | None:
        wanted = wire.parse_read(self._session.request)
        if wanted.size >= _LARGE:
            self._watch.pass_on()
        return [self._image.read(wanted.offset, wanted.size)]

    def _readdir(self, _request: wire.Request) -> Answer:
        if wire.parse_read(self._session.request).offset:
            return []
        return [wire.dirent(self._shape.file.node, _DT_REG, self._shape.name, 1)]

    def _statfs(self, _request: wire.Request) -> Answer:
        return [wire.statfs_reply(self._shape.file.size)]

    def _nothing(self, _request: wire.Request) -> Answer:
        return []
