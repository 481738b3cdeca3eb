"""Server processes: started in the foreground, waited for, watched, ended.

Knows nothing of what they serve.  One thread.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

MOUNT_TIMEOUT = 30.0  # seconds; a passphrase's key derivation is part of it
_POLL = 0.002  # short beside the quickest mount, which is timed
_END_TIMEOUT = 30.0
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Usage:
    """What servers have used so far: CPU seconds and, in bytes, their largest resident sizes added
    up; and what they use now: the proportional set size of the largest of their processes.
    """

    cpu: float = 0.0
    peak_rss: int = 0
    pss: int = 0

    @classmethod
    def total(cls, each: Iterable[Usage]) -> Usage:
        """Sum up several processes or servers."""
        uses = list(each)
        return cls(
            sum(use.cpu for use in uses),
            sum(use.peak_rss for use in uses),
            max((use.pss for use in uses), default=0),
        )


class Server:
    """A FUSE server started by its own command line, in the foreground so that its pid is known."""

    def __init__(self, command: Sequence[str], view: Path) -> None:
        self._command = command
        self._view = view
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it has mounted.  Raises RuntimeError when it does not."""
        # A session of its own: ctrl-C is for the benchmark, which then unmounts in good order.
        self._process = subprocess.Popen(
            self._command, stdout=subprocess.DEVNULL, start_new_session=True
        )
        deadline = time.monotonic() + MOUNT_TIMEOUT
        while not is_mounted(self._view):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self._command[0]} did not mount {self._view}")
            time.sleep(_POLL)

    def stop(self) -> None:
        """Unmount, and wait for the process; forcibly if nothing else helps.  May be repeated."""
        if self._process is not None and not is_mounted(self._view):
            self._process.terminate()
        unmount(self._view)
        if self._process is None:
            return
        try:
            self._process.wait(_END_TIMEOUT)
        except subprocess.TimeoutExpired:
            print(f"{self._command[0]}: outlived its mount {self._view}; killed", file=sys.stderr)
            for pid in with_descendants(self._process.pid):
                _kill(pid)
            self._process.wait()
        self._process = None
        unmount(self._view)  # it may have mounted between the first look and the signal

    def usage(self) -> Usage:
        """Add up the processes: the one that was started, and those below it."""
        if self._process is None:
            return Usage()
        return Usage.total(usage_of(pid) for pid in with_descendants(self._process.pid))


def is_mounted(view: Path) -> bool:
    """Tell whether something is mounted exactly there, though its server may be dead."""
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    return str(view).replace(" ", "\\040") in (mount.split(" ")[4] for mount in mounts)


def unmount(view: Path) -> None:
    """Unmount what is mounted there, if anything; lazily if it stays in use.

    The last users, of an interrupted trial, may take a moment to die.
    """
    for _ in range(20):
        if not is_mounted(view):
            return
        done = subprocess.run(["umount", str(view)], stderr=subprocess.DEVNULL, check=False)
        if done.returncode == 0:
            return
        time.sleep(0.1)
    subprocess.run(["umount", "--lazy", str(view)], check=True)


def with_descendants(root: int) -> list[int]:
    """Return a process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            fields = (process / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it ended meanwhile
            continue
        children.setdefault(int(fields[1]), []).append(int(process.name))
    found = [root]
    for pid in found:
        found.extend(children.get(pid, []))
    return found


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # it ended meanwhile


def usage_of(pid: int) -> Usage:
    """Read proc(5): the times of stat, children that ended included, VmHWM, and Pss.

    Zeros once the process is gone.
    """
    process = Path(f"/proc/{pid}")
    try:
        fields = (process / "stat").read_text().rpartition(")")[2].split()
        peak = _bytes_of("VmHWM:", process / "status")
        proportional = _bytes_of("Pss:", process / "smaps_rollup")
    except OSError:
        return Usage()
    return Usage(sum(int(ticks) for ticks in fields[11:15]) / _TICKS, peak, proportional)


def _bytes_of(field: str, path: Path) -> int:
    lines = (line.split() for line in path.read_text().splitlines())
    return next((int(words[1]) << 10 for words in lines if words[0] == field), 0)
