"""The supervisor's care for the fetcher of its layer: that there is one, as long as it is needed.

It keeps a line to the fetcher, which thereby knows that the layer is in use; when the line breaks
before all is here, another fetcher is started, after a while if they end at once.

Does not know what a fetcher does.  For the supervisor, which has one thread; never waits.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
from pathlib import Path
from time import monotonic

from cisfs.errors import BusyError
from cisfs.layer.filling import claim
from cisfs.layer.lazy import PartialLayer, is_partial
from cisfs.mount import process
from cisfs.mount.absent import connected
from cisfs.mount.assignment import MountOptions, go_home, heed_termination

_FIRST_WAIT = 1.0  # seconds from one start to the next, doubled each time
_LONGEST_WAIT = 5.0
_LASTED = 2.0  # seconds after which a fetcher that has gone did not end at once

log = logging.getLogger(__name__)


def begin(layer: Path, options: MountOptions) -> None:
    """Start the fetcher of the layer at `layer` if it is not all here, before it is opened.

    It gets ready while keys are asked for.  Needs no key.  Raises OSError.
    """
    if options.fetch is not None and is_partial(layer):
        line = connected(str(layer.parent))
        if line is None:
            _start(layer.parent.absolute(), options)
        else:
            line.close()


class Attendance:
    """One layer's fetcher, seen from one mount."""

    def __init__(self, partial: PartialLayer | None, options: MountOptions) -> None:
        """`partial` is None where nothing is missing, and nothing is to be done."""
        self._partial = partial
        self._options = options
        self._line: socket.socket | None = None
        self._started = -_LASTED
        self._wait = _FIRST_WAIT

    def look(self) -> None:
        """See that there is a fetcher; to be called now and then."""
        if self._partial is None or self._is_alive():
            return
        if self._partial.presence.is_complete:
            self._partial = None
            return
        self._line = connected(f"/proc/self/fd/{self._partial.fd}")
        if self._line is None and monotonic() >= self._started + self._wait:
            self._start(self._partial.directory)

    def leave(self) -> None:
        """Let the fetcher know that it is not needed by this mount any more."""
        if self._line is not None:
            self._line.close()
            self._line = None
        self._partial = None

    def _is_alive(self) -> bool:
        if self._line is None:
            return False
        try:
            if self._line.recv(1):
                return True  # nothing was asked, but who speaks lives
        except BlockingIOError:
            return True
        except OSError:
            pass
        self._line.close()
        self._line = None
        return False

    def _start(self, directory: Path) -> None:
        now = monotonic()
        lasted = now - self._started >= _LASTED
        self._wait = _FIRST_WAIT if lasted else min(2 * self._wait, _LONGEST_WAIT)
        self._started = now
        if self._options.fetch is None:
            log.warning("%s is not all here, and this program cannot fetch the rest", directory)
            return
        _start(directory, self._options)


def _start(directory: Path, options: MountOptions) -> None:
    """Have a process become the fetcher that is nobody's child, unless there is one.

    The claim is made here, so that nobody starts a second one while the first gets ready.
    """
    try:
        claimed = claim(directory)
    except BusyError:
        return
    child = os.fork()
    if child == 0:
        try:
            os.setsid()
            if os.fork() == 0:
                _become(directory, claimed, options)
        finally:
            os._exit(0)
    os.close(claimed)
    os.waitpid(child, 0)


def _become(directory: Path, claimed: int, options: MountOptions) -> None:
    """Be the fetcher, in the host's namespace, with nothing of the supervisor's but its log."""
    try:
        go_home(options)
        os.chdir("/")
        process.keep_descriptors({claimed})
        heed_termination()
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        if options.fetch is not None:
            options.fetch(directory, claimed, options.log_file)
    except BaseException:
        log.exception("cannot start a fetcher for %s", directory)
