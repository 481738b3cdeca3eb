"""The process that serves a scratch image as one file: from the fork to the end of the session.

The kernel writes pages back through it, also when memory is short.  So it is exempt from the
throttling of writers, keeps its own memory from being paged out, is the last that the OOM killer
takes, and uses no file system but the one that the image is kept on.

It ends when the kernel ends the session, which follows the end of the file system on the image, or
on SIGTERM, SIGINT and SIGHUP; whoever still uses that file system gets EIO from then on.  SIGUSR1
has the image destroyed.  Knows neither keys nor file systems.  One thread.
"""

from __future__ import annotations

import contextlib
import errno
import gc
import logging
import os
import select
import signal
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from setproctitle import setproctitle

from cisfs.errors import CisfsError
from cisfs.keys import memory
from cisfs.mount import process, wire
from cisfs.mount.assignment import TERMINATION, MountOptions, go_home, settle
from cisfs.mount.session import Answer, Session

if TYPE_CHECKING:
    from types import FrameType

    from cisfs.layer.block_image import BlockImage

DESTROY_SIGNAL = signal.SIGUSR1
_BACKGROUND = 64  # requests that may be under way with nobody waiting, which is most of them

log = logging.getLogger(__name__)


def serve(
    image: BlockImage, device: int, mountpoint: Path, options: MountOptions, parent: int
) -> int:
    """Serve; return the exit code.  For a process that has just been forked by `parent`.

    `device` is /dev/fuse, mounted; `mountpoint` is only a name to be known by.
    """
    go_home(options)
    settle(options, parent)
    setproctitle(f"cisfs: scratch {os.fsencode(mountpoint).decode(errors='replace')}")
    requests = _Signals()
    process.keep_descriptors({device, *requests.descriptors, *image.descriptors()})
    process.join_writeback()
    memory.lock_for_good()
    process.drop_privileges()
    memory.keep_private()
    if options.foreground or not options.detach:
        process.end_with_parent(parent)
    gc.collect()
    gc.freeze()
    code = 1
    try:
        ScratchServer(device, image, requests).serve()
        code = 0
    finally:
        code = code or _close(image, mountpoint)
    return code


def _close(image: BlockImage, mountpoint: Path) -> int:
    """Let the image go in good order; 0, or 1 when that failed, which the log says."""
    try:
        image.close()
    except (OSError, CisfsError) as error:
        log.error("closing the scratch of %s failed: %s", mountpoint, error)
        return 1
    return 0


class _Signals:
    """What signals have asked for; each makes `wakeup` readable."""

    def __init__(self) -> None:
        self.end = False
        self.destroy = False
        self.wakeup, self._send = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        for number in TERMINATION:
            signal.signal(number, self._ask_for_end)
        signal.signal(DESTROY_SIGNAL, self._ask_to_destroy)
        signal.set_wakeup_fd(self._send, warn_on_full_buffer=False)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {*TERMINATION, DESTROY_SIGNAL})

    @property
    def descriptors(self) -> set[int]:
        return {self.wakeup, self._send}

    def drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            os.read(self.wakeup, 64)

    def _ask_for_end(self, _signal: int, _frame: FrameType | None) -> None:
        self.end = True

    def _ask_to_destroy(self, _signal: int, _frame: FrameType | None) -> None:
        self.destroy = True


class ScratchServer:
    """Answers requests on `device`, which has no other readers."""

    def __init__(self, device: int, image: BlockImage, requests: _Signals) -> None:
        self._image = image
        self._requests = requests
        self._attr = wire.Attr(wire.ROOT_NODE, stat.S_IFREG | 0o600, image.size, 0)
        handlers = {
            wire.INIT: self._init,
            wire.GETATTR: self._getattr,
            wire.OPEN: self._open,
            wire.READ: self._read,
            wire.WRITE: self._write,
            wire.STATFS: self._statfs,
            wire.FSYNC: self._fsync,
            wire.FALLOCATE: self._fallocate,
            wire.RELEASE: self._nothing,
        }
        self._session = Session(
            device, handlers, failing="the scratch failed", size=wire.WRITE_BUFFER
        )
        self._request = memoryview(self._session.request)
        os.set_blocking(device, False)
        self._sleep = select.poll()
        self._sleep.register(device, select.POLLIN)
        self._sleep.register(requests.wakeup, select.POLLIN)

    def serve(self) -> None:
        """Answer until the session is over, or a signal ends it.  Raises OSError."""
        session, requests = self._session, self._requests
        while not session.ended:
            if not session.look():
                while self._image.tidy() and not session.has_more():
                    pass
                self._sleep.poll()
                requests.drain()
            if requests.end:
                return
            if requests.destroy:
                requests.destroy = False
                self._image.destroy()
            request = session.receive()
            if request is not None:
                session.answer(request)

    def _init(self, _request: wire.Request) -> Answer:
        reply = wire.init_reply(self._request, background=_BACKGROUND, max_write=wire.MAX_WRITE)
        if reply is None:
            raise OSError(errno.EPROTO, "this kernel's FUSE is too old")
        return [reply]

    def _getattr(self, _request: wire.Request) -> Answer:
        return [wire.attr_reply(self._attr)]

    def _open(self, _request: wire.Request) -> Answer:
        flags = wire.FOPEN_DIRECT_IO | wire.FOPEN_PARALLEL_DIRECT_WRITES | wire.FOPEN_NOFLUSH
        return [wire.open_reply(flags)]

    def _read(self, _request: wire.Request) -> Answer:
        wanted = wire.parse_read(self._request)
        return [self._image.read(wanted.offset, wanted.size)]

    def _write(self, _request: wire.Request) -> Answer:
        offset, data = wire.parse_write(self._request)
        if offset + len(data) > self._image.size:
            raise OSError(errno.ENOSPC, "a write beyond the end")
        self._image.write(offset, data)
        return [wire.write_reply(len(data))]

    def _fsync(self, _request: wire.Request) -> Answer:
        self._image.sync()
        return []

    def _fallocate(self, _request: wire.Request) -> Answer:
        offset, size, mode = wire.parse_fallocate(self._request)
        if not mode & (wire.FALLOC_PUNCH_HOLE | wire.FALLOC_ZERO_RANGE):
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        self._image.discard(offset, min(size, self._image.size - offset))
        return []

    def _statfs(self, _request: wire.Request) -> Answer:
        return [wire.statfs_reply(self._image.size)]

    def _nothing(self, _request: wire.Request) -> Answer:
        return []
