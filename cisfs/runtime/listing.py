"""The containers of the embedded engine on this host: names, states, where to reach them.

A file /run/cisfs/embedded/ID.json names the process that keeps a container, which holds a lock on
it: who gets the lock has found the record of a container whose keeper was killed.  The state, with
its command line, is in that process's memory and never in a file.  Does not know how a container is
run.  Any number of processes may list and register side by side.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from cisfs.errors import EngineError
from cisfs.layer.locking import is_locked
from cisfs.mount import proc, rundir
from cisfs.runtime import workspace
from cisfs.runtime.holdings import Holding

DIRECTORY = workspace.BASE / "embedded"
CREATED, RUNNING, EXITED = "created", "running", "exited"
_TRIES = 100  # a state is rewritten in place; a reader who comes in between looks again
_SHORT = 12  # characters of an id that serve as a name


@dataclass(frozen=True, slots=True)
class State:
    """What is known of a container."""

    identifier: str
    name: str
    image: str
    command: tuple[str, ...]
    created: float  # seconds since 1970
    detached: bool = False
    stop_signal: str | None = None
    status: str = CREATED
    supervisor: int = 0  # process that has the container's mounts and processes in its namespaces
    init: int = 0  # first process of the container
    ended: float = 0.0
    exit_code: int = 0
    holdings: tuple[Holding, ...] = ()


@dataclass(frozen=True, slots=True)
class Container:
    """A container on the list: `keeper` is the process that reports of it, and takes signals."""

    keeper: int
    log: tuple[int, ...]  # descriptors of the keeper; empty when output went elsewhere
    state: State

    @property
    def place(self) -> Path:
        """Its directory, empty but in the supervisor's mount namespace."""
        return workspace.BASE / f"run-{self.state.identifier}"


class Registration:
    """The entry of a container that this process keeps."""

    def __init__(self, state: State, log: tuple[int, ...] = ()) -> None:
        """Put the container on the list.  Raises EngineError when the name is taken."""
        self._state = state
        self._memory = os.memfd_create("cisfs state")
        self._write()
        self._path = DIRECTORY / f"{state.identifier}.json"
        while not self._list(log):
            pass  # another container ended just now, and removed the empty directory

    def _list(self, log: tuple[int, ...]) -> bool:
        name = self._state.name
        with _listing() as directory:
            if any(other.state.name == name for other in _read_all()):
                os.close(self._memory)
                raise EngineError(
                    f"--name {name}: there is a container of that name; "
                    f"stop and remove it (cisfs rm --force {name}), or choose another"
                )
            try:
                flags = os.O_RDWR | os.O_CREAT | os.O_EXCL
                # Not by its path: there may be another list by now, in which others look for names.
                self._lock = os.open(self._path.name, flags, 0o600, dir_fd=directory)
            except FileNotFoundError:
                return False
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            record = {"keeper": os.getpid(), "state": self._memory, "log": log}
            os.write(self._lock, json.dumps(record).encode())
        return True

    @property
    def identifier(self) -> str:
        """The container's id."""
        return self._state.identifier

    @property
    def name(self) -> str:
        """The container's name."""
        return self._state.name

    def started(self, supervisor: int, process: int) -> None:
        """Note that it runs; `process` is its first, as the supervisor knows it."""
        self._state = replace(
            self._state, status=RUNNING, supervisor=supervisor, init=_seen_here(supervisor, process)
        )
        self._write()

    def ended(self, exit_code: int) -> None:
        """Note that it has ended."""
        self._state = replace(
            self._state, status=EXITED, ended=time.time(), exit_code=exit_code, supervisor=0, init=0
        )
        self._write()

    def withdraw(self) -> None:
        """Take the container off the list."""
        self._path.unlink(missing_ok=True)
        os.close(self._lock)
        os.close(self._memory)
        workspace.remove_empty(DIRECTORY)

    def _write(self) -> None:
        text = json.dumps(asdict(self._state)).encode()
        os.truncate(self._memory, 0)
        os.pwrite(self._memory, text, 0)


def default_name(identifier: str) -> str:
    """Return the name of a container that was given none."""
    return identifier[:_SHORT]


def containers() -> Iterator[Container]:
    """Yield every container, the oldest first; forget those whose keepers were killed.

    Raises EngineError if there are some and only root may know of them.
    """
    found = _read_all()
    if not found:
        workspace.remove_empty(DIRECTORY)
    yield from sorted(found, key=lambda container: container.state.created)


def current(container: Container) -> Container | None:
    """Return what the list says of a container by now; None if it is not on it any more."""
    identifier = container.state.identifier
    return next((one for one in containers() if one.state.identifier == identifier), None)


def _read_all() -> list[Container]:
    found = []
    if DIRECTORY.is_dir() and not os.access(DIRECTORY, os.R_OK | os.X_OK):
        raise EngineError("the containers that run here are root's: use sudo")
    paths = list(DIRECTORY.glob("*.json")) if DIRECTORY.is_dir() else []
    for path in paths:
        container = _read(path)
        if container is not None:
            found.append(container)
    return found


def find(wanted: str) -> Container:
    """Return the container of that name, id, or beginning of an id.  Raises EngineError."""
    listed = list(containers())
    named = [one for one in listed if wanted in (one.state.name, one.state.identifier)]
    named = named or [one for one in listed if wanted and one.state.identifier.startswith(wanted)]
    if len(named) > 1:
        raise EngineError(f"{wanted!r} is the beginning of more than one container's id")
    if not named:
        raise EngineError(f"no container {wanted!r}; `cisfs ps -a` lists them")
    return named[0]


def find_running(wanted: str) -> Container:
    """Return the running container of that name.  Raises EngineError when it does not run."""
    container = find(wanted)
    if container.state.status != RUNNING:
        raise EngineError(f"container {wanted} is not running")
    return container


@contextmanager
def _listing() -> Iterator[int]:
    """Let nobody else add to the list; gives the descriptor of its directory."""
    directory = rundir.claim(workspace.BASE, DIRECTORY)
    try:
        yield directory
    finally:
        os.close(directory)


def _read(path: Path) -> Container | None:
    try:
        file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except OSError:
        return None  # gone meanwhile
    try:
        if _is_abandoned(file):
            path.unlink(missing_ok=True)
            return None
        record = json.loads(os.read(file, 1 << 16) or b"null")
        return record and _container(record)
    except (OSError, ValueError):
        return None  # just made, or just gone
    finally:
        os.close(file)


def _is_abandoned(file: int) -> bool:
    # An empty one is somebody's who is about to lock and fill it.
    return not is_locked(file) and os.fstat(file).st_size > 0


def _container(record: dict[str, object]) -> Container:
    keeper, descriptor, log = record["keeper"], record["state"], record["log"]
    path = Path(f"/proc/{keeper}/fd/{descriptor}")
    for _ in range(_TRIES):
        try:
            fields = json.loads(path.read_bytes())
        except ValueError:
            continue
        holdings = tuple(Holding(**each) for each in fields.get("holdings", ()))
        state = State(**{**fields, "command": tuple(fields["command"]), "holdings": holdings})
        return Container(int(str(keeper)), tuple(map(int, _list(log))), state)
    raise ValueError("a state that does not come to rest")


def _list(value: object) -> list[int]:
    return value if isinstance(value, list) else []


def _seen_here(supervisor: int, process: int) -> int:
    """Return our number of a child of `supervisor`, which knows it as `process`; 0 if it is gone.

    proc(5): NSpid has one number for each namespace, the outermost that we see first.
    """
    try:
        children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    except OSError:
        return 0
    for child in children:
        numbers = proc.status(int(child)).get("NSpid", "").split()
        if len(numbers) > 1 and int(numbers[1]) == process:
            return int(child)
    return 0
