"""Requests from /dev/fuse and answers to it, whatever is served.

A session of our own instead of pyfuse3's: it answers from the buffers that it was given, and starts
in the time of a fork.  Does not know what requests mean beyond their headers.  One thread; other
processes may read the same device.
"""

from __future__ import annotations

import errno
import logging
import os
import select
from collections.abc import Callable, Mapping, Sequence
from time import monotonic_ns

from cisfs.errors import CisfsError
from cisfs.mount import wire

# How long to look for the next request before sleeping: a client that reads one small file after
# the other asks again within microseconds, and to be woken takes tens of them.  A cold tar of
# 15,500 files took 1.1 s instead of 1.75 with one worker.
_PATIENCE_NS = 200_000
_NO_ANSWER = frozenset({wire.FORGET, wire.BATCH_FORGET, wire.DESTROY})
# What handlers answer in the course of things: no such name, no such operation, all over.
_USUAL = frozenset({errno.ENOENT, errno.ENOSYS, errno.EOPNOTSUPP, errno.ESHUTDOWN})

Buffer = bytes | memoryview
Answer = Sequence[Buffer]
Handler = Callable[[wire.Request], Answer | None]

log = logging.getLogger(__name__)


class Session:
    """One end of a device: `receive` a request, `answer` it, until `ended`.

    `request` holds the bytes of the last one, `length` of them.
    """

    def __init__(
        self, device: int, handlers: Mapping[int, Handler], *, failing: str, size: int
    ) -> None:
        """`handlers` are by opcode, and return the reply's body, None for none yet, or raise.

        `failing` begins what is logged of the operating system's errors.  `size` is that of the
        largest request, in bytes.
        """
        self.request = bytearray(size)
        self.length = 0
        self.ended = False
        self._device = device
        self._handlers = handlers
        self._failing = failing
        self._ready = select.poll()
        self._ready.register(device, select.POLLIN)
        # On a single processor the client could not even ask while we look.
        self._patience = _PATIENCE_NS if len(os.sched_getaffinity(0)) > 1 else 0

    def look(self) -> bool:
        """Look for a request for a moment; tells whether there is one."""
        end = monotonic_ns() + self._patience
        while not self._ready.poll(0):
            if monotonic_ns() >= end:
                return False
        return True

    def has_more(self) -> bool:
        """Whether another request waits."""
        return bool(self._ready.poll(0))

    def receive(self) -> wire.Request | None:
        """Take the next request, waiting for it; None if there was none after all.

        Raises OSError when the device fails.
        """
        try:
            self.length = os.readv(self._device, [self.request])
        except OSError as error:
            if error.errno in (errno.ENODEV, errno.ECONNABORTED):
                self.ended = True
            # Taken back before it was read; nothing there, for a device that does not wait.
            elif error.errno not in (errno.ENOENT, errno.EAGAIN):
                raise
            return None
        return wire.parse_request(self.request)

    def answer(self, request: wire.Request, handler: Handler | None = None) -> None:
        """Have a request handled, by `handler` if one is given, and send what came of it."""
        if request.opcode in _NO_ANSWER:
            return
        result = self._handled(request, handler or self._handlers.get(request.opcode))
        if result is not None:
            self.send(request, result)

    def send(self, request: wire.Request, result: Answer | int) -> None:
        """Reply with a body, or with an errno."""
        if isinstance(result, int):
            reply: Answer = [wire.error_reply(request.unique, result)]
        else:
            reply = [wire.reply_header(request.unique, sum(map(len, result))), *result]
        try:
            os.writev(self._device, reply)
        except OSError as error:
            # Nobody waits any more: interrupted, answered by another after a re-send, or unmounted.
            if error.errno not in (errno.ENOENT, errno.ENODEV):
                raise

    def _handled(self, request: wire.Request, handler: Handler | None) -> Answer | int | None:
        """Return the reply's body, or an errno.  The one place that makes errnos of exceptions."""
        if handler is None:
            return errno.ENOSYS
        try:
            return handler(request)
        except OSError as error:
            if error.filename is None and error.errno not in _USUAL:
                log.error("%s: %s", self._failing, error.strerror or error)
            return error.errno or errno.EIO
        except CisfsError as error:
            log.error("%s", error)
        except Exception:
            log.exception("unexpected error in request %d", request.opcode)
        return errno.EIO
