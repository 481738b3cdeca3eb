"""Serving one file, a decrypted image, to the kernel: the whole life of a worker.

A session on /dev/fuse of our own instead of pyfuse3's, because a worker must say which request it
has in hand before it does anything with it: when it dies, that request is answered by another, or
failed, and never forgotten.  It also lets the root of the file system be the file itself, answers
from the buffer that was decrypted into, and starts in the time of a fork.

Does not know keys, units or mounts.  One thread; any number of processes may read the same device,
because no answer depends on what was asked before.
"""

from __future__ import annotations

import errno
import logging
import os
import select
import stat
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic_ns
from typing import Protocol

from cisfs.errors import CisfsError
from cisfs.mount import wire
from cisfs.mount.board import Seat
from cisfs.mount.watch import Watch

# How long to look for the next request before sleeping: a client that reads one small file after
# the other asks again within microseconds, and to be woken takes tens of them.  A cold tar of
# 15,500 files took 1.1 s instead of 1.75 with one worker.
_PATIENCE_NS = 200_000
_LARGE = 128 << 10  # bytes: what takes long enough for another worker to be worth waking
_BACKGROUND = 64  # requests that may be under way with nobody waiting, such as read-ahead
_NO_ANSWER = frozenset({wire.FORGET, wire.BATCH_FORGET, wire.DESTROY})
_DT_REG = stat.S_IFREG >> 12

Buffer = bytes | memoryview
Answer = Sequence[Buffer]

log = logging.getLogger(__name__)


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

    def __init__(
        self, device: int, image: Readable, shape: Shape, seat: Seat, watch: Watch
    ) -> None:
        self._watch = watch
        self._device = device
        self._image = image
        self._shape = shape
        self._seat = seat
        self._request = bytearray(wire.REQUEST_BUFFER)
        self._length = 0
        self._handlers: dict[int, Callable[[wire.Request], Answer]] = {
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

    def serve(self) -> None:
        """Answer until the file system is gone.  Raises OSError when the device fails."""
        ready = select.poll()
        ready.register(self._device, select.POLLIN)
        # On a single processor the client could not even ask while we look.
        patience = _PATIENCE_NS if len(os.sched_getaffinity(0)) > 1 else 0
        while True:
            self._watch.take()
            end = monotonic_ns() + patience
            while not ready.poll(0) and monotonic_ns() < end:
                pass
            try:
                self._length = os.readv(self._device, [self._request])
            except OSError as error:
                if error.errno in (errno.ENODEV, errno.ECONNABORTED):
                    return
                if error.errno != errno.ENOENT:  # the request was taken back before it was read
                    raise
                continue
            request = wire.parse_request(self._request)
            self._seat.take(request.unique)
            if ready.poll(0):
                self._watch.pass_on()
            if request.opcode not in _NO_ANSWER:
                self._send(request.unique, self._answer(request))
            self._seat.rest()

    def _answer(self, request: wire.Request) -> Answer | int:
        """Return the reply's body, or an errno.  The one place that makes errnos of exceptions."""
        handler = self._handlers.get(request.opcode)
        if handler is None:
            return errno.ENOSYS
        try:
            return handler(request)
        except OSError as error:
            if error.filename is None and error.errno != errno.ENOENT:
                log.error("reading the layer failed: %s", error)
            return error.errno or errno.EIO
        except CisfsError as error:
            log.error("%s", error)
        except Exception:
            log.exception("unexpected error in request %d", request.opcode)
        return errno.EIO

    def _send(self, unique: int, answer: Answer | int) -> None:
        if isinstance(answer, int):
            reply: Sequence[Buffer] = [wire.error_reply(unique, answer)]
        else:
            reply = [wire.reply_header(unique, sum(map(len, answer))), *answer]
        try:
            os.writev(self._device, reply)
        except OSError as error:
            # Nobody waits any more: interrupted, answered by another after a re-send, or unmounted.
            if error.errno not in (errno.ENOENT, errno.ENODEV):
                raise

    def _init(self, _request: wire.Request) -> Answer:
        reply = wire.init_reply(self._request, background=_BACKGROUND)
        if reply is None:
            raise OSError(errno.EPROTO, "this kernel's FUSE is too old")
        return [reply]

    def _lookup(self, _request: wire.Request) -> Answer:
        if wire.parse_name(self._request, self._length) != self._shape.name:
            raise FileNotFoundError(errno.ENOENT, "no such name")
        return [wire.entry_reply(self._shape.file)]

    def _getattr(self, request: wire.Request) -> Answer:
        file, root = self._shape.file, self._shape.root
        return [wire.attr_reply(file if root is None or request.node == file.node else root)]

    def _open(self, _request: wire.Request) -> Answer:
        return [wire.open_reply(wire.FOPEN_KEEP_CACHE | wire.FOPEN_NOFLUSH)]

    def _opendir(self, _request: wire.Request) -> Answer:
        return [wire.open_reply(wire.FOPEN_KEEP_CACHE | wire.FOPEN_CACHE_DIR)]

    def _read(self, _request: wire.Request) -> Answer:
        wanted = wire.parse_read(self._request)
        if wanted.size >= _LARGE:
            self._watch.pass_on()
        return [self._image.read(wanted.offset, wanted.size)]

    def _readdir(self, _request: wire.Request) -> Answer:
        if wire.parse_read(self._request).offset:
            return []
        return [wire.dirent(self._shape.file.node, _DT_REG, self._shape.name, 1)]

    def _statfs(self, _request: wire.Request) -> Answer:
        return [wire.statfs_reply(self._shape.file.size)]

    def _nothing(self, _request: wire.Request) -> Answer:
        return []
