"""The systems under comparison: how each is set up, filled, mounted and taken down.

Here are those that are written to through their mount; `layers` has those that are made in one go.
Knows nothing of what is measured on them.  One thread; the servers are child processes.
"""

from __future__ import annotations

import shutil
import subprocess
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar

from benchmarks.programs import cisfs, disk_usage, missing, unit_size
from benchmarks.servers import Server, Usage

# What the benchmark of sealed layers stores: two directories, $TREE and $FILE of the environment.
PARTS = ("tree", "file")


@dataclass
class System(ABC):
    """A place to put files; `view` is where they are seen, `backing` where they are stored."""

    work: Path
    name: ClassVar[str]
    filled_once: ClassVar[bool] = False  # in the first round only: filling it takes too long
    backing: Path = field(init=False)
    view: Path = field(init=False)

    def __post_init__(self) -> None:
        self.backing = self.work / self.name / "backing"
        self.view = self.work / self.name / "view"

    @classmethod
    def lacks(cls) -> str:
        """Tell what this machine lacks for it, or nothing."""
        return ""

    @abstractmethod
    def start(self) -> None:
        """Make it empty and ready to be filled."""

    @abstractmethod
    def stop(self) -> None:
        """Take it down and delete everything in it; harmless when not started."""

    @abstractmethod
    def usage(self) -> Usage:
        """Tell what its servers have used since they started."""

    def store_command(self, part: str) -> str:
        """Return the shell command that stores one of the parts, durably."""
        # A FUSE server is not told of sync -f, hence the second one.
        return f'cp -a "${part.upper()}" "$VIEW/" && sync -f "$VIEW" && sync -f "$BACKING"'

    @abstractmethod
    def mount(self, parts: Sequence[str] = PARTS) -> None:
        """Show at least these parts in `view`, by their names, read-only; return when it is so."""

    @abstractmethod
    def unmount(self) -> None:
        """End the mount and its servers; what is stored stays.  Harmless when not mounted."""

    def stored(self) -> int:
        """Return the bytes of disk taken by what was stored."""
        return disk_usage(self.backing)

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

    def mount(self, parts: Sequence[str] = PARTS) -> None:
        """Nothing to mount."""

    def unmount(self) -> None:
        """Nothing to unmount."""

    def usage(self) -> Usage:
        """No server, no use."""
        return Usage()


class Mounted(System):
    """An encrypted directory of files that a FUSE server shows."""

    credential: ClassVar[bytes] = b"benchmark\n"
    read_only: ClassVar[str]  # the option

    def __post_init__(self) -> None:
        super().__post_init__()
        self.served = self.view  # where the server's mount is
        self._server: Server | None = None
        self._credential_file = self.work / self.name / "credential"

    @abstractmethod
    def init_command(self) -> list[str]:
        """The command that makes an empty store in `backing`."""

    @abstractmethod
    def serve_command(self, *options: str) -> list[str]:
        """The command that mounts `backing` at `served` and stays in the foreground."""

    def start(self) -> None:
        """Make the store, and mount it for writing."""
        self.served.mkdir(parents=True)
        self.backing.mkdir()
        self._credential_file.write_bytes(self.credential)
        self._credential_file.chmod(0o600)
        subprocess.run(self.init_command(), check=True, stdout=subprocess.DEVNULL)
        self._serve()

    def stop(self) -> None:
        """Unmount, and delete the store."""
        self.unmount()
        self._clear()

    def mount(self, parts: Sequence[str] = PARTS) -> None:  # noqa: ARG002 - it has them all
        """Mount it again, now read-only."""
        self.unmount()
        self._serve(self.read_only)

    def unmount(self) -> None:
        """Unmount, and wait for the server."""
        if self._server:
            self._server.stop()
            self._server = None

    def usage(self) -> Usage:
        """Ask the server's processes."""
        return self._server.usage() if self._server else Usage()

    def _serve(self, *options: str) -> None:
        self._server = Server(self.serve_command(*options), self.served)
        self._server.start()


class Gocryptfs(Mounted):
    """gocryptfs as Debian packages it, with its defaults."""

    name = "gocryptfs"
    read_only = "-ro"
    init_options: ClassVar[Sequence[str]] = ()

    @classmethod
    def lacks(cls) -> str:
        """It needs its program."""
        return missing("gocryptfs")

    def init_command(self) -> list[str]:
        """gocryptfs -init."""
        options = ["-q", "-init", *self.init_options, "-passfile", str(self._credential_file)]
        return ["gocryptfs", *options, str(self.backing)]

    def serve_command(self, *options: str) -> list[str]:
        """gocryptfs -fg."""
        always = ["-q", "-fg", "-passfile", str(self._credential_file)]
        return ["gocryptfs", *always, *options, str(self.backing), str(self.served)]

    def details(self) -> dict[str, str]:
        """Its version."""
        done = subprocess.run(["gocryptfs", "-version"], capture_output=True, text=True, check=True)
        return {"gocryptfs": done.stdout.split(";")[0].removeprefix("gocryptfs").strip()}


class QuickGocryptfs(Gocryptfs):
    """With the least key derivation that it offers: the others read a key from a file."""

    init_options = ("-scryptn", "10")


class Cisfs(Mounted):
    """The vault of this checkout, with its defaults."""

    name = "cisfs"
    read_only = "--read-only"
    credential_option: ClassVar[str] = "--passphrase-file"

    def init_command(self) -> list[str]:
        """cisfs init."""
        return cisfs("init", self.credential_option, str(self._credential_file), str(self.backing))

    def serve_command(self, *options: str) -> list[str]:
        """cisfs mount --foreground."""
        always = ["--foreground", self.credential_option, str(self._credential_file)]
        return cisfs("mount", *always, *options, str(self.backing), str(self.served))

    def details(self) -> dict[str, str]:
        """Its unit size, as `cisfs inspect` tells it."""
        return {"unit size": unit_size(self.backing)}


class Vault(Cisfs):
    """The vault with a key file."""

    name = "vault"
    filled_once = True
    credential = bytes(range(32))
    credential_option = "--key-file"

    def details(self) -> dict[str, str]:
        """Its unit size."""
        return {"unit size of the vault": unit_size(self.backing)}
