"""Who uses an encrypted layer: containers of both kinds, those of engines and our own.

Does not know how either is run.  Looks anew at each call; `stop_all` uses threads.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from cisfs.errors import CisfsError
from cisfs.runtime import ending, listing, workspace
from cisfs.runtime.holdings import Holding
from cisfs.runtime.listing import CREATED, EXITED, Container
from cisfs.runtime.oci import record, stopping

_AT_ONCE = 16  # containers that are stopped side by side
_PATIENCE = 15.0  # seconds for a container to get through its start
_POLL = 0.02
_LONG_ID = 64  # characters; docker and podman show the first 12 of them
_SHORT_ID = 12


@dataclass(frozen=True, slots=True)
class User:
    """A running container with encrypted layers or a persistent scratch.

    `kind` is "runtime" for one that an engine made through `cisfs-runtime`, or "embedded".
    """

    name: str
    identifier: str
    kind: str
    holdings: tuple[Holding, ...]
    stop: Callable[[float], None] = field(repr=False, compare=False)

    def uses(self, path: Path | None, key: str) -> bool:
        """Tell whether it holds the layer that is at an absolute path or has a key of this id."""
        return any(each.path == str(path) or (key and each.key == key) for each in self.holdings)


def users() -> list[User]:
    """Return all of them.  Raises PermissionError where only root may look."""
    with contextlib.suppress(FileNotFoundError):
        os.listdir(workspace.BASE)
        return [*_of_engines(), *_of_ours()]
    return []


def stop_all(wanted: Iterable[User], seconds: float) -> Iterator[tuple[User, CisfsError | None]]:
    """Stop containers, each with some seconds to end in; yield each when it has, or why not."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        stopping = {pool.submit(user.stop, seconds): user for user in wanted}
        for done in as_completed(stopping):
            error = done.exception()
            if error is not None and not isinstance(error, CisfsError):
                error = CisfsError(str(error))
            yield stopping[done], error


def _of_engines() -> Iterator[User]:
    for path, of in record.records():
        held = tuple(Holding(**each) for each in of.get("holdings", ()))
        if held:
            identifier = of["container"]
            name = identifier[:_SHORT_ID] if len(identifier) == _LONG_ID else identifier
            yield User(name, identifier, "runtime", held, partial(stopping.stop, path))


def _of_ours() -> Iterator[User]:
    for container in listing.containers():
        state = container.state
        if state.holdings and state.status != EXITED:
            stop = partial(_stop_ours, container)
            yield User(state.name, state.identifier, "embedded", state.holdings, stop)


def _stop_ours(container: Container, seconds: float) -> None:
    """Stop a container of ours, also one that is only being started.  Raises EngineError."""
    current: Container | None = container
    if container.state.status == CREATED:
        with contextlib.suppress(ProcessLookupError):
            os.kill(container.keeper, signal.SIGTERM)
        end = time.monotonic() + _PATIENCE
        while current is not None and current.state.status == CREATED and time.monotonic() < end:
            time.sleep(_POLL)
            current = listing.current(container)
    if current is not None:
        ending.stop(current, seconds)
