"""An index shown as a directory for a while: a FUSE mount, served by a process of its own.

For programs that take nothing but directories.  Does not know what is shown.  Forks, so it is for
processes with one thread.

The mount point is a new directory that only its owner can enter, and FUSE lets nobody else in who
gets there.  Modes are not checked: whoever mounts may read all of it, as he could read the source.
The server ends when it is unmounted; when its parent dies, it takes the mount away itself.
"""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, cast

from cisfs.build.index import Index
from cisfs.build.view import SourceTree
from cisfs.errors import MountError
from cisfs.keys import memory
from cisfs.mount import bdi, points, unmount
from cisfs.mount.assignment import MOUNTED, TERMINATION, MountOptions, forked, settle, tell
from cisfs.mount.loop import DirectLoop, stand_in_for_trio
from cisfs.mount.server import Server

if TYPE_CHECKING:
    from types import FrameType

    from cisfs.layer.tree import VaultTree

_OPTIONS = frozenset({"ro", "nosuid", "nodev", "noexec", "fsname=cisfs-seal", "subtype=cisfs"})
_TICK = 1.0  # bounds the wait for a signal that came between two looks, as in cisfs.mount.serving


@contextlib.contextmanager
def shown(index: Index) -> Iterator[Path]:
    """Show `index` in a directory while the block runs; yields its path.

    What becomes unreadable is logged to stderr, and its reader gets EIO.  Raises NoFuseError,
    MountError, OSError.
    """
    points.require_fuse()
    mountpoint = points.resolved(tempfile.mkdtemp(prefix="cisfs-seal-"))
    try:
        server = _start(index, mountpoint)
        try:
            yield mountpoint
        except BaseException:
            with contextlib.suppress(MountError):
                _stop(server)
            raise
        _stop(server)
    finally:
        with contextlib.suppress(OSError):  # the server removes it too, unless it was killed
            mountpoint.rmdir()


def _start(index: Index, mountpoint: Path) -> Server:
    receive, send = os.pipe()
    parent = os.getpid()

    def work() -> int:
        os.close(receive)
        return _serve(index, mountpoint, send, parent)

    pid = forked(work, send)
    os.close(send)
    server = Server(pid, mountpoint)
    try:
        with os.fdopen(receive, "rb") as reports:
            report = reports.read()
    except BaseException:  # Ctrl-C: the child must not mount for nobody
        os.kill(pid, signal.SIGTERM)
        raise
    entry = points.mounted_at(mountpoint)
    if report != MOUNTED or entry is None:
        with contextlib.suppress(MountError):
            server.stop()
        _, _, said = report.decode(errors="replace").partition("\n")
        said = said or "its server ended early"
        raise MountError(f"cannot show the source to the maker of images: {said}")
    bdi.read_ahead(entry.device)
    return server


def _stop(server: Server) -> None:
    """Unmount, and await the server's end.  Raises MountError."""
    entry = points.mounted_at(server.mountpoint)
    if entry is not None:
        with contextlib.suppress(OSError):  # then the server does it, when it is told to end
            unmount.depart(server.mountpoint, entry.device)
    server.stop()


def _serve(index: Index, mountpoint: Path, report: int, parent: int) -> int:
    """Be the server that was forked by `parent`; return the exit code."""
    settle(MountOptions(detach=False), parent)
    memory.lock_for_good()
    gc.freeze()  # a collection would write to every page of the index, and so copy it
    stand_in_for_trio()
    from cisfs.mount import pyfuse

    # With FUSE_POSIX_ACL the kernel checks modes as well, and would keep an ordinary user from what
    # belongs to root in his own tar (fs/fuse/inode.c, process_init_reply).
    pyfuse.VaultOperations.enable_acl = False
    loop = DirectLoop(lambda: True)
    _watch_signals(loop)
    # A session with "ro" calls no method of a tree that a SourceTree does not have.
    tree = cast("VaultTree", SourceTree(index))
    session = pyfuse.Session(tree, str(mountpoint), set(_OPTIONS), loop)
    entry = points.mounted_at(mountpoint)
    try:
        tell(report, MOUNTED)
        os.close(report)
        session.serve()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        session.close()
        if entry is not None and points.mounted_at(mountpoint) == entry:
            unmount.detach(mountpoint)
        with contextlib.suppress(OSError):
            mountpoint.rmdir()
    return 0


def _watch_signals(loop: DirectLoop) -> None:
    """Have a signal end the session soon; no handler does more than set flags."""
    asked = False

    def terminate(_signal: int, _frame: FrameType | None) -> None:
        nonlocal asked
        asked = loop.attention = True

    def look(_signal: int, _frame: FrameType | None) -> None:
        loop.attention = asked

    for number in TERMINATION:
        signal.signal(number, terminate)
    signal.signal(signal.SIGALRM, look)
    signal.setitimer(signal.ITIMER_REAL, _TICK, _TICK)
