"""What containers can leave on a machine, as its host and the kernel see it.

Compared before and after, nothing may be new.  Read-only.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from cisfs.keys import keyring
from tests.engines.machine import Machine
from tests.engines.secret import SEALED
from tests.mount.harness.processes import wait_until

_STATE = ("/run/cisfs", "/var/lib/cisfs")
KEPT = "kept"  # the one persistent scratch that tests use; it is there to stay
_PATIENCE = 20.0
_PODMAN_STORE = "/var/lib/containers/storage/overlay"


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


def traces(machine: Machine) -> Traces:
    """Everything that is there now."""
    return Traces(
        mounts=mounts(machine),
        processes=sorted(f"{pid} {line}" for pid, line in machine.processes().items()),
        loops=loops(machine),
        files=_files(machine),
        groups=_groups(machine),
        keys=[name for name in keyring.names() if name in SEALED],
    )


def mounts(machine: Machine) -> list[str]:
    """The mount table of the machine's host side, by mount point and kind.

    Without podman's own store, which it mounts on itself now and again, whatever it runs.
    """
    found = []
    for line in (machine.proc / "1/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if before.split()[4] != _PODMAN_STORE:
            found.append(f"{before.split()[4]} {after}")
    return sorted(found)


def loops(machine: Machine) -> list[str]:
    """The loop devices of scratches, but for those that others on this kernel have.

    What they read is, once they are set up, at no path, and nothing tells whose they are: there are
    as many as there are servers elsewhere, and those that are mounted here.
    """
    count, here = 0, Path("/proc/self/mountinfo").read_text()
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):
            is_mounted = f" /dev/{path.parent.parent.name} " in here
            count += path.read_text() == "/\n" and not is_mounted
    return [f"scratch {number}" for number in range(count - _foreign_scratches(machine))]


def _foreign_scratches(machine: Machine) -> int:
    here, count = os.readlink(machine.proc / "1/ns/pid"), 0
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                is_scratch = (entry / "cmdline").read_bytes().startswith(b"cisfs: scratch")
                count += is_scratch and os.readlink(entry / "ns/pid") != here
    return count


def _files(machine: Machine) -> list[str]:
    found = []
    for top in _STATE:
        for directory, names, files in os.walk(machine.outside(top)):
            if os.path.basename(directory) == "scratch" and KEPT in names:
                names.remove(KEPT)
            found += [os.path.join(directory, name) for name in (*names, *files)]
    return sorted(found)


def _groups(machine: Machine) -> list[str]:
    hierarchies = Path("/sys/fs/cgroup")
    tops = [hierarchies / machine.group[1:], *hierarchies.glob(f"*{machine.group}")]
    return sorted(str(path) for top in tops if top.exists() for path in top.rglob("*/"))


def wait_for(machine: Machine, before: Traces) -> None:
    """Wait until there is nothing that was not there before; engines clean up behind one's back."""
    left: list[str] = []

    def gone() -> bool:
        left[:] = traces(machine).added(before)
        return not left

    try:
        wait_until(gone, "nothing is left", _PATIENCE)
    except AssertionError as error:
        raise AssertionError("left behind: " + "\n".join(left)) from error
