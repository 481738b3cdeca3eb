"""Other processes: running a function in one, finding the ones a test left, their descriptors.

Knows nothing of vaults.  Forks, so it is for a process with one thread; functions that run in a
child must not return what cannot be pickled.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import stat
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

NOBODY = 65534
PATIENCE = 60.0
_Result = TypeVar("_Result")


def wait_until(condition: Callable[[], bool], what: str, patience: float = PATIENCE) -> None:
    """Poll until `condition` holds; AssertionError naming `what` after `patience` seconds."""
    end = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < end, f"waited {patience:g} s in vain until {what}"
        time.sleep(0.01)


class Child:
    """A forked process that runs one function."""

    def __init__(self, work: Callable[[], object], patience: float = PATIENCE) -> None:
        """Start `work`; SIGALRM ends it after `patience` seconds."""
        sys.stdout.flush()
        sys.stderr.flush()
        self._results, send = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.setitimer(signal.ITIMER_REAL, patience)
            os.close(self._results)
            _report(work, send)
        os.close(send)

    def result(self) -> Any:  # noqa: ANN401 - whatever the function returns
        """Wait for the end; return what the function returned, or raise what it raised."""
        with os.fdopen(self._results, "rb") as results:
            data = results.read()
        _, status = os.waitpid(self.pid, 0)
        assert data, f"the child {self.pid} ended with {os.waitstatus_to_exitcode(status)}"
        worked, value = pickle.loads(data)
        if not worked:
            raise value
        return value


def _report(work: Callable[[], object], send: int) -> None:
    try:
        data = pickle.dumps((True, work()))
    except OSError as error:
        data = pickle.dumps((False, OSError(error.errno, str(error))))
    except BaseException:  # noqa: BLE001 - all the way to the test, which is in another process
        data = pickle.dumps((False, AssertionError(traceback.format_exc())))
    with os.fdopen(send, "wb") as results:
        results.write(data)
    os._exit(0)


def at_once(*works: Callable[[], object]) -> list[Any]:
    """Run each function in a process of its own, all at once; return their results."""
    children = [Child(work) for work in works]
    return [child.result() for child in children]


def as_user(
    uid: int, directory: Path, work: Callable[[], _Result], gid: int | None = None
) -> _Result:
    """Run `work` in `directory` as an ordinary user without other groups; return its result.

    The way to `directory` is gone as root, so it may lead through places closed to the user.
    """

    def change_and_work() -> _Result:
        os.chdir(directory)
        become(uid, uid if gid is None else gid)
        return work()

    result: _Result = Child(change_and_work).result()
    return result


def become(uid: int, gid: int) -> None:
    """Be an ordinary user from here on."""
    os.setgroups([])
    os.setgid(gid)
    os.setuid(uid)


def mentioning(text: str) -> Iterator[int]:
    """The processes, other than this one, that have `text` in their command line."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if os.fsencode(text) in (entry / "cmdline").read_bytes():
                    yield int(entry.name)


def alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def descriptors(pid: int) -> dict[int, tuple[str, int]]:
    """The open descriptors of a process: number -> (where it leads, file type and mode)."""
    found = {}
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            found[int(link.name)] = (os.readlink(link), link.stat().st_mode)
    return found


def files_and_directories(pid: int) -> tuple[list[str], int]:
    """The regular files that a process has open, and how many directories."""
    opened = descriptors(pid).values()
    files = sorted(place for place, mode in opened if stat.S_ISREG(mode))
    return files, sum(stat.S_ISDIR(mode) for _, mode in opened)
