"""Whose turn it is among the workers of a mount to wait for the next request.

One has the watch, and keeps it while requests are small and what they ask for is in memory: a
client that reads one file after the other then meets one awake worker, with the units at hand that
it just decrypted, instead of waking a different one each time.  Whoever has to wait for a disk, or
has much to do, passes the watch on first.

Does not know requests.  The watch is a lock of the process on a file in memory (fcntl(2)), so the
kernel takes it from a worker that dies.  Made before the workers are forked.
"""

from __future__ import annotations

import fcntl
import os


class Watch:
    """The watch of one mount; each process has its own idea of whether it holds it."""

    def __init__(self) -> None:
        """Make a watch that nobody has."""
        self.fd = os.memfd_create("cisfs watch")
        self._is_mine = False

    def take(self) -> None:
        """Wait for the watch, unless it is ours.  Raises OSError."""
        if not self._is_mine:
            fcntl.lockf(self.fd, fcntl.LOCK_EX)
            self._is_mine = True

    def try_take(self) -> bool:
        """Take the watch if nobody has it; tells whether it is ours.  Raises OSError."""
        if not self._is_mine:
            try:
                fcntl.lockf(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):  # either, fcntl(2)
                return False
            self._is_mine = True
        return True

    def pass_on(self) -> None:
        """Let another have the watch, if it is ours.  Raises OSError."""
        if self._is_mine:
            self._is_mine = False
            fcntl.lockf(self.fd, fcntl.LOCK_UN)
