"""The keeper of a container: mounts its root, then stays for as long as anything serves that.

It is forked in the namespace that the container is made in, mounts everything there, and goes home
to the host's.  When the container's first process ends, it has the scratch's key destroyed, before
the kernel unmounts.  When the last server has ended, as servers do when the last mount of theirs is
gone, it forgets the container.  Killed itself, it takes nothing down.  It also stops the container
when the time of its layers is up.

Does not know the engine or the runtime, but for the file that has the first process's number.  One
thread.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import select
import signal
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path

from setproctitle import setproctitle

from cisfs.keys import memory
from cisfs.layer import admission
from cisfs.layer.sealed import SealedLayer
from cisfs.layer.unlocked import credential_for
from cisfs.mount import attendance, proc, process, scratch, sealed_serving, syscalls
from cisfs.mount.assignment import MOUNTED, TERMINATION, MountOptions, tell
from cisfs.registry.attach import resolve
from cisfs.registry.fetcher_launch import become
from cisfs.runtime import holdings, stack
from cisfs.runtime.deadline import TimeUp
from cisfs.runtime.ending import stop_signal
from cisfs.runtime.holdings import Holding, Opened
from cisfs.runtime.oci import stopping
from cisfs.runtime.oci.record import Place
from cisfs.runtime.scratch import Kind, Scratch
from cisfs.runtime.stack import Stack
from cisfs.runtime.store import scratch_place

# Imported before the servers are forked, so that they share it: what they all need in the end.
_ = (scratch, sealed_serving)

log = logging.getLogger(__name__)

_SEEKING_MS = 50  # between looks for the container's first process


@dataclass(frozen=True, slots=True)
class Task:
    """What to keep.

    `base` is the public root filesystem, `fetch_patience` the seconds that a read waits for what
    was not fetched yet, `runtime` the program that is to create the container, `root` where that
    keeps its state, `pid_file` where it writes the first process's number; `ends_at_once`: no
    process outlives the first; `stop_signal` names what asks the container to end, None where the
    engine does not say; `policy` is the trust policy, if it is not the host's.
    """

    container: str
    bundle: Path
    base: Path
    layers: tuple[str, ...]
    scratch: Scratch
    fetch_patience: float
    store: Path
    place: Place
    home: int
    pid_file: Path | None
    runtime: str
    root: str
    ends_at_once: bool
    stop_signal: str | None
    policy: Path | None


def keep(task: Task, report: int) -> int:
    """Mount, report, and stay; return the exit code.  For a process that has just been forked.

    Raises CisfsError, OSError: what could not be mounted, with everything undone.
    """
    maker = os.pidfd_open(os.getppid())  # becomes the runtime
    memory.keep_private()
    process.leave_home()
    process.shed_descriptors(keep_stderr=False)
    process.start_logging(task.place.log, to_stderr=False)
    for number in TERMINATION:
        signal.signal(number, signal.SIG_IGN)  # it ends with what it keeps
    setproctitle(f"cisfs: keeper {task.container}")
    memory.lock_for_good()
    with ExitStack() as undo:
        mounted, held = _mount(task, undo)
        undo.pop_all()
    tell(report, MOUNTED)
    os.close(report)
    syscalls.enter_namespace(task.home, syscalls.CLONE_NEWNS)
    _Watch(task, mounted, held, maker).run()
    if mounted.scratch is not None:
        mounted.scratch.leave_loop()
    task.place.remove()
    return 0


def _mount(task: Task, undo: ExitStack) -> tuple[Stack, Sequence[Holding]]:
    stack.mount_memory(task.place.mounts)
    undo.callback(syscalls.unmount, str(task.place.mounts), syscalls.MNT_DETACH)
    plan = stack.Plan(
        place=task.place.mounts,
        base=task.base,
        scratch=task.scratch,
        store=task.store,
        options=MountOptions(
            read_only=True,
            log_file=task.place.log,
            home=task.home,
            fetch=become,
            fetch_patience=task.fetch_patience,
        ),
    )
    paths = [resolve(layer, task.policy) for layer in task.layers]
    for path in paths:
        attendance.begin(path, plan.options)
    # Not what the environment says: it is the engine's, and may be what that is told by others.
    admits = admission.of_host(task.policy)
    opened = holdings.open_layers(paths, credential_for, admits)
    gc.freeze()
    mounted = stack.mount(plan, opened.layers, undo)
    held = (*opened.holdings, *holdings.of_scratch(scratch_place(task.scratch, task.store)))
    task.place.write(_record(task, opened, held, mounted))
    holdings.confirm(opened)
    return mounted, held


def _record(
    task: Task, opened: Opened, held: Sequence[Holding], mounted: Stack
) -> dict[str, object]:
    return {
        "container": task.container,
        "runtime": task.runtime,
        "runtime_root": task.root,
        "bundle": str(task.bundle),
        "stop_signal": task.stop_signal,
        "ends_at_once": task.ends_at_once,
        "keeper": os.getpid(),
        "servers": mounted.servers,
        "layers": [
            {
                "path": str(layer.path),
                "identity": layer.identity if isinstance(layer, SealedLayer) else None,
            }
            for layer in opened.layers
        ],
        "holdings": [asdict(each) for each in held],
        "scratch": str(task.scratch),
        "device": mounted.scratch.loop if mounted.scratch else None,
        "started": time.time(),
    }


class _Watch:
    """Waits for the end of the container, and of its servers."""

    def __init__(self, task: Task, mounted: Stack, held: Sequence[Holding], maker: int) -> None:
        self._task = task
        self._time_up = TimeUp((each.key for each in held), stop_signal(task.stop_signal))
        self._poll = select.poll()
        self._servers = {os.pidfd_open(pid): pid for pid in mounted.servers}
        for handle in self._servers:
            self._poll.register(handle, select.POLLIN)
        self._maker = maker  # a descriptor of the process that creates the container
        is_lost = task.scratch.kind is Kind.EPHEMERAL and task.ends_at_once
        self._scratch = mounted.scratch if is_lost else None
        self._born = _start_time(os.getpid())
        self._first = -1  # a descriptor of the container's first process
        self._awaits_first = self._scratch is not None or not self._servers

    def run(self) -> None:
        """Return when no server is left; where there never was one, when no first process is."""
        served = bool(self._servers)
        while self._servers if served else self._awaits_first:
            is_seeking = self._awaits_first and self._first < 0
            for handle, _ in self._poll.poll(self._patience(is_seeking)):
                self._end(handle)
            if is_seeking:
                self._look_for_first()
            number = self._time_up.due()
            if number is not None:
                self._stop(number)

    def _patience(self, is_seeking: bool) -> float | None:
        """Return for how many milliseconds to wait at most."""
        seconds = self._time_up.wait()
        if is_seeking:
            return _SEEKING_MS
        return None if seconds is None else seconds * 1000

    def _stop(self, number: int) -> None:
        """Send a signal to the container, as its time is up."""
        task = self._task
        log.warning("the time for which the layers were unlocked is up: signal %d", number)
        runtime = stopping.Runtime(task.runtime, task.root, task.container, task.ends_at_once)
        runtime.end(number)

    def _look_for_first(self) -> None:
        """Find the container's first process; none is to come when its maker has ended."""
        is_made = bool(select.select([self._maker], [], [], 0)[0])
        self._first = self._opened_first()
        if self._first >= 0:
            self._poll.register(self._first, select.POLLIN)
        elif is_made:
            self._first_ended()

    def _end(self, handle: int) -> None:
        """Take note of the end of a process."""
        self._poll.unregister(handle)
        os.close(handle)
        if handle != self._first:
            os.waitpid(self._servers.pop(handle), 0)
            return
        self._first_ended()

    def _first_ended(self) -> None:
        self._first, self._awaits_first = -1, False
        if self._scratch is not None:
            self._scratch.destroy()

    def _opened_first(self) -> int:
        """Return a descriptor of the container's first process, -1 while there is none."""
        try:
            pid = self._first_pid()
            handle = os.pidfd_open(pid)
        except (OSError, ValueError, KeyError, TypeError):
            return -1
        if _start_time(pid) < self._born:  # of an earlier container in the same place
            os.close(handle)
            return -1
        return handle

    def _first_pid(self) -> int:
        if self._task.pid_file is not None:
            return int(self._task.pid_file.read_text())
        state = Path(self._task.root, self._task.container, "state.json")  # runc's own
        return int(json.loads(state.read_text())["init_process_pid"])


def _start_time(pid: int) -> int:
    """Return when a process started, in ticks since the machine did (proc(5)); 0 if it is gone."""
    fields = proc.stat(pid)
    return int(fields[19]) if fields else 0
