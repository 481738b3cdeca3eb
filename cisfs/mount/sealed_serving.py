"""The supervisor of a mounted sealed layer: from the fork to the end of its last worker.

As root it mounts the file system that is in the image (`erofs`); otherwise the image itself, as one
file in the mount point.  It never answers a request: workers do, unprivileged, with the device and
the layer's file and nothing else.  So it may wait for the mount, and outlives their deaths.

It ends when the mount is gone, or on SIGTERM, SIGINT and SIGHUP: then it unmounts first, and
detaches a mount that is in use, whose users get EIO from then on.  When it dies itself its workers
die with it, and the kernel fails every request: nothing hangs.

One thread.  Does not know FUSE requests.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from setproctitle import setproctitle

from cisfs.errors import MountError
from cisfs.keys import memory
from cisfs.mount import erofs, fusermount, points, process, records, unmount
from cisfs.mount.absent import Line
from cisfs.mount.assignment import IMAGE_NAME, MOUNTED, Assignment, go_home, live, settle, tell
from cisfs.mount.attendance import Attendance
from cisfs.mount.image import ImageServer, Shape
from cisfs.mount.lazy_image import LazyImageServer
from cisfs.mount.watch import Watch
from cisfs.mount.workers import Crew

if TYPE_CHECKING:
    from cisfs.layer.sealed import SealedLayer
    from cisfs.mount.board import Seat

_MOST_WORKERS = 8
_SERVE = b"s"  # from the mounting process: requests begin to come
_MOUNTING_TICK = 0.02  # seconds: workers that cannot live are to be known for that soon
_TICK = 0.5  # seconds between two looks at workers that may hang
_SIGNALS = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD})


def serve(layer: SealedLayer, assignment: Assignment) -> int:
    """Mount and supervise; return the exit code.  For a process that has just been forked."""
    settle(assignment.options, assignment.parent)
    memory.lock_for_good()
    _be_called("supervisor", assignment.source)
    signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    supervisor = _Supervisor(layer, assignment)
    try:
        supervisor.mount()
        go_home(assignment.options)
        tell(assignment.report, MOUNTED)
        os.close(assignment.report)
        supervisor.watch()
    finally:
        supervisor.finish()
    return 0


class _Supervisor:
    """One mount, its workers, and the way to its end."""

    def __init__(self, layer: SealedLayer, assignment: Assignment) -> None:
        self._layer = layer
        self._assignment = assignment
        self._device = -1
        self._crew: Crew | None = None
        self._watch = Watch()
        self._attendance = Attendance(layer.partial, assignment.options)
        self._record: records.Record | None = None
        self._mounted = ""  # "major:minor"
        self._helper = 0  # a process that mounts or unmounts
        self._requests = 0  # signals that asked for the end

    # -- mounting ------------------------------------------------------------------------------

    def mount(self) -> None:
        """Mount, with workers already at work.  Raises MountError, NoFuseError, OSError."""
        self._attendance.look()
        if os.geteuid() == 0:
            self._mount_file_system()
        else:
            self._mount_image()
        entry = points.mounted_at(self._assignment.mountpoint)
        if entry is None:
            raise MountError(f"nothing shows at {self._assignment.mountpoint}")
        self._mounted = entry.device
        if entry.fstype == points.EROFS and self._is_recorded:
            self._record = records.Record(entry, self._assignment.source)

    @property
    def _is_recorded(self) -> bool:
        """Whether it is for users to unmount: a container's layers are for nobody else to find."""
        options = self._assignment.options
        return options.home is None and (options.detach or options.foreground)

    def _mount_file_system(self) -> None:
        size, mtime = self._size_and_time()
        self._device = os.open(points.FUSE_DEVICE, os.O_RDWR | os.O_CLOEXEC)
        assignment = self._assignment
        plan = erofs.Plan(
            layer=assignment.source,
            mountpoint=assignment.mountpoint,
            device=self._device,
            through_loop=assignment.options.loop_device,
            recorded=self._is_recorded,
        )
        receive, send = os.pipe()
        supervisor = os.getpid()
        self._helper = os.fork()
        if self._helper == 0:
            process.end_with_parent(supervisor, signal.SIGKILL)
            live(lambda: _mount(plan, send), send)
        os.close(send)
        try:
            said = os.read(receive, 1)
            if said == _SERVE:
                said = b""
                self._start(Shape.bare(size, mtime))
            self._await_helper(receive, said)
        finally:
            os.close(receive)

    def _await_helper(self, receive: int, said: bytes) -> None:
        """Look after the workers, whom the mounting process waits for, until it has reported.

        `said` is the beginning of its report.  Raises MountError.
        """
        ready = select.poll()
        ready.register(receive, select.POLLIN)
        while True:
            self._look()
            if self._crew is not None and self._crew.is_hopeless:
                raise MountError("the workers of the mount die at once: see the log")
            if not ready.poll(_MOUNTING_TICK * 1000):
                continue
            piece = os.read(receive, 4096)
            said += piece
            if not piece:
                break
        os.waitpid(self._helper, 0)
        self._helper = 0
        if said != MOUNTED:
            _, _, message = said.decode(errors="replace").partition("\n")
            raise MountError(message or "the mounting process died")

    def _mount_image(self) -> None:
        size, mtime = self._size_and_time()
        options, mountpoint = self._assignment.options, self._assignment.mountpoint
        self._device = fusermount.mount(
            mountpoint, self._assignment.source, allow_other=options.allow_other
        )
        self._start(
            Shape.in_directory(IMAGE_NAME.encode(), size, mtime, for_all=options.allow_other)
        )

    def _size_and_time(self) -> tuple[int, int]:
        return self._layer.image_size, int(os.fstat(self._layer.fd).st_mtime)

    # -- workers -------------------------------------------------------------------------------

    def _start(self, shape: Shape) -> None:
        if self._layer.partial is not None:
            os.set_blocking(self._device, False)
        options = self._assignment.options
        count = options.workers or min(len(os.sched_getaffinity(0)), _MOST_WORKERS)
        supervisor = os.getpid()

        def work(seat: Seat) -> None:
            self._work(shape, seat, supervisor)

        self._crew = Crew(self._device, count, work, patience=options.worker_patience)
        gc.collect()
        gc.freeze()  # what the workers will not change, they go on sharing
        self._crew.start()

    def _work(self, shape: Shape, seat: Seat, supervisor: int) -> None:
        """A worker's life."""
        _be_called("worker", self._assignment.source)
        go_home(self._assignment.options)
        partial = self._layer.partial
        kept = {self._device, self._layer.fd, self._watch.fd}
        process.keep_descriptors(kept | ({partial.fd} if partial is not None else set()))
        reader = self._layer.reader(before_waiting=self._watch.pass_on)
        memory.lock_for_good()
        process.drop_privileges()
        memory.keep_private()
        process.end_with_parent(supervisor, signal.SIGKILL)
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        if partial is None:
            ImageServer(self._device, reader, shape, seat, self._watch).serve()
        else:
            LazyImageServer(
                *(self._device, reader, shape, seat, self._watch),
                presence=partial.presence,
                line=Line(partial.fd),
                patience=self._assignment.options.fetch_patience,
            ).serve()

    def _look(self) -> None:
        self._attendance.look()
        if self._crew is not None:
            self._crew.look()

    # -- the end -------------------------------------------------------------------------------

    def watch(self) -> None:
        """Look after the workers until the mount is gone, or a signal has asked for its end."""
        while not self._is_over():
            got = signal.sigtimedwait(_SIGNALS, _TICK)
            if got is not None and got.si_signo != signal.SIGCHLD:
                self._requests += 1
                if self._requests == 1:
                    self._depart()

    def _is_over(self) -> bool:
        self._look()
        if self._crew is None or self._crew.ended or self._requests > 1:
            return True
        return self._requests > 0 and self._helper_ended()

    def _depart(self) -> None:
        """Have another process unmount: while that waits for the workers, they are looked after."""
        self._helper = os.fork()
        if self._helper == 0:
            process.keep_descriptors(set())
            live(self._unmount, None)

    def _unmount(self) -> int:
        unmount.depart(self._assignment.mountpoint, self._mounted)
        return 0

    def _helper_ended(self) -> bool:
        if self._helper and os.waitpid(self._helper, os.WNOHANG)[0]:
            self._helper = 0
        return not self._helper

    def finish(self) -> None:
        """Leave no worker, no mount that nobody answers for, and no record."""
        self._attendance.leave()
        if self._crew is not None:
            self._crew.dismiss()
        if self._device >= 0:
            os.close(self._device)
        if self._helper:
            os.kill(self._helper, signal.SIGKILL)
            os.waitpid(self._helper, 0)
        entry = points.mounted_at(self._assignment.mountpoint)
        if entry is not None and self._mounted and entry.device == self._mounted:
            with contextlib.suppress(MountError):
                unmount.detach(self._assignment.mountpoint)
        if self._record is not None:
            self._record.remove()


def _be_called(role: str, source: Path) -> None:
    """Show up as `role` in ps(1); what is not UTF-8 in the layer's path is shown as it can be."""
    setproctitle(f"cisfs: {role} {os.fsencode(source).decode(errors='replace')}")


def _mount(plan: erofs.Plan, report: int) -> int:
    erofs.mount(plan, lambda: tell(report, _SERVE))
    tell(report, MOUNTED)
    return 0
