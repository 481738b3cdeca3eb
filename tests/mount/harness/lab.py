"""A vault under test: made, mounted and unmounted by the command line, and judged afterwards.

A test fails, whatever it asserts, on a mount or process left over, a descriptor that the server
keeps, a line in the server's log that was not announced by `expect`, and damage that `verify`
finds although the test made none.  Does not know how cisfs works inside.  For one process at a
time.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cisfs
from tests.mount.harness import linux, processes
from tests.mount.harness.judged import judged
from tests.mount.harness.processes import wait_until

FSTYPE = "fuse.cisfs"
COMMAND_PATIENCE = 90
_DIRECTORIES_KEPT = 256  # descriptors of directories that the server may keep in reserve
_PACKAGE = Path(cisfs.__file__).parents[1]

Ended = subprocess.CompletedProcess[str]


def command(*words: str | Path) -> list[str]:
    """The argument vector of a cisfs command."""
    return [sys.executable, "-m", "cisfs", *map(str, words)]


def environment() -> dict[str, str]:
    """The environment of every command: the package under test, and nobody's passphrase."""
    keep = {key: value for key, value in os.environ.items() if not key.startswith("CISFS_")}
    return keep | {"PYTHONPATH": str(_PACKAGE), "PYTHONDONTWRITEBYTECODE": "1"}


class Lab:
    """One vault with its key, mount point and log, all below `base`."""

    def __init__(self, base: Path, vault: Path | None = None) -> None:
        """Make the vault; `vault` is where, if not below `base`."""
        self.base = base
        self.vault = vault or base / "vault"
        self.key = base / "key"
        self.mountpoint = base / "open"
        self.log = base / "log"
        self.damaged = False  # set by tests that damage the vault: it need not verify
        self._expected: list[re.Pattern[str]] = []
        self._allowed: list[re.Pattern[str]] = []
        self._logged = 0
        self.key.touch(0o600)
        self.key.write_bytes(secrets.token_bytes(32))
        self.mountpoint.mkdir()
        self.must("init", self.vault, *self.with_key)

    @property
    def with_key(self) -> list[str]:
        """The options that open this vault."""
        return ["--key-file", str(self.key)]

    # -- commands ----------------------------------------------------------------------------

    def cisfs(self, *words: str | Path) -> Ended:
        """Run a command to its end, in `base` and away from the terminal."""
        return self.run(command(*words))

    def run(self, words: Sequence[str]) -> Ended:
        """Run anything to its end, as commands are run here."""
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

    def must(self, *words: str | Path) -> Ended:
        """Run a command that has to succeed."""
        ended = self.cisfs(*words)
        assert ended.returncode == 0, f"cisfs {words[0]}: {ended.returncode}: {ended.stderr}"
        return ended

    def mount(self, *options: str) -> Path:
        """Mount; returns the mount point."""
        self.must(
            "mount", self.vault, self.mountpoint, "--log-file", self.log, *options, *self.with_key
        )
        return self.mountpoint

    def umount(self, *options: str) -> None:
        """Unmount."""
        self.must("umount", *options, self.mountpoint)

    def remount(self, *options: str) -> None:
        """Unmount and mount again."""
        self.umount()
        self.mount(*options)

    def findings(self) -> list[dict[str, Any]]:
        """What `verify` finds in the unmounted vault."""
        ended = self.cisfs("verify", "--json", self.vault, *self.with_key)
        assert ended.returncode in (0, 19), ended.stderr
        found: list[dict[str, Any]] = json.loads(ended.stdout)["findings"]
        assert bool(found) == (ended.returncode == 19)
        return found

    # -- what is there -------------------------------------------------------------------------

    @property
    def is_mounted(self) -> bool:
        """Whether something of cisfs is mounted on the mount point."""
        return linux.Mounted(self.mountpoint, FSTYPE) in linux.mounts_below(self.base)

    @property
    def server(self) -> int:
        """The process that serves the mount."""
        (pid,) = self.servers()
        return pid

    def servers(self) -> list[int]:
        """The processes that work on this vault; a healthy mount has one."""
        return [pid for pid in processes.mentioning(str(self.base)) if processes.alive(pid)]

    def stored(self, path: Path) -> Path:
        """The backing object of a file in the mount: it has the same inode number."""
        wanted = path.lstat().st_ino
        for directory, names, files in os.walk(self.vault):
            for name in (*names, *files):
                place = Path(directory, name)
                if place.lstat().st_ino == wanted:
                    return place
        raise AssertionError(f"nothing in {self.vault} has the inode number of {path}")

    # -- judgement -----------------------------------------------------------------------------

    def expect(self, pattern: str) -> None:
        """Allow log lines that have this in them, and demand one."""
        self._expected.append(re.compile(pattern))

    def allow(self, pattern: str) -> None:
        """Allow log lines that have this in them, for all of the test, and demand none."""
        self._allowed.append(re.compile(pattern))

    def judge_log(self) -> None:
        """Fail on a line in the log that no test announced, and on an announced one missing."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        new, self._logged = lines[self._logged :], len(lines)
        expected, self._expected = self._expected, []
        known = [*expected, *self._allowed]
        surprises = [line for line in new if not any(each.search(line) for each in known)]
        assert not surprises, "the server's log says: " + "\n".join(surprises[:20])
        missing = [each.pattern for each in expected if not any(each.search(line) for line in new)]
        assert not missing, f"not logged: {missing}"

    def open_files(self) -> list[str]:
        """The regular files that the server has open: its journal, its log, and what is in use."""
        return processes.files_and_directories(self.server)[0]

    def judge_descriptors(self, before: list[str]) -> None:
        """Fail if the server keeps more files open than `before`, or too many directories."""
        pid = self.server
        wait_until(
            lambda: processes.files_and_directories(pid)[0] == before,
            f"the server has only its own files open again: {before}",
            patience=15,
        )
        assert processes.files_and_directories(pid)[1] <= _DIRECTORIES_KEPT + 1

    def close(self) -> None:
        """Unmount if need be, clean up whatever is left, and judge."""
        trouble = []
        try:
            if self.is_mounted:
                self.umount()
        except (AssertionError, subprocess.TimeoutExpired) as error:
            trouble.append(str(error))
        trouble += [f"left mounted: {mounted}" for mounted in linux.detach_all(self.base)]
        with contextlib.suppress(AssertionError):
            wait_until(lambda: not self.servers(), "no process is left", patience=10)
        for pid in self.servers():
            trouble.append(f"left running: {Path(f'/proc/{pid}/cmdline').read_bytes()!r}")
            os.kill(pid, signal.SIGKILL)
        assert not trouble, "\n".join(trouble)
        self.judge_log()
        if not self.damaged:
            found = self.findings()
            assert not found, f"verify finds {found[:10]}"


@contextlib.contextmanager
def lab_in(base: Path, vault: Path | None = None) -> Iterator[Lab]:
    """A Lab that is closed, and judged, at the end; a failure inside is not hidden by that."""
    with judged(Lab(base, vault)) as lab:
        yield lab
