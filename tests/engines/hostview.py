"""What a host can see while a container runs, without entering it.

Root on the host can enter the container's namespaces, which no test forbids; everything short of
that is looked at.  Read-only.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.engines.machine import Machine

_KERNEL = ("cgroup", "cgroup2", "devpts", "devtmpfs", "mqueue", "nsfs", "proc", "sysfs")


def outsiders(machine: Machine) -> Iterator[Path]:
    """The directories in /proc of the processes that are in no container."""
    host = os.readlink(machine.proc / "1/ns/pid")
    for entry in machine.proc.iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if os.readlink(entry / "ns/pid") == host:
                    yield entry


def words(machine: Machine) -> bytes:
    """The arguments and environments of all processes that are in no container."""
    found = []
    for process in outsiders(machine):
        with contextlib.suppress(OSError):
            found += [(process / name).read_bytes() for name in ("cmdline", "environ")]
    return b"\n".join(found)


def namespaces(machine: Machine) -> dict[str, Path]:
    """The mount namespaces of processes in no container, each with a process that is in it."""
    found = {}
    for process in outsiders(machine):
        with contextlib.suppress(OSError):
            found[os.readlink(process / "ns/mnt")] = process
    return found


def mounted(process: Path) -> dict[str, str]:
    """The mount points that a process sees, but for the kernel's own, with what is there."""
    found = {}
    for line in (process / "mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if after.split()[0] not in _KERNEL:
            found[before.split()[4]] = after
    return found


def files_with(process: Path, mountpoints: Sequence[str], needles: Sequence[bytes]) -> list[str]:
    """The files, on mounts that a process sees, that have any of these in content or name."""
    found = []
    for mountpoint in mountpoints:
        top = process / "root" / mountpoint.lstrip("/")
        with contextlib.suppress(OSError):
            device = top.stat().st_dev
            found += [str(path) for path in _walk(top, device) if _has(path, needles)]
    return found


def _walk(top: Path, device: int) -> Iterator[Path]:
    if not top.is_dir():
        yield top
    for directory, names, files in os.walk(top):
        names[:] = [each for each in names if _device(Path(directory, each)) == device]
        for name in files:
            yield Path(directory, name)


def _device(path: Path) -> int:
    try:
        return path.lstat().st_dev
    except OSError:
        return -1


def _has(path: Path, needles: Sequence[bytes]) -> bool:
    if any(needle in os.fsencode(path.name) for needle in needles):
        return True
    try:
        if not path.is_file() or path.is_symlink():
            return False
        content = path.read_bytes()
    except OSError:
        return False
    return any(needle in content for needle in needles)
