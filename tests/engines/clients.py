"""The command lines of docker and podman on a machine of the tests.

Does not know cisfs.  Whatever was started is removed by `clear`.  One command at a time.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.engines.machine import Ended, Machine


class Client:
    """docker, or podman, which has the same commands."""

    def __init__(self, machine: Machine, *program: str) -> None:
        """`program` is the command with the options that go before its subcommands."""
        self.machine = machine
        self._program = program

    def with_options(self, *more: str) -> Client:
        """The same program with more options before its subcommands."""
        return Client(self.machine, *self._program, *more)

    def __call__(self, *words: str | Path, stdin: str = "") -> Ended:
        """Run a command to its end."""
        return self.machine.run(*self._program, *words, stdin=stdin)

    def must(self, *words: str | Path) -> str:
        """Run a command that has to succeed; returns what it printed, without the last newline."""
        return self.machine.must(*self._program, *words).removesuffix("\n")

    def inspect(self, name: str) -> Any:  # noqa: ANN401 - whatever JSON the engine makes
        """All that is known of a container."""
        return json.loads(self.must("container", "inspect", name))[0]

    def pid(self, name: str) -> int:
        """The first process of a container, by its number on the machine."""
        return int(self.inspect(name)["State"]["Pid"])

    def logs(self, name: str) -> str:
        """What a container has printed."""
        ended = self("logs", name)
        return ended.stdout + ended.stderr

    def clear(self) -> None:
        """Remove all containers and volumes."""
        names = self.must("ps", "--all", "--quiet").split()
        if names:
            self("kill", *names)  # podman would give them ten seconds
            self.must("rm", "--force", "--volumes", *names)
