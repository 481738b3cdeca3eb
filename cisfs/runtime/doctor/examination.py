"""The whole examination: every question in order, and what follows from the answers.

Knows what each probe's failure means and what can be done about it, not how it is tried.  Forks, so
it is for processes with one thread.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cisfs.runtime.doctor import host, isolated, probes, programs
from cisfs.runtime.doctor.finding import Finding, Level, ok


@dataclass(frozen=True, slots=True)
class Trial:
    """A probe, how bad it is if it fails, and what to do then."""

    name: str
    probe: Callable[[Path], str]
    level: Level
    remedy: str


TRIALS = (
    Trial(
        "sealed layers",
        probes.sealed_layer,
        Level.FAILURE,
        "a kernel with EROFS and overlayfs (modprobe erofs overlay), and /dev/fuse",
    ),
    Trial(
        "loop devices",
        probes.sealed_layer_on_loop,
        Level.FAILURE,
        "scratch takes them, and sealed layers before Linux 6.12: modprobe loop",
    ),
    Trial(
        "vaults",
        probes.vault_layer,
        Level.WARNING,
        "Linux 5.15 to 6.4 cannot change files of a vault in a container: cisfs seal the vault, "
        "and use the sealed layer",
    ),
    Trial(
        "resend",
        probes.resend,
        Level.WARNING,
        "Linux 6.9 or later; before, reads fail that a killed worker had begun",
    ),
    Trial(
        "ext4",
        probes.ext4,
        Level.FAILURE,
        "encrypted scratch takes it: apt install e2fsprogs, modprobe ext4 loop",
    ),
    Trial(
        "keyring",
        probes.keyring,
        Level.WARNING,
        "without it neither cisfs unlock nor engines' containers work; a kernel with CONFIG_KEYS, "
        "and no seccomp filter against keyctl",
    ),
    Trial(
        "user namespaces",
        probes.user_namespace,
        Level.WARNING,
        "Linux 6.3 or later, and sysctl user.max_user_namespaces=15000; without, root in a "
        "container is root",
    ),
)


def examine() -> Iterator[Finding]:
    """Yield the findings as they come."""
    privileged = os.geteuid() == 0
    yield host.kernel(os.uname().release)
    yield host.user()
    yield host.fuse_device()
    for trial in TRIALS:
        yield tried(trial) if privileged else _untried(trial)
    yield host.control_groups()
    yield host.memory_lock(privileged)
    yield host.open_files(resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    yield host.swap(_text("/proc/swaps"))
    yield host.core_pattern(_text("/proc/sys/kernel/core_pattern"))
    yield from map(programs.examine, programs.PROGRAMS)
    yield from map(programs.examine_engine, programs.ENGINES)


def tried(trial: Trial) -> Finding:
    """Make a trial.  Needs root."""
    answer = isolated.attempt(trial.probe)
    if answer.worked:
        return ok(trial.name, answer.said)
    return Finding(trial.name, trial.level, answer.said, trial.remedy)


def _untried(trial: Trial) -> Finding:
    return Finding(trial.name, Level.WARNING, "not tried", "run it as root: sudo cisfs doctor")


def _text(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""  # a kernel without it
