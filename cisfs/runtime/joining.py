"""A further command in a running container of the embedded engine: `cisfs exec`.

Enters the namespaces of the container's supervisor, where runc's state and the mounts are, and lets
runc do the rest.  Does not know how the container came to be.  For a process with one thread.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from cisfs.errors import EngineError
from cisfs.mount import proc, syscalls
from cisfs.runtime import account_files, engine
from cisfs.runtime.account import Account
from cisfs.runtime.listing import Container
from cisfs.runtime.spelling import bounding

_PASSED_ON = (signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
_RUNC_FAILED = 255
_LOG_LIMIT = 1 << 16  # bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What to execute, and how it differs from the container's own command."""

    arguments: Sequence[str]
    terminal: bool = False
    user: str | None = None
    working_directory: str | None = None
    environment: Mapping[str, str] = field(default_factory=dict)


def execute(container: Container, order: Order) -> int:
    """Run the command to its end; return its exit code, or docker's for one that cannot run.

    Raises EngineError when the container has just ended, or for an unknown user.
    """
    runc = engine.find()
    who = _account(container, order.user) if order.user is not None else None
    bounding = _bounding(container) if who is not None and who.uid == 0 else []
    log, file = (os.memfd_create(name, 0) for name in ("cisfs runc log", "cisfs process"))
    words = [runc, "--log", f"/proc/self/fd/{log}", "--log-format", "json"]
    words += ["--root", str(container.place / "runc"), "exec"]
    words += ["--tty"] if order.terminal else []
    words += ["--process", f"/proc/self/fd/{file}", container.state.identifier]
    _enter(container)
    own = json.loads((container.place / "config.json").read_text())["process"]
    os.write(file, json.dumps(_process(own, order, who, bounding)).encode())
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        try:
            os.execv(runc, words)  # noqa: S606 - no shell is involved
        finally:
            os._exit(_RUNC_FAILED)
    code = _await(child)
    if code != _RUNC_FAILED:
        return code
    # runc has said on standard error what is wrong; the log tells its failures from the command's.
    text = os.pread(log, _LOG_LIMIT, 0).decode(errors="replace")
    return engine.classify(text, code).exit_code if text.strip() else code


def _process(
    own: dict[str, Any], order: Order, who: Account | None, bounding: Sequence[str]
) -> dict[str, Any]:
    """Return the process to execute, made of the container's own; not argv, which all can see.

    Root has what the container may have (`bounding`), any other user nothing, as at the start.
    """
    environment = [f"{name}={value}" for name, value in order.environment.items()]
    process = {
        **{name: value for name, value in own.items() if name != "consoleSize"},
        "args": list(order.arguments),
        "terminal": order.terminal,
        "env": [
            *(each for each in own["env"] if each.partition("=")[0] not in order.environment),
            *environment,
        ],
    }
    if order.working_directory is not None:
        process["cwd"] = order.working_directory
    if who is not None:
        user = {"uid": who.uid, "gid": who.gid, "additionalGids": list(who.groups)}
        held = {kind: list(bounding) for kind in ("bounding", "effective", "permitted")}
        process |= {
            "user": user,
            "capabilities": held if who.uid == 0 else {"bounding": own["capabilities"]["bounding"]},
        }
    return process


def _account(container: Container, user: str) -> Account:
    try:
        root = os.open(f"/proc/{container.state.init}/root", os.O_PATH | os.O_DIRECTORY)
    except OSError:
        raise EngineError(f"container {container.state.name} has just ended") from None
    try:
        return account_files.resolve(root, user)
    finally:
        os.close(root)


def _bounding(container: Container) -> list[str]:
    """Return the capabilities that a process of the container can have at most, proc(5)."""
    return bounding(proc.status(container.state.init))


def _enter(container: Container) -> None:
    """Go to the supervisor's namespaces; the next fork is the first process of ours in its PIDs."""
    namespaces = []
    try:
        for name in ("pid", "mnt"):
            path = f"/proc/{container.state.supervisor}/ns/{name}"
            namespaces.append(os.open(path, os.O_RDONLY))
        for descriptor, kind in zip(
            namespaces, (syscalls.CLONE_NEWPID, syscalls.CLONE_NEWNS), strict=True
        ):
            syscalls.enter_namespace(descriptor, kind)
    except FileNotFoundError:
        raise EngineError(f"container {container.state.name} has just ended") from None
    finally:
        for descriptor in namespaces:
            os.close(descriptor)


def _await(child: int) -> int:
    """Pass signals to runc, which passes them to the command; return the exit code."""

    def forward(number: int, _: FrameType | None) -> None:
        os.kill(child, number)

    for number in _PASSED_ON:
        signal.signal(number, forward)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to runc as well
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code
