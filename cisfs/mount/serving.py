"""The process that serves a mounted vault: from the fork to the last byte written.

Does not know FUSE requests (`pyfuse`) or what a tree does with them.  One thread.  Imports what is
heavy only when it runs, in the forked process.

It ends when the kernel ends the session, which follows an unmount, or on SIGTERM, SIGINT and
SIGHUP.  Then a process forked from it unmounts (this one must not: the kernel may be waiting for it
to answer), and it goes on answering until that process is done.  A mount still in use is written
back and detached first; whoever uses it gets ENOTCONN from then on.  A second signal ends the wait.
In each case the tree is closed last, so nothing is lost that fsync(2), close(2) or a finished
unmount acknowledged.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from cisfs.errors import CisfsError, MountError
from cisfs.keys import memory
from cisfs.mount import libfuse, points, unmount
from cisfs.mount.assignment import MOUNTED, TERMINATION, Assignment, go_home, live, settle, tell
from cisfs.mount.loop import DirectLoop, stand_in_for_trio

if TYPE_CHECKING:
    from types import FrameType

    from cisfs.layer.tree import VaultTree
    from cisfs.layer.vault import Vault
    from cisfs.mount.pyfuse import Session

# A signal in the microsecond between the loop's look at its flag and the read that waits for the
# next request would be noticed only with that request.  A tick a second bounds the wait.
_TICK = 1.0

log = logging.getLogger(__name__)


def serve(vault: Vault, assignment: Assignment) -> int:
    """Mount and serve; return the exit code.  For a process that has just been forked."""
    settle(assignment.options, assignment.parent)
    memory.lock_for_good()
    stand_in_for_trio()
    from cisfs.layer.tree import VaultTree

    code = 1
    tree = VaultTree(vault)
    served = False
    try:
        served = _session(tree, assignment)
    finally:
        code = _close(tree, assignment.source)
    return code if served else 1


def _session(tree: VaultTree, assignment: Assignment) -> bool:
    """Mount, report it, and answer until the end; tells whether that was an orderly one."""
    from cisfs.mount import pyfuse

    mountpoint, options = assignment.mountpoint, assignment.options
    departure = _Departure(mountpoint)
    loop = DirectLoop(departure.attend)
    _watch_signals(loop, departure)
    allowed = libfuse.mount_options(
        assignment.source, read_only=options.read_only, allow_other=options.allow_other
    )
    session = pyfuse.Session(tree, str(mountpoint), allowed, loop, options.first_owner)
    try:
        entry = points.mounted_at(mountpoint)
        departure.device = entry.device if entry is not None else ""
        go_home(options)
        tell(assignment.report, MOUNTED)
        os.close(assignment.report)
        return _answered(session)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        session.close()
        departure.finish()


def _answered(session: Session) -> bool:
    """Answer requests to the end; what breaks the session off has only the log to be said in."""
    try:
        session.serve()
    except Exception:
        log.exception("the session broke off")
        return False
    return True


def _close(tree: VaultTree, source: Path) -> int:
    """Write the last of it and let the vault go; 0, or 1 when that failed."""
    try:
        tree.close()
    except (OSError, CisfsError) as error:
        log.error("closing the vault %s failed: %s", source, error)
        return 1
    return 0


def _watch_signals(loop: DirectLoop, departure: _Departure) -> None:
    """Have `departure.attend` called soon after a signal; no handler does more than set flags."""

    def terminate(_signal: int, _frame: FrameType | None) -> None:
        departure.requests += 1
        loop.attention = True

    def look(_signal: int, _frame: FrameType | None) -> None:
        loop.attention = departure.requests > 0

    for number in TERMINATION:
        signal.signal(number, terminate)
    signal.signal(signal.SIGCHLD, look)
    signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, _TICK, _TICK)


class _Departure:
    """The way from a termination signal to the end of the session."""

    def __init__(self, mountpoint: Path) -> None:
        self.requests = 0
        self.device = ""
        self._mountpoint = mountpoint
        self._helper = 0

    def attend(self) -> bool:
        """Between two requests: begin to unmount, or look how far it is; True: end."""
        if self.requests > 1:
            return True
        if not self._helper:
            self._helper = self._begin()
            return False
        return self._helper_ended(os.WNOHANG)

    def finish(self) -> None:
        """After the session: leave no mount behind that nobody answers for."""
        if self._helper:
            self._helper_ended(0)
        entry = points.mounted_at(self._mountpoint)
        if entry is not None and entry.device == self.device:
            with contextlib.suppress(MountError):
                unmount.detach(self._mountpoint)

    def _begin(self) -> int:
        pid = os.fork()
        if pid == 0:
            for number in (*TERMINATION, signal.SIGCHLD, signal.SIGALRM):
                signal.signal(number, signal.SIG_DFL)
            # Not the session's descriptor, or the mount would outlive the server; nor the lock.
            os.closerange(3, os.sysconf("SC_OPEN_MAX"))
            live(lambda: _depart(self._mountpoint, self.device), None)
        return pid

    def _helper_ended(self, how: int) -> bool:
        pid, _ = os.waitpid(self._helper, how)
        if pid:
            self._helper = 0
        return bool(pid)


def _depart(mountpoint: Path, device: str) -> int:
    unmount.depart(mountpoint, device)
    return 0
