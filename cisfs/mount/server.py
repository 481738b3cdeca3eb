"""Starting, awaiting and stopping a server process, as the command that mounts sees it.

Does not know what the process does between its report and its end (`serving`).  `start` forks, so
it is for processes with one thread.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cisfs.errors import CisfsError, MountError
from cisfs.mount import bdi, points, process, records, unmount
from cisfs.mount.assignment import (
    IMAGE_NAME,
    MOUNTED,
    TERMINATION,
    Assignment,
    MountOptions,
    forked,
)

if TYPE_CHECKING:
    from types import FrameType

    from cisfs.layer.opening import Layer

__all__ = [
    "IMAGE_NAME",
    "Launched",
    "MountOptions",
    "Server",
    "check",
    "error_class",
    "launch",
    "start",
]

_POLL = 0.01


@dataclass(frozen=True)
class Server:
    """A running server process, a child of this one, and where it mounted."""

    pid: int
    mountpoint: Path

    def stop(self, timeout: float = 30.0) -> None:
        """Unmount, also when in use, and wait for the process.  Raises MountError.

        After `timeout` seconds the process is killed, and the dead mount is taken away.
        """
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGTERM)
        code = self.exit_code(timeout)
        if code is None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
            with contextlib.suppress(MountError):
                unmount.detach(self.mountpoint)
            raise MountError(
                f"the server of {self.mountpoint} did not end within {timeout:g} s and was killed; "
                "cisfs verify tells whether anything was in flight"
            )
        # One that dies of the signal had not come so far as to mount, or to handle it.
        if code not in (0, -signal.SIGTERM):
            raise MountError(f"the server of {self.mountpoint} {process.ending(code)}")

    def wait(self) -> int:
        """Wait for the process, passing signals that ask for its end on; return its exit code."""

        def forward(_signal: int, _frame: FrameType | None) -> None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGTERM)

        for number in TERMINATION:
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup(1) left SIGHUP
                signal.signal(number, forward)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def exit_code(self, timeout: float) -> int | None:
        """Return the exit code, or None when the process still runs after `timeout` seconds."""
        end = time.monotonic() + timeout
        while True:
            try:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
            except ChildProcessError:
                return 0  # awaited already
            if pid:
                return os.waitstatus_to_exitcode(status)
            if time.monotonic() > end:
                return None
            time.sleep(_POLL)


def check(layer: Path, mountpoint: Path) -> None:
    """Raise NoFuseError or MountError if a mount of `layer` on `mountpoint` cannot succeed.

    Cheap, so that nobody types a passphrase in vain.  A dead mount of ours there is cleaned up.
    """
    points.require_fuse()
    mountpoint = points.resolved(mountpoint)
    _clear_dead_mount(mountpoint)
    points.check_mountpoint(mountpoint, points.resolved(layer))


def start(layer: Layer, mountpoint: Path, options: MountOptions) -> Server:
    """Fork a process that serves `layer` at `mountpoint`, and wait until it is mounted there.

    This process's copy of the layer is of no more use then: call `layer.abandon()`.  Raises
    MountError, NoFuseError, OSError, or what opening the tree raised.
    """
    return launch(layer, mountpoint, options).mounted()


def launch(layer: Layer, mountpoint: Path, options: MountOptions) -> Launched:
    """Do the first half of `start`: several servers may be on their way to their mounts at once.

    Raises MountError, NoFuseError, OSError.
    """
    check(layer.path, mountpoint)
    source, mountpoint = points.resolved(layer.path), points.resolved(mountpoint)
    receive, send = os.pipe()
    assignment = Assignment(source, mountpoint, options, report=send, parent=os.getpid())

    def work() -> int:
        os.close(receive)
        return _serve(layer, assignment)

    pid = forked(work, send)
    os.close(send)
    return Launched(Server(pid, mountpoint), receive)


@dataclass(frozen=True)
class Launched:
    """A server process that may not have mounted yet; call `mounted`, once."""

    server: Server
    report: int

    def mounted(self) -> Server:
        """Wait until it has.  Raises what `start` raises."""
        with os.fdopen(self.report, "rb") as reports:
            _await_mounted(self.server, reports.read)
        mountpoint = self.server.mountpoint
        entry = points.mounted_at(mountpoint)
        if entry is None or entry.fstype not in (points.FSTYPE, points.EROFS):
            self.server.stop()
            raise MountError(f"the server mounted, but nothing shows at {mountpoint}")
        if entry.fstype == points.FSTYPE:
            bdi.read_ahead(entry.device)
        return self.server


def _serve(layer: Layer, assignment: Assignment) -> int:
    """Be the server that the kind of layer takes; return the exit code."""
    from cisfs.layer.sealed import SealedLayer

    if isinstance(layer, SealedLayer):
        from cisfs.mount import sealed_serving

        return sealed_serving.serve(layer, assignment)
    from cisfs.mount import serving

    return serving.serve(layer, assignment)


def _clear_dead_mount(mountpoint: Path) -> None:
    """Take away what a server that was killed left at `mountpoint`."""
    entry = points.mounted_at(mountpoint)
    if entry is not None and unmount.is_abandoned(entry):
        unmount.detach(mountpoint)
        records.forget(entry.device)


def _await_mounted(server: Server, read_report: Callable[[], bytes]) -> None:
    """Wait for the child's report; raises what the child raised."""
    try:
        report = read_report()
    except BaseException:  # Ctrl-C: the child must not mount for nobody
        os.kill(server.pid, signal.SIGTERM)
        raise
    if report == MOUNTED:
        return
    code = server.exit_code(10.0)
    number, _, message = report.decode(errors="replace").partition("\n")
    if not report:
        raise MountError(f"the server process {process.ending(code or 0)} before it had mounted")
    raise error_class(int(number))(message)


def error_class(exit_code: int) -> type[CisfsError]:
    """Return the class of `cisfs.errors` that ends a command with `exit_code`."""
    classes: list[type[CisfsError]] = [CisfsError]
    for found in classes:
        if found.exit_code == exit_code:
            return found
        classes.extend(found.__subclasses__())
    return CisfsError
