"""The OCI runtime, runc: finding it, starting a container with it, reading its errors.

The container is left running (`--detach`) with this process's own standard streams or a terminal
of its own; whoever starts it must be its subreaper to learn how it ends.  Does not know layers.
One start at a time per bundle.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

from cisfs.errors import EngineError
from cisfs.mount import programs
from cisfs.runtime.command import NOT_EXECUTABLE, NOT_FOUND, Refusal


def find() -> str:
    """Return the path of runc.  Raises EngineError that names the package when there is none."""
    found = programs.find("runc")
    if found is None:
        raise EngineError("runc is not installed; on Debian and Ubuntu: apt install runc")
    return found


@dataclass(frozen=True, slots=True)
class Engine:
    """runc, with everything it writes below `directory` (absolute), which is the bundle too."""

    binary: str
    directory: Path

    def start(self, identifier: str, console: Console | None) -> int | Refusal:
        """Start the container of the bundle; return its first process, or why there is none.

        A Refusal without a message means that runc has already printed one line: it shares its
        standard error with the container, so what it writes there cannot be held back.
        """
        log, pid_file = self.directory / "runc.log", self.directory / "pid"
        words = [self.binary, "--root", str(self.directory / "runc"), "--log", str(log)]
        words += ["--log-format", "json", "run", "--detach", "--bundle", str(self.directory)]
        words += ["--pid-file", str(pid_file)]
        if console is not None:
            words += ["--console-socket", str(console.path)]
        quiet = None if console is None else subprocess.DEVNULL
        done = subprocess.run(
            [*words, identifier], check=False, stdin=quiet, stdout=quiet, stderr=quiet
        )
        if done.returncode == 0:
            return int(pid_file.read_text())
        refused = classify(log.read_text() if log.exists() else "", done.returncode)
        return refused if console is not None else Refusal(refused.exit_code, "")


def classify(log: str, status: int) -> Refusal:
    """Return docker's exit code and one line for the JSON log of a runc that failed.

    `status` is runc's own, said when the log is empty.
    """
    message = _last_error(log) or f"runc failed with status {status} and said nothing"
    return Refusal(exit_code_of(message), f"runc could not start the container: {message}")


def exit_code_of(message: str) -> int:
    """Return docker's exit code for what a runtime said when it could not start a container."""
    if "executable file not found" in message or ": no such file or directory" in message:
        # The second is also what a missing bundle directory would say; an exec error quotes
        # the command: exec: "/x": stat /x: no such file or directory
        return NOT_FOUND if "exec: " in message else EngineError.exit_code
    if "exec: " in message and ("permission denied" in message or "is a directory" in message):
        return NOT_EXECUTABLE
    return EngineError.exit_code


def _last_error(log: str) -> str | None:
    found = None
    for line in log.splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and entry.get("level") in ("error", "fatal"):
            found = " ".join(str(entry.get("msg", "")).split())
    return found.removeprefix("runc run failed: ") if found else None


class Console:
    """The socket on which runc hands over the master side of a container's terminal."""

    def __init__(self, path: Path) -> None:
        """Listen at `path`, which must be shorter than 108 bytes (unix(7))."""
        self.path = path
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(str(path))
        self._listener.listen(1)

    def receive(self, seconds: float = 10.0) -> int:
        """Return the master's descriptor.  Raises EngineError when runc sent none in time."""
        self._listener.settimeout(seconds)
        try:
            connection, _ = self._listener.accept()
            with connection:
                connection.settimeout(seconds)
                _, descriptors, _, _ = socket.recv_fds(connection, 4096, 1)
        except TimeoutError:
            descriptors = []
        if not descriptors:
            raise EngineError("runc did not hand over the container's terminal")
        os.set_inheritable(descriptors[0], False)
        return descriptors[0]

    def close(self) -> None:
        """Stop listening."""
        self._listener.close()
