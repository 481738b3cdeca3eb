"""A sealed layer under test: mounted and unmounted by the command line, and judged afterwards.

A test fails, whatever it asserts, on a mount, loop device, process or record left over, on a layer
that is not what it was, and on a line in the log that was not announced.  And it does not hang:
who reads from a mount that nobody answers for cannot always be killed, so a guard kills the
processes of cisfs, which ends every wait.  Does not know how cisfs works inside.  One test at a
time.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from cisfs.format.sealed_geometry import LayerGeometry
from tests.mount.harness import linux, processes
from tests.mount.harness.faulty import Switch
from tests.mount.harness.judged import judged
from tests.mount.harness.lab import COMMAND_PATIENCE, Ended, command, environment
from tests.mount.harness.layers import Material, geometry
from tests.mount.harness.processes import wait_until

RECORDS = Path("/run/cisfs/mounts")
HANG = 120.0  # seconds after which a test is taken to hang


# ---- not to hang


def serving(base: Path) -> list[int]:
    """The supervisors and workers of layers below `base`."""
    found = []
    for pid in processes.mentioning(str(base)):
        with contextlib.suppress(OSError):
            title = Path(f"/proc/{pid}/cmdline").read_bytes()
            if title.startswith(b"cisfs: ") and processes.alive(pid):
                found.append(pid)
    return found


def counted(pid: int, field: str) -> int:
    """What a process has done so far, by a field of /proc/PID/io (proc(5))."""
    text = Path(f"/proc/{pid}/io").read_text()
    return int(text.partition(f"{field}: ")[2].split()[0])


@contextlib.contextmanager
def guarded(base: Path, patience: float = HANG) -> Iterator[None]:
    """Kill what serves layers below `base` if this takes longer than `patience` seconds."""
    guard = os.fork()
    if guard == 0:
        try:
            time.sleep(patience)
            for pid in serving(base):
                os.kill(pid, signal.SIGKILL)
        finally:
            os._exit(0)
    try:
        yield
    finally:
        hung = os.waitpid(guard, os.WNOHANG)[0] == guard
        if not hung:
            os.kill(guard, signal.SIGKILL)
            os.waitpid(guard, 0)
    assert not hung, f"this took longer than {patience:g} s: what served it was killed"


# ---- the lab


class Log:
    """The log of a mount, judged line by line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._expected: list[re.Pattern[str]] = []
        self._allowed: list[re.Pattern[str]] = []
        self._judged = 0

    def expect(self, pattern: str) -> None:
        """Allow lines that have this in them, and demand one."""
        self._expected.append(re.compile(pattern))

    def allow(self, pattern: str) -> None:
        """Allow lines that have this in them, and demand none."""
        self._allowed.append(re.compile(pattern))

    def lines(self) -> list[str]:
        """All there are."""
        return self.path.read_text().splitlines() if self.path.exists() else []

    def having(self, pattern: str) -> list[str]:
        """The lines with this in them."""
        return [line for line in self.lines() if re.search(pattern, line)]

    def judge(self) -> None:
        """Fail on a line that no test announced, and on an announced one missing."""
        new = self.lines()[self._judged :]
        self._judged += len(new)
        expected, self._expected = self._expected, []
        known = [*expected, *self._allowed]
        surprises = [line for line in new if not any(each.search(line) for each in known)]
        assert not surprises, "the log says: " + "\n".join(surprises[:20])
        missing = [each.pattern for each in expected if not any(each.search(line) for line in new)]
        assert not missing, f"not logged: {missing}"


class SealedLab:
    """One layer with its key, mount point and log, all below `base`."""

    def __init__(self, base: Path, material: Material, *, copy: bool = False) -> None:
        """Take the layer of `material`; `copy` is for tests that damage it."""
        self.base = base
        self.material = material
        self.tree = material.tree
        self.key = material.key
        self.layer = base / "own.cis"
        self.mountpoint = base / "open"
        self.log = Log(base / "log")
        self.program = command()  # what runs cisfs
        self.damaged = False  # set by tests that change the layer
        if copy:
            shutil.copyfile(material.layer, self.layer)
        else:
            os.link(material.layer, self.layer)
        self.mountpoint.mkdir()
        self._stored = self._layer_now()
        self._loops: set[str] = set()

    def _layer_now(self) -> tuple[int, int, int]:
        status = self.layer.stat()
        return status.st_size, status.st_mtime_ns, stat.S_IMODE(status.st_mode)

    @property
    def with_key(self) -> list[str]:
        """The options that open this layer."""
        return ["--key-file", str(self.key)]

    @property
    def geometry(self) -> LayerGeometry:
        """Where everything lies in the layer, were it not damaged."""
        return geometry(self.material.layer)

    # -- commands ----------------------------------------------------------------------------

    def run(self, words: Sequence[str]) -> Ended:
        """Run anything to its end, in `base` and away from the terminal."""
        return subprocess.run(
            words,
            cwd=self.base,
            env=environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_PATIENCE,
            check=False,
            start_new_session=True,
        )

    def cisfs(self, *words: str | Path) -> Ended:
        """Run a command to its end; it may fail, but not with a traceback."""
        ended = self.run([*self.program, *map(str, words)])
        assert "Traceback" not in ended.stderr, ended.stderr
        return ended

    def must(self, *words: str | Path) -> Ended:
        """Run a command that has to succeed and has nothing to say about it."""
        ended = self.cisfs(*words)
        said = ended.stdout + ended.stderr
        assert (ended.returncode, said) == (0, ""), f"cisfs {words[0]}: {ended.returncode}: {said}"
        return ended

    def mount_words(self, *options: str, at: Path | None = None) -> list[str | Path]:
        """The words of the command that mounts the layer."""
        log = ["--log-file", str(self.log.path)]
        return ["mount", self.layer, at or self.mountpoint, *log, *options, *self.with_key]

    def mount(self, *options: str) -> Path:
        """Mount; returns the mount point."""
        self.must(*self.mount_words(*options))
        return self.mountpoint

    def umount(self, *options: str) -> None:
        """Unmount."""
        self.must("umount", *options, self.mountpoint)

    def refused(self, *words: str | Path) -> tuple[int, str]:
        """The exit code and the one line of a command that has to fail."""
        ended = self.cisfs(*words)
        assert ended.returncode > 0
        assert ended.stdout == ""
        assert ended.stderr.startswith("cisfs: ")
        assert ended.stderr.count("\n") == 1, ended.stderr
        return ended.returncode, ended.stderr

    def use_faulty_workers(self, *flags: str) -> Switch:
        """Run cisfs as `tests.mount.harness.faulty` from now on; returns what its workers obey."""
        switch = self.base / "switch"
        module = [sys.executable, "-m", "tests.mount.harness.faulty"]
        self.program = [*module, str(switch), *flags, "--"]
        return Switch(switch)

    # -- what is there -------------------------------------------------------------------------

    @property
    def is_mounted(self) -> bool:
        """Whether the file system of the layer is mounted on the mount point."""
        return linux.Mounted(self.mountpoint, "erofs") in linux.mounts_below(self.base)

    def titled(self, role: str, of: Path | None = None) -> list[int]:
        """The processes that have this role for the layer, or for what else is named."""
        found = []
        for pid in serving(self.base):
            with contextlib.suppress(OSError):
                title = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0")
                if title == os.fsencode(f"cisfs: {role} {of or self.layer}"):
                    found.append(pid)
        return sorted(found)

    @property
    def supervisor(self) -> int:
        """The supervisor of the mount."""
        (pid,) = self.titled("supervisor")
        return pid

    @property
    def workers(self) -> list[int]:
        """The workers that are at work."""
        return self.titled("worker")

    def kill(self, *pids: int, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to processes, all of which still run; SIGKILL is waited for."""
        for pid in pids:
            os.kill(pid, number)
        if number == signal.SIGKILL:
            wait_until(lambda: not any(map(processes.alive, pids)), "they are dead", patience=20)

    def wait_for_workers(self, count: int, *, without: Sequence[int] = ()) -> None:
        """Wait until `count` workers are at work, and none of `without` is left."""

        def there() -> bool:
            workers = self.workers
            return len(workers) == count and not set(workers) & set(without)

        wait_until(there, f"{count} workers are at work", patience=20)

    def is_served(self) -> bool:
        """Whether any process of the mount is left."""
        return bool(serving(self.base))

    def wait_for_end(self) -> None:
        """Wait until no process of the mount is left."""
        wait_until(lambda: not self.is_served(), "the mount's processes have ended", patience=20)

    def records(self) -> list[str]:
        """The records in /run/cisfs that are about layers of this lab."""
        found = []
        with contextlib.suppress(FileNotFoundError):
            for path in RECORDS.iterdir():
                with contextlib.suppress(FileNotFoundError):
                    source = os.fsdecode(path.read_bytes())
                    if str(self.base) in source or source in self.loops():
                        found.append(f"{path}: {source}")
        return found

    def loops(self) -> list[str]:
        """The loop devices that a mount of this lab was seen to go through and that are in use.

        What they read is, by now, at no path.
        """
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            source = line.partition(" - ")[2].split()[1]
            if line.split()[4].startswith(str(self.base)) and source.startswith("/dev/loop"):
                self._loops.add(source)
        return [one for one in sorted(self._loops) if _backing_file(one) == "/"]

    # -- judgement -----------------------------------------------------------------------------

    def close(self) -> None:
        """Unmount if need be, clean up whatever is left, and judge."""
        trouble = []
        self.loops()
        try:
            if self.is_mounted:
                self.umount()
        except (AssertionError, subprocess.TimeoutExpired) as error:
            trouble.append(str(error))
        trouble += [f"left mounted: {mounted}" for mounted in linux.detach_all(self.base)]
        with contextlib.suppress(AssertionError):
            wait_until(lambda: not self.is_served(), "no process is left", patience=10)
        for pid in serving(self.base):
            trouble.append(f"left running: {Path(f'/proc/{pid}/cmdline').read_bytes()!r}")
            os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(AssertionError):
            wait_until(lambda: not self.loops(), "no loop device is left", patience=10)
        trouble += [f"left attached: {device}" for device in self.loops()]
        for record in self.records():
            trouble.append(f"left recorded: {record}")
            Path(record.partition(": ")[0]).unlink(missing_ok=True)
        if not self.damaged and self._layer_now() != self._stored:
            trouble.append("the layer was changed")
        assert not trouble, "\n".join(trouble)
        self.log.judge()


def _backing_file(device: str) -> str:
    try:
        return (Path("/sys/block") / Path(device).name / "loop/backing_file").read_text().strip()
    except OSError:
        return ""


@contextlib.contextmanager
def lab_in(
    base: Path, material: Material, *, copy: bool = False, patience: float = HANG
) -> Iterator[SealedLab]:
    """A lab that is closed, and judged, at the end; a failure inside is not hidden by that."""
    with guarded(base, patience), judged(SealedLab(base, material, copy=copy)) as lab:
        yield lab
