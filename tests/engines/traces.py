"""What containers can leave on a machine, as its host and the kernel see it.

Compared before and after, nothing may be new.  Read-only.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from tests.engines.machine import Machine
from tests.mount.harness.processes import wait_until

_STATE = ("/run/cisfs", "/var/lib/cisfs")
_PATIENCE = 20.0


@dataclass(frozen=True)
class Traces:
    """All of it, as sorted lines."""

    mounts: Sequence[str]
    processes: Sequence[str]
    loops: Sequence[str]
    files: Sequence[str]
    groups: Sequence[str]
    keys: Sequence[str]

    def added(self, before: Traces) -> list[str]:
        """What is here that was not there before."""
        return [
            f"{field.name}: {line}"
            for field in fields(self)
            for line in getattr(self, field.name)
            if line not in getattr(before, field.name)
        ]


def traces(machine: Machine, keys: Sequence[str] = ()) -> Traces:
    """Everything that is there now; of the kernel's keys those with any of `keys` in their names.

    Loop devices are the whole kernel's, and so are keys.
    """
    return Traces(
        mounts=mounts(machine),
        processes=sorted(f"{pid} {line}" for pid, line in machine.processes().items()),
        loops=loops(),
        files=_files(machine),
        groups=_groups(machine),
        keys=[
            line
            for line in Path("/proc/keys").read_text().splitlines()
            if any(each in line for each in keys)
        ],
    )


def mounts(machine: Machine) -> list[str]:
    """The mount table of the machine's host side, by mount point and kind."""
    found = []
    for line in (machine.proc / "1/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        found.append(f"{before.split()[4]} {after}")
    return sorted(found)


def loops() -> list[str]:
    """The loop devices that are in use."""
    return sorted(path.parent.parent.name for path in Path("/sys/block").glob("loop*/loop/offset"))


def _files(machine: Machine) -> list[str]:
    found = []
    for top in _STATE:
        for directory, names, files in os.walk(machine.outside(top)):
            found += [os.path.join(directory, name) for name in (*names, *files)]
    return sorted(found)


def _groups(machine: Machine) -> list[str]:
    hierarchies = Path("/sys/fs/cgroup")
    tops = [hierarchies / machine.group[1:], *hierarchies.glob(f"*{machine.group}")]
    return sorted(str(path) for top in tops if top.exists() for path in top.rglob("*/"))


def wait_for(machine: Machine, before: Traces, keys: Sequence[str] = ()) -> None:
    """Wait until there is nothing that was not there before; engines clean up behind one's back."""
    left: list[str] = []

    def gone() -> bool:
        left[:] = traces(machine, keys).added(before)
        return not left

    try:
        wait_until(gone, "nothing is left", _PATIENCE)
    except AssertionError as error:
        raise AssertionError("left behind: " + "\n".join(left)) from error
