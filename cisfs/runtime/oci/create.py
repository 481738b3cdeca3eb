"""Before runc creates a container: its root is mounted, and its configuration says so.

In a mount namespace that is private to this process, which goes on as runc.  A process forked here,
the keeper, mounts everything and then leaves that namespace: it lasts as long as the container.
Does not know how roots are mounted.  Changes namespaces, so it is for a process with one thread.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import platform
import re
import select
from pathlib import Path
from typing import TYPE_CHECKING

from cisfs.errors import CisfsError, EngineError, FormatError
from cisfs.keys import memory
from cisfs.mount import syscalls
from cisfs.mount.assignment import FETCH_PATIENCE, MOUNTED, live, patience
from cisfs.runtime import scratch
from cisfs.runtime.oci import record, spec
from cisfs.runtime.oci.line import Line
from cisfs.runtime.scratch import Kind, Scratch

if TYPE_CHECKING:
    from cisfs.runtime.oci.keeper import Task

FAILURES = (CisfsError, OSError)
_CONFIG = "config.json"
_ID = re.compile(r"[A-Za-z0-9_+.-]{1,1024}")  # as runc has it
_REPORT_LIMIT = 1 << 16  # bytes


def prepare(line: Line, runtime: str) -> None:
    """Mount what the bundle of `line` names, if it names anything; `runtime` is what follows.

    Raises CisfsError, OSError.
    """
    bundle = Path(line.bundle).absolute()
    try:
        config = _load(bundle / (line.config or _CONFIG))
    except (FileNotFoundError, NotADirectoryError):
        return  # runc says it as its users know it
    wanted = spec.wanted(config)
    if wanted is None or not _ID.fullmatch(line.container):
        return  # runc refuses what is no id
    if line.config is not None:
        raise EngineError(
            f"--config {line.config}: a container with encrypted layers is made of its bundle's "
            f"{_CONFIG}"
        )
    kind = scratch.parse(wanted.scratch) if wanted.scratch is not None else Scratch()
    wait = patience(wanted.fetch_timeout) if wanted.fetch_timeout is not None else FETCH_PATIENCE
    if os.geteuid() != 0:
        raise EngineError("containers with encrypted layers take root: their layers are mounted")
    base = bundle / spec.root_path(config)
    if not base.is_dir():
        raise EngineError(f"the root filesystem of the bundle, {base}, is no directory")
    if Path(line.root, line.container).exists():  # as runc looks
        raise EngineError(f"a container {line.container} exists already")
    record.sweep()
    place = record.claim(record.name_of(line.container, _root(line)))
    try:
        _mount(line, runtime, bundle, base, config, wanted.layers, kind, wait, place)
    except BaseException:
        place.remove()
        raise


def refuse_checkpoint(line: Line) -> None:
    """Raise EngineError if a container of ours is to be written to a disk, or read from one."""
    if line.command == "checkpoint":
        ours = (record.BASE / record.name_of(line.container, _root(line))).exists()
    else:
        path = Path(line.bundle, _CONFIG)
        ours = path.exists() and spec.wanted(_load(path)) is not None
    if ours:
        raise EngineError(
            f"{line.command}: a checkpoint has the container's memory in plain, so there is none "
            "of containers with encrypted layers"
        )


def _mount(
    line: Line,
    runtime: str,
    bundle: Path,
    base: Path,
    config: spec.Json,
    layers: tuple[str, ...],
    kind: Scratch,
    wait: float,
    place: record.Place,
) -> None:
    from cisfs.runtime import restored, stack
    from cisfs.runtime.oci import keeper
    from cisfs.runtime.store import STORE

    task = keeper.Task(
        container=line.container,
        bundle=bundle,
        base=base,
        layers=layers,
        scratch=kind,
        fetch_patience=wait,
        store=Path(line.own.get("store", STORE)).absolute(),
        place=place,
        home=_leave(),
        pid_file=Path(line.options["pid-file"]).absolute() if "pid-file" in line.options else None,
        runtime=os.path.abspath(runtime),
        root=_root(line),
        ends_at_once=spec.has_own_pid_namespace(config),
        stop_signal=spec.stop_signal(config),
        policy=Path(line.own["policy"]).absolute() if "policy" in line.own else None,
    )
    _have_kept(task)
    own = restored.environment(stack.layer_places(place.mounts, len(layers)))
    changed = spec.rewritten(
        config,
        str(place.mounts / "root"),
        read_only=kind.kind is Kind.NONE,
        machine=platform.machine(),
        environment=own,
    )
    ours = place.mounts / _CONFIG
    ours.write_text(json.dumps(changed))
    syscalls.mount(str(ours), str(bundle / _CONFIG), flags=syscalls.MS_BIND)


def _root(line: Line) -> str:
    """Return where the runtime keeps its state, for who has another current directory."""
    return os.path.abspath(line.root)


def _leave() -> int:
    """Go into a mount namespace of our own; return a descriptor of the one that was left."""
    home = os.open("/proc/self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
    memory.make_undumpable()  # until runc is executed, whose limits are not to change
    syscalls.leave_mounts()
    return home


def _have_kept(task: Task) -> None:
    """Fork the keeper, and wait until it has mounted everything.  Raises what it raised."""
    from cisfs.mount.server import error_class
    from cisfs.runtime.oci import keeper

    receive, send = os.pipe()
    gc.freeze()  # a collection would write to every page that the servers could share
    pid = os.fork()
    if pid == 0:
        os.close(receive)
        live(lambda: keeper.keep(task, send), send)
    os.close(send)
    report = _reported(receive, pid)
    if report == MOUNTED:
        return
    os.waitpid(pid, 0)
    number, _, message = report.decode(errors="replace").partition("\n")
    if not message:
        with contextlib.suppress(OSError):  # the servers end when what they serve goes
            syscalls.unmount(str(task.place.mounts), syscalls.MNT_DETACH)
        raise EngineError("the keeper of the container died before everything was mounted")
    raise error_class(int(number))(message)


def _reported(receive: int, keeper: int) -> bytes:
    """Return what the keeper writes to the pipe, in one piece; nothing if it ends without a word.

    The servers that it forked have the pipe open, too: its end says nothing about the keeper's.
    """
    end = os.pidfd_open(keeper)
    try:
        ready, _, _ = select.select([receive, end], [], [])
        if receive not in ready:  # it may have written after it was looked at
            ready, _, _ = select.select([receive], [], [], 0)
        return os.read(receive, _REPORT_LIMIT) if ready else b""
    finally:
        os.close(end)
        os.close(receive)


def _load(path: Path) -> spec.Json:
    try:
        config = json.loads(path.read_bytes())
    except ValueError as error:
        raise FormatError(f"{path} is no JSON: {error}") from None
    if not isinstance(config, dict):
        raise FormatError(f"{path} is no JSON object")
    return config
