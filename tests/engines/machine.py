"""A machine within the machine, for engines to run on: what they change is gone with it.

It has its own processes, mounts and network, and its own /etc, /run, /tmp and /var.  All that can
be written to lies on one ext4, mounted "sync", so that what is written and soon deleted is in its
blocks all the same; the file below it is on a tmpfs, and can be searched raw.  The mounts are
shared, as systemd has them on a real machine: what a runtime forgets to keep private shows.

Control groups and keys are the one thing that a kernel has no place apart for: engines are told to
stay below `group`, which is removed in the end.  Does not know cisfs.  One machine at a time.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.mount.harness import linux
from tests.mount.harness.processes import wait_until

PATIENCE = 60.0  # seconds; a loaded machine may take its time, a hang may not
_DISK_SIZE = 3 << 30  # sparse
_CHECKOUT = Path(__file__).parents[2]

# $1 is the directory of the machine, $2 the checkout, which may lie in a directory that is covered.
_SET_UP = """
set -e
mount --make-rprivate /
mount -t proc proc /proc
mount --rbind "$1" /mnt
mkdir -p /mnt/checkout /mnt/mnt
mount --bind "$2" /mnt/checkout
for d in etc run tmp var; do mount --bind "/mnt/disk/$d" "/$d"; done
mkdir -p "$1" && mount --rbind /mnt "$1"
[ -e "$2/pyproject.toml" ] || { mkdir -p "$2" && mount --bind /mnt/checkout "$2"; }
umount -l /mnt
mount --make-rshared /
ip link set lo up
ip netns add first && ip netns delete first # engines share the mount that this makes
exec "$3" -c "$4"
"""
# The first process of a machine takes care of orphans.
_FIRST = """
import os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
print("there", flush=True)
while True:
    signal.sigwait({signal.SIGCHLD})
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        pass
"""

Ended = subprocess.CompletedProcess[str]


class Machine:
    """Runs commands in namespaces of its own.  Paths are those inside, unless said otherwise."""

    def __init__(self, base: Path, first: int) -> None:
        """`base` is where its disk and its tmpfs are; `first` the process that keeps it."""
        self.base = base
        self.first = first
        self.group = f"/{base.name}"  # of all control groups
        self.raw = base / "raw"
        self.memory = base / "memory"  # on the tmpfs: for what no disk may see
        self.room = base / "room"  # of the host's own disk, if it was lent some
        self.environment = {  # of every command
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/var/root",
            "PYTHONPATH": str(_CHECKOUT),
            "PYTHONDONTWRITEBYTECODE": "1",
        }

    # -- files -------------------------------------------------------------------------------

    def outside(self, path: str | Path) -> Path:
        """Where a file below /etc, /run, /tmp or /var is for processes outside."""
        return self.base / "disk" / str(path).lstrip("/")

    @property
    def proc(self) -> Path:
        """Its /proc, for processes outside."""
        return Path(f"/proc/{self.first}/root/proc")

    def disk_has(self, *needles: bytes) -> list[bytes]:
        """Which of these are anywhere on the disk's blocks, in use or not."""
        subprocess.run(["sync", "-f", self.base / "disk"], check=True)
        with self.raw.open("rb") as file:
            pieces = list(_extents(file.fileno()))
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as raw:
                return [
                    each
                    for each in needles
                    if any(raw.find(each, start, end) >= 0 for start, end in pieces)
                ]

    # -- commands ----------------------------------------------------------------------------

    def words(self, *words: str | Path) -> list[str]:
        """What runs a command inside."""
        enter = ["nsenter", f"--target={self.first}", "--mount", "--net", "--pid", "--wd=/"]
        return [*enter, "--", *map(str, words)]

    def run(self, *words: str | Path, stdin: str = "", patience: float = PATIENCE) -> Ended:
        """Run a command to its end; nothing may show a traceback."""
        ended = subprocess.run(
            self.words(*words),
            env=self.environment,
            input=stdin,
            capture_output=True,
            text=True,
            errors="surrogateescape",
            timeout=patience,
            check=False,
        )
        assert "Traceback" not in ended.stdout + ended.stderr, ended
        return ended

    def must(self, *words: str | Path, stdin: str = "", patience: float = PATIENCE) -> str:
        """Run a command that has to succeed; returns what it printed."""
        ended = self.run(*words, stdin=stdin, patience=patience)
        assert ended.returncode == 0, ended
        return ended.stdout

    def cisfs(self, *words: str | Path) -> Ended:
        """Run the cisfs command to its end."""
        return self.run(sys.executable, "-m", "cisfs", *words)

    # -- daemons -----------------------------------------------------------------------------

    @contextlib.contextmanager
    def daemon(self, *words: str | Path, ready: Callable[[], bool]) -> Iterator[None]:
        """Run a daemon, which is ready when `ready` says so, and end it with SIGTERM."""
        log = self.base / f"{Path(words[0]).name}.log"
        with log.open("ab") as to:
            process = subprocess.Popen(
                self.words(*words),
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=to,
                stderr=subprocess.STDOUT,
            )
        with process:
            try:
                wait_until(lambda: ready() or process.poll() is not None, f"{words[0]} is ready")
                assert process.poll() is None, log.read_text()[-2000:]
                yield
            finally:
                for pid in _children(process.pid):
                    os.kill(pid, signal.SIGTERM)
                try:
                    process.wait(PATIENCE)
                except subprocess.TimeoutExpired:
                    process.kill()  # what it has started dies with the machine

    # -- processes ---------------------------------------------------------------------------

    def processes(self) -> dict[int, str]:
        """The command lines of all its processes, by their number inside."""
        found = {}
        for entry in self.proc.iterdir():
            if entry.name.isdigit():
                with contextlib.suppress(OSError):
                    line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").strip()
                    if line:  # a zombie has none
                        found[int(entry.name)] = os.fsdecode(line)
        return found

    def pids(self, marker: str) -> list[int]:
        """The processes with this in their command line."""
        return sorted(pid for pid, line in self.processes().items() if marker in line)

    def kill(self, *pids: int, number: signal.Signals = signal.SIGKILL) -> None:
        """Send a signal to processes, by their numbers inside; some may die of others' deaths."""
        assert pids
        said = self.run("kill", f"-{number.value}", *map(str, pids)).stderr.splitlines()
        assert all(line.endswith("No such process") for line in said), said


def _children(pid: int) -> list[int]:
    """The processes that a process without threads has started."""
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _extents(fd: int) -> Iterator[tuple[int, int]]:
    """The parts of a file that are no holes: where they begin and end."""
    size, at = os.fstat(fd).st_size, 0
    while at < size:
        try:
            start = os.lseek(fd, at, os.SEEK_DATA)
        except OSError:
            return  # nothing but a hole from here on
        at = os.lseek(fd, start, os.SEEK_HOLE)
        yield start, at


@contextlib.contextmanager
def machine(room: Path | None = None) -> Iterator[Machine]:
    """A machine, from nothing to nothing; `room` is a directory outside, lent to it."""
    base = Path(tempfile.mkdtemp(prefix="cisfs-engines-", dir="/run"))
    try:
        linux.mount("cisfs-engines", base, "tmpfs", 0, "mode=0755")
        _make_disk(base)
        if room is not None:
            (base / "room").mkdir()
            linux.mount(str(room), base / "room", "", linux.MS_BIND)
        with _first_process(base) as first:
            yield Machine(base, first)
    finally:
        linux.detach_all(base)
        base.rmdir()
        _remove_groups(base.name)


def _make_disk(base: Path) -> None:
    raw, disk = base / "raw", base / "disk"
    for name in ("disk", "memory", "checkout", "mnt"):
        (base / name).mkdir()
    with raw.open("wb") as file:
        file.truncate(_DISK_SIZE)
    subprocess.run(["mkfs.ext4", "-q", "-E", "lazy_itable_init=0,nodiscard", raw], check=True)
    subprocess.run(["mount", "-o", "loop,sync", raw, disk], check=True)
    for name in ("run", "tmp", "var/lib", "var/log", "var/root", "var/tmp"):
        (disk / name).mkdir(parents=True)
    for name in ("tmp", "var/tmp"):
        (disk / name).chmod(0o1777)
    (disk / "var/run").symlink_to("/run")
    subprocess.run(["cp", "-a", "/etc", disk], check=True)


@contextlib.contextmanager
def _first_process(base: Path) -> Iterator[int]:
    namespaces = ["--mount", "--net", "--pid", "--fork", "--kill-child"]
    script = ["sh", "-c", _SET_UP, "sh", str(base), str(_CHECKOUT), sys.executable, _FIRST]
    with subprocess.Popen(
        ["setpriv", "--pdeathsig=KILL", "unshare", *namespaces, *script],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"there\n"
            yield _children(process.pid)[0]
        finally:
            process.kill()  # and so dies every process of the machine


def _remove_groups(name: str) -> None:
    """Remove control groups, of every hierarchy, as soon as the kernel lets them go."""
    hierarchies = Path("/sys/fs/cgroup")
    for top in (hierarchies / name, *hierarchies.glob(f"*/{name}")):
        for path in (*sorted(top.rglob("*/"), reverse=True), top):
            _remove_group(path)


def _remove_group(path: Path) -> None:
    def removed() -> bool:
        try:
            path.rmdir()
        except FileNotFoundError:
            return True
        except OSError:
            return False
        return True

    wait_until(removed, f"{path} can be removed", patience=20)
