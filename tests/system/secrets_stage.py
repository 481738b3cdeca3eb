"""Where secrets are to stay secret: commands with keys of every kind, and all that they write to.

Everything that a command could write to lies on one ext4 of the test's own, mounted "sync", whose
blocks are searched raw: what was deleted at once is there all the same.  HOME, TMPDIR, working
directory, store, layers, logs and all output are on it.  The files that hold the keys are on a
tmpfs beside it.  Needs root.  One test at a time.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path

import cisfs
from cisfs.crypto.keys import LayerKeys, SecretKey, VaultKeys
from cisfs.keys.credentials import RawKey
from cisfs.layer.opening import key_id, master_key
from tests.mount.harness.processes import alive, mentioning, wait_until
from tests.system.canaries import Canaries, Watcher
from tests.system.six_kinds import Keys

_DISK_SIZE = 256 << 20
RUN = Path("/run/cisfs")
_CORE_PATTERN = Path("/proc/sys/kernel/core_pattern")

# The command line, after a change to how it behaves, which comes as the first argument.
_CHANGED = """
import sys, time
exec(sys.argv.pop(1))
from cisfs.cli.main import main
sys.exit(main())
"""
# What becomes of a command that has just got the master key.
_THEN = """
from cisfs.keys import slots
def changed(*given, honest=slots.open_slots):
    key = honest(*given)
    {then}
    return key
slots.open_slots = changed
"""
_STALL = _THEN.format(then='print("there", flush=True); time.sleep(600)')
BUG = _THEN.format(then='raise RuntimeError("a bug")')
# A program that has a secret, and dies.
_DIES = "import os, sys; secret = bytes.fromhex(sys.stdin.read()); os.abort()"
# A key provider that says all that it is told, and fails.
_LOUD = "import sys; said = sys.stdin.read(); print(said, file=sys.stderr); sys.exit(3)"
# One that answers with it.
_ECHO = "import shutil, sys; shutil.copyfileobj(sys.stdin, sys.stdout)"


class Stage:
    """Where it is played."""

    def __init__(self, base: Path) -> None:
        self.base, self.raw, self.disk = base, base / "raw", base / "disk"
        self.keys = Keys(base / "keys")
        self.hidden = self.keys.hidden
        self.key_file = self.keys.private("key-file", self._secret("key file"))
        self.wrong = self.keys.private("wrong", secrets.token_bytes(32))
        self.wrong_words = self.keys.private("wrong words", b"battery staple\n")
        self._more_providers()
        self._mount()
        self.planted = {
            place: secrets.token_bytes(32)
            for place in ("argv", "environment", "file", "deleted file", "log", "core")
        }
        self.commands = 0

    def _more_providers(self) -> None:
        """Two that repeat what they are told."""
        file = self.keys.base / "providers.json"
        document = json.loads(file.read_text())
        for name, code in (("loud", _LOUD), ("echo", _ECHO)):
            command = {"path": sys.executable, "args": ["-c", code]}
            document["key-providers"][name] = {"cmd": command}
        file.write_text(json.dumps(document))

    def _mount(self) -> None:
        with self.raw.open("wb") as file:
            file.truncate(_DISK_SIZE)
        subprocess.run(["mkfs.ext4", "-q", "-E", "lazy_itable_init=0", self.raw], check=True)
        self.disk.mkdir()
        subprocess.run(["mount", "-o", "loop,sync", self.raw, self.disk], check=True)
        for name in ("work", "home", "tmp", "store", "logs", "open"):
            (self.disk / name).mkdir()
        self.work, self.logs, self.open = (self.disk / each for each in ("work", "logs", "open"))
        self.layer, self.vault = self.work / "it.cis", self.work / "it.vault"
        self.source, self.rootfs = self.base / "source", self.base / "rootfs"
        self.source.mkdir()
        (self.source / "secret").write_bytes(self._secret("content") * 1000)
        (self.rootfs / "bin").mkdir(parents=True)
        shutil.copy2("/bin/busybox", self.rootfs / "bin/busybox")
        install = ["chroot", str(self.rootfs), "/bin/busybox", "--install", "-s", "/bin"]
        subprocess.run(install, check=True)

    def _secret(self, name: str) -> bytes:
        self.hidden[name] = secrets.token_bytes(32)
        return self.hidden[name]

    @property
    def environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(Path(cisfs.__file__).parents[1]),
            "PYTHONDONTWRITEBYTECODE": "1",
            "HOME": str(self.disk / "home"),
            "TMPDIR": str(self.disk / "tmp"),
            **self.keys.environment,
        }

    # -- commands ----------------------------------------------------------------------------

    def start(
        self, *words: str | Path, change: str = "", stdin: bytes = b""
    ) -> subprocess.Popen[bytes]:
        """Start a command that may dump core; all that it says goes to a log."""
        program = ["-c", _CHANGED, change] if change else ["-m", "cisfs"]
        return self._start([sys.executable, *program, *map(str, words)], stdin)

    def _start(self, words: Sequence[str], stdin: bytes) -> subprocess.Popen[bytes]:
        self.commands += 1
        log = self.logs / f"{self.commands:03}"
        with tempfile.TemporaryFile() as given, log.open("wb") as out:
            given.write(stdin)
            given.seek(0)
            return subprocess.Popen(
                ["sh", "-c", 'ulimit -c unlimited; exec "$@"', "sh", *words],
                env=self.environment,
                cwd=self.work,
                stdin=given,
                stdout=out,
                stderr=subprocess.STDOUT,
            )

    def cisfs(self, *words: str | Path, code: int = 0, change: str = "", stdin: bytes = b"") -> str:
        """Run a command that ends with `code`; returns what it said."""
        process = self.start(*words, change=change, stdin=stdin)
        ended = process.wait(60)
        said = self.said()
        assert ended == code, (words, ended, said)
        return said

    def said(self) -> str:
        """What the last command has said so far."""
        return (self.logs / f"{self.commands:03}").read_text(errors="replace")

    @contextlib.contextmanager
    def holding_the_key(self, *words: str | Path) -> Iterator[subprocess.Popen[bytes]]:
        """A command that has just got the master key, and waits."""
        with self.start(*words, change=_STALL) as process:
            try:
                wait_until(lambda: "there" in self.said(), "it has the key")
                yield process
            finally:
                process.kill()

    def dies_with(self, secret: bytes) -> None:
        """Have a program die that has a secret."""
        process = self._start([sys.executable, "-c", _DIES], secret.hex().encode())
        assert process.wait(60) == -signal.SIGABRT

    @property
    def run_words(self) -> list[str | Path]:
        """The start of a command that runs a container."""
        return ["run", "--rootfs", self.rootfs, "--store", self.disk / "store"]

    # -- what there is to be kept ------------------------------------------------------------

    def options(self, kind: str) -> tuple[str, ...]:
        """What names a key."""
        return self.keys.kinds[kind].options

    def note(self, path: Path) -> None:
        """Hide the keys of a layer or vault, too."""
        master = master_key(path, RawKey(self.hidden["key file"]))
        identifier = bytes.fromhex(key_id(path))
        kind = LayerKeys if path.is_file() else VaultKeys
        derived = kind.derive(master, identifier)
        name = f"{path.name} {master}"
        self.hidden[name] = master.reveal()
        self.hidden[f"{name} as text"] = b64encode(master.reveal())
        for each in fields(derived):
            value = getattr(derived, each.name)
            self.hidden[f"{name} {each.name}"] = (
                value.reveal() if isinstance(value, SecretKey) else value
            )

    def searched(self, watcher: Watcher | None = None) -> dict[str, set[str]]:
        """Search the disk, in the end also by files, and what was said; return what was where."""
        subprocess.run(["sync", "-f", self.disk], check=True)
        canaries = Canaries({**self.hidden, **self.planted})
        canaries.search_file(self.raw)
        if watcher is None:
            return canaries.found
        for where, said in watcher.said:
            canaries.search(said, where)
        for directory in (self.disk, RUN):
            if directory.exists():
                canaries.search_tree(directory)
        canaries.search(Path("/proc/keys").read_bytes(), "/proc/keys")
        return canaries.found

    def cores(self) -> set[str]:
        """The core files there are, where they are files."""
        pattern = _CORE_PATTERN.read_text().strip()
        if pattern.startswith("|"):
            return set()
        places = [Path(pattern).parent] if pattern.startswith("/") else [self.work, Path("/")]
        return {
            str(path)
            for place in places
            if place.is_dir()
            for path in place.iterdir()
            if path.is_file() and path.read_bytes()[:4] == b"\x7fELF"
        }


def dumps_to_files() -> bool:
    """Whether a core would be a file that we find; elsewhere it belongs to the host."""
    pattern = _CORE_PATTERN.read_text().strip()
    return "/" not in pattern and not pattern.startswith("|")


def locked(pid: int) -> int:
    """How much memory of a process is locked, in KiB."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in text.splitlines() if line.startswith("VmLck")).split()[1])


def assert_private(pid: int) -> None:
    assert locked(pid) > 0
    text = Path(f"/proc/{pid}/limits").read_text()
    (limit,) = (line.split()[4] for line in text.splitlines() if line.startswith("Max core file"))
    assert limit in ("0", "1")


def servers(path: Path) -> list[int]:
    """The processes that serve a layer: they say so."""
    found = [pid for pid in mentioning(str(path)) if alive(pid)]
    assert found
    return found


def is_dead(pid: int) -> bool:
    return not alive(pid)
