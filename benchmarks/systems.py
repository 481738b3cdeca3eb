"""The systems under comparison: how each is set up, mounted, watched and taken down.

Knows nothing of what is measured on them.  One thread; the servers are child processes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

MOUNT_TIMEOUT = 30.0  # seconds; a passphrase's key derivation is part of it
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Usage:
    """What a server has used so far: CPU seconds, and its largest resident size in MiB."""

    cpu: float = 0.0
    peak_rss: float = 0.0


@dataclass
class System(ABC):
    """A place to put files; `view` is where they are seen, `backing` where they are stored."""

    work: Path
    name: ClassVar[str]
    backing: Path = field(init=False)
    view: Path = field(init=False)

    def __post_init__(self) -> None:
        self.backing = self.work / self.name / "backing"
        self.view = self.work / self.name / "view"

    @abstractmethod
    def start(self) -> None:
        """Make it empty and ready for use."""

    @abstractmethod
    def stop(self) -> None:
        """Take it down and delete everything in it; harmless when not started."""

    @abstractmethod
    def usage(self) -> Usage:
        """Tell what its server has used since it started."""

    def details(self) -> dict[str, str]:
        """Return the facts of this system that belong beside its figures."""
        return {}

    def _clear(self) -> None:
        shutil.rmtree(self.work / self.name, ignore_errors=True)


class Plain(System):
    """A directory, unencrypted: what the filesystem below can do."""

    name = "plain"

    def start(self) -> None:
        """Make the directory."""
        self.backing.mkdir(parents=True)
        self.view = self.backing

    def stop(self) -> None:
        """Delete it."""
        self._clear()

    def usage(self) -> Usage:
        """No server, no use."""
        return Usage()


class Mounted(System):
    """A FUSE server started by its own command line, in the foreground so that its pid is known."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self._server: subprocess.Popen[bytes] | None = None
        self._passfile = self.work / self.name / "passphrase"

    @abstractmethod
    def init_command(self) -> list[str]:
        """The command that makes an empty store in `backing`."""

    @abstractmethod
    def serve_command(self) -> list[str]:
        """The command that mounts `backing` at `view` and stays in the foreground."""

    def start(self) -> None:
        """Make the store, mount it, and wait until the mount is there."""
        self.view.mkdir(parents=True)
        self.backing.mkdir()
        self._passfile.write_text("benchmark\n")
        self._passfile.chmod(0o600)
        subprocess.run(self.init_command(), check=True, stdout=subprocess.DEVNULL)
        # A session of its own: ctrl-C is for the benchmark, which then unmounts in good order.
        self._server = subprocess.Popen(
            self.serve_command(), stdout=subprocess.DEVNULL, start_new_session=True
        )
        deadline = time.monotonic() + MOUNT_TIMEOUT
        while not os.path.ismount(self.view):
            if self._server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} did not mount {self.view}")
            time.sleep(0.02)

    def stop(self) -> None:
        """Unmount, wait for the server, and delete the store; forcibly if nothing else helps."""
        if os.path.ismount(self.view):
            command = ["umount", str(self.view)]
            if subprocess.run(command, stderr=subprocess.DEVNULL, check=False).returncode:
                # In use, by what an interrupted trial left running.
                subprocess.run(["umount", "--lazy", str(self.view)], check=True)
        if self._server:
            try:
                self._server.wait(timeout=30)
            except subprocess.TimeoutExpired:
                print(f"{self.name}: the server outlived its mount; killed", file=sys.stderr)
                self._server.kill()
                self._server.wait()
            self._server = None
        self._clear()

    def usage(self) -> Usage:
        """Add up the server's processes: the one that was started, and those below it."""
        if not self._server:
            return Usage()
        each = [_usage_of(pid) for pid in _with_descendants(self._server.pid)]
        return Usage(sum(use.cpu for use in each), sum(use.peak_rss for use in each))


class Gocryptfs(Mounted):
    """gocryptfs as Debian packages it, with its defaults."""

    name = "gocryptfs"

    def init_command(self) -> list[str]:
        """gocryptfs -init."""
        return ["gocryptfs", "-q", "-init", "-passfile", str(self._passfile), str(self.backing)]

    def serve_command(self) -> list[str]:
        """gocryptfs -fg."""
        options = ["-q", "-fg", "-passfile", str(self._passfile)]
        return ["gocryptfs", *options, str(self.backing), str(self.view)]

    def details(self) -> dict[str, str]:
        """Its version."""
        done = subprocess.run(["gocryptfs", "-version"], capture_output=True, text=True, check=True)
        return {"gocryptfs": done.stdout.split(";")[0].removeprefix("gocryptfs").strip()}


class Cisfs(Mounted):
    """cisfs of this checkout, with its defaults."""

    name = "cisfs"

    def _command(self, *words: str) -> list[str]:
        entry = "import sys; from cisfs.cli.main import main; sys.exit(main())"
        return [sys.executable, "-c", entry, *words]

    def init_command(self) -> list[str]:
        """cisfs init."""
        return self._command("init", "--passphrase-file", str(self._passfile), str(self.backing))

    def serve_command(self) -> list[str]:
        """cisfs mount --foreground."""
        options = ["--foreground", "--passphrase-file", str(self._passfile)]
        return self._command("mount", *options, str(self.backing), str(self.view))

    def details(self) -> dict[str, str]:
        """Its unit size, as `cisfs inspect` tells it."""
        command = self._command("inspect", "--json", str(self.backing))
        told = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
        return {"unit size": str(told.get("unit_size", "unknown"))}


SYSTEMS: dict[str, type[System]] = {kind.name: kind for kind in (Plain, Gocryptfs, Cisfs)}


def _with_descendants(root: int) -> list[int]:
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


def _usage_of(pid: int) -> Usage:
    """Read proc(5): utime and stime of stat, VmHWM of status; zeros once the process is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return Usage()
    peak = next((line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")), "0")
    return Usage((int(fields[11]) + int(fields[12])) / _TICKS, int(peak) / 1024)
