"""What is measured: each trial is a shell command that a user might have typed.

A group is a run of trials that must follow one another at once, because each leaves the state (a
file, warm caches) that the next one starts from.  Knows nothing of the systems but two paths.
One thread.
"""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.systems import System, Usage

LIKE_GOCRYPTFS = 1.0
NEAR_GOCRYPTFS = 1.3


@dataclass(frozen=True, slots=True)
class Trial:
    """One timed command; `$VIEW`, `$BACKING`, `$BIG` and `$TREE` are set for it."""

    name: str
    command: str
    target: float  # at most so many times gocryptfs's time
    cold: bool = False  # drop the kernel's caches first, those of the mount and of what is below
    before: str = ""  # untimed, as is `after`
    after: str = ""


@dataclass(frozen=True, slots=True)
class Sample:
    """What one trial took: seconds on the clock, and CPU seconds of the server."""

    seconds: float
    server_cpu: float


# tar writing to /dev/null reads no file (GNU tar looks for that), hence the cat.
# A FUSE server is not told of sync -f, hence the second one.
GROUPS: list[list[Trial]] = [
    [
        Trial("write", 'dd if="$BIG" of="$VIEW/big" bs=1M conv=fsync', LIKE_GOCRYPTFS),
        Trial(
            "read",
            'dd if="$VIEW/big" of=/dev/null bs=1M',
            LIKE_GOCRYPTFS,
            cold=True,
            after='rm "$VIEW/big"',
        ),
    ],
    [
        Trial(
            "copy",
            'cp -a "$TREE" "$VIEW/tree" && sync -f "$VIEW" && sync -f "$BACKING"',
            NEAR_GOCRYPTFS,
        ),
    ],
    [
        Trial("tar cold", 'tar cf - -C "$VIEW" tree | cat >/dev/null', NEAR_GOCRYPTFS, cold=True),
        Trial("tar warm", 'tar cf - -C "$VIEW" tree | cat >/dev/null', LIKE_GOCRYPTFS),
    ],
    [
        Trial("find cold", "find \"$VIEW/tree\" -printf '%s %m %p\\n'", NEAR_GOCRYPTFS, cold=True),
        Trial("find warm", "find \"$VIEW/tree\" -printf '%s %m %p\\n'", NEAR_GOCRYPTFS),
    ],
    [
        Trial(
            "rm -rf",
            'rm -rf "$VIEW/tree"',
            NEAR_GOCRYPTFS,
            before='find "$VIEW/tree" -printf "%s"',
        ),
    ],
]
TRIALS: dict[str, Trial] = {trial.name: trial for group in GROUPS for trial in group}
_NEED_THE_TREE = {"tar cold", "tar warm", "find cold", "find warm", "rm -rf"}


def needed(selected: set[str]) -> list[list[Trial]]:
    """Return the groups that must be run to measure the selected trials."""
    wanted = selected | ({"copy"} if selected & _NEED_THE_TREE else set())
    return [group for group in GROUPS if any(trial.name in wanted for trial in group)]


def run(trial: Trial, system: System, sources: Mapping[str, str]) -> Sample:
    """Run a trial once.  Nothing dirty is left from before it; its own writes are in its command.

    Raises subprocess.CalledProcessError when its command fails.
    """
    variables = {**sources, "VIEW": str(system.view), "BACKING": str(system.backing)}
    if trial.before:
        _shell(trial.before, variables)
    subprocess.run(["sync"], check=True)
    if trial.cold:
        Path("/proc/sys/vm/drop_caches").write_text("3\n")
    sample = _timed(lambda: _shell(trial.command, variables), system.usage)
    if trial.after:
        _shell(trial.after, variables)
    return sample


def _timed(action: Callable[[], None], usage: Callable[[], Usage]) -> Sample:
    cpu_before = usage().cpu
    start = time.perf_counter()
    action()
    return Sample(time.perf_counter() - start, usage().cpu - cpu_before)


def _shell(command: str, variables: Mapping[str, str]) -> None:
    path = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C"}
    subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        env={**path, **variables},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        check=True,
    )
