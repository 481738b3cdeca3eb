"""How a trial is measured: each is a shell command that a user might have typed.

A group is a run of trials that must follow one another at once, because each leaves the state (a
file, warm caches) that the next one starts from.  Knows nothing of the systems but two paths, and
of the trials nothing but their shape.  One thread.
"""

from __future__ import annotations

import mmap
import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median

from benchmarks import facts
from benchmarks.systems import System

AGAIN = (5, 1.0)  # repeat at most so many times, until so many seconds are over
_SETTLE = 0.2
# A hypervisor takes memory that is free back, and page by page gives it anew to whoever needs it
# first: that was seen to cost 0.6 s for 1 GiB, three times what writing it to a file did.
_MEMORY = 3 << 30  # bytes: what a trial may need for the caches of a mount and of what is below it
_END_TIMEOUT = 5.0

# tar writing to /dev/null reads no file (GNU tar looks for that), hence the cat.
TAR = 'tar cf - -C "$VIEW" tree | cat >/dev/null'
FIND = "find \"$VIEW/tree\" -printf '%s %m %p\\n'"


@dataclass(frozen=True, slots=True)
class Trial:
    """One timed command; `$VIEW`, `$BACKING` and the sources are set for it."""

    name: str
    command: str
    cold: bool = False  # drop the kernel's caches first, those of the mount and of what is below
    before: str = ""  # untimed, as is `after`
    after: str = ""
    again: bool = False  # repeat it while that is quick, and take the median
    clock: Callable[[str], float] | None = None  # seconds, of what it prints, instead of its time
    count_command: bool = False  # its programs do what the server of others does: add their CPU


@dataclass(frozen=True, slots=True)
class Sample:
    """What one trial took: seconds on the clock, and CPU seconds of the server."""

    seconds: float
    server_cpu: float


def run(trial: Trial, system: System, sources: Mapping[str, str]) -> Sample:
    """Run a trial once.  Nothing dirty is left from before it; its own writes are in its command.

    Raises subprocess.CalledProcessError when its command fails.
    """
    variables = {**sources, "VIEW": str(system.view), "BACKING": str(system.backing)}
    if trial.before:
        _shell(trial.before, variables)
    settle(cold=trial.cold, memory=not trial.again)
    most, patience = AGAIN if trial.again else (1, 0.0)
    deadline = time.monotonic() + patience
    samples = [_timed(trial, system, variables)]
    while len(samples) < most and time.monotonic() < deadline:
        samples.append(_timed(trial, system, variables))
    if trial.after:
        _shell(trial.after, variables)
    seconds = median(sample.seconds for sample in samples)
    return Sample(seconds, mean(sample.server_cpu for sample in samples))


def settle(*, cold: bool, memory: bool = True) -> None:
    """Leave nothing dirty and, for a cold trial, nothing cached: not of the mount nor below it.

    With `memory` there is then free memory that costs no more than on a machine of its own.
    """
    subprocess.run(["sync"], check=True)
    if cold:
        Path("/proc/sys/vm/drop_caches").write_text("3\n")
    if memory:
        _have_memory()
    if cold:
        # FUSE servers are being told what was dropped: a moment for them to finish.
        time.sleep(_SETTLE)


def _have_memory() -> None:
    """Touch free memory and let it go, so that a hypervisor has given it to us."""
    size = min(_MEMORY, facts.available_memory() // 2)
    with mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE):
        pass


def _timed(trial: Trial, system: System, variables: Mapping[str, str]) -> Sample:
    cpu_before, start = _cpu(trial, system), time.perf_counter()
    printed = _shell(trial.command, variables, keep=trial.clock is not None)
    seconds = time.perf_counter() - start
    server_cpu = _cpu(trial, system) - cpu_before
    return Sample(trial.clock(printed) if trial.clock else seconds, server_cpu)


def _cpu(trial: Trial, system: System) -> float:
    used = system.usage().cpu
    if trial.count_command:
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        used += ended.ru_utime + ended.ru_stime
    return used


def _shell(command: str, variables: Mapping[str, str], *, keep: bool = False) -> str:
    """Run a command and return what it prints if that is to be kept; end all of it if we must end.

    Raises subprocess.CalledProcessError.
    """
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
    environment |= {name: os.environ[name] for name in os.environ if name.startswith("PYTHON")}
    with subprocess.Popen(
        ["bash", "-o", "pipefail", "-c", command],
        env={**environment, **variables},
        stdout=subprocess.PIPE if keep else subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    ) as process:
        try:
            printed, complaint = process.communicate()
        except BaseException:
            _end(process)
            raise
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command, printed, complaint)
    return printed or ""


def _end(process: subprocess.Popen[str]) -> None:
    """End a process group: the shell and what it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
            process.wait(_END_TIMEOUT)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue
