"""docker under comparison, with its own runtime and with cisfs's, on a machine made for it.

The machine is the one that the tests of engines use: namespaces, with a dockerd of its own in them,
so that no engine that is installed is touched.  Knows nothing of what is measured.  One thread.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from benchmarks.servers import Usage
from benchmarks.systems import System
from tests.engines import daemons, images, secret
from tests.engines.machine import Machine
from tests.engines.machine import machine as new_machine

LAYER = "bench"


class DockerBox(System):
    """`docker run` with runc, as docker has it."""

    name = "docker"
    options: ClassVar[Sequence[str]] = ()

    def __init__(self, machine: Machine) -> None:
        super().__init__(Path("/nonexistent"))
        self._machine = machine

    def run_command(self) -> str:
        """Return the shell command that runs /bin/true in a container of its own."""
        words = ["docker", "run", "--rm", *self.options, images.BUSYBOX, "/bin/true"]
        return shlex.join(self._machine.words(*words))

    def start(self) -> None:
        """The machine has started already."""

    def stop(self) -> None:
        """The machine goes as a whole."""

    def mount(self, parts: Sequence[str] = ()) -> None:
        """Nothing to mount."""

    def unmount(self) -> None:
        """Nothing to unmount."""

    def usage(self) -> Usage:
        """Not measured."""
        return Usage()


class DockerWithCisfs(DockerBox):
    """`docker run --runtime=cisfs` with a sealed layer and an ephemeral scratch."""

    name = "docker+cisfs"
    options = ("--runtime=cisfs", "--env", f"CISFS_LAYERS={secret.STORE}/{LAYER}.cis")


@contextmanager
def docker_machine(facts: dict[str, str]) -> Iterator[Machine]:
    """Yield a machine with dockerd, an image, the runtime and an unlocked layer."""
    with new_machine() as made:
        secret.prepare(made)
        images.busybox(made.memory / "busybox.tar")
        daemons.configure_containerd(made)
        with daemons.containerd(made):
            daemons.configure_dockerd(made, daemons.CONTAINERD_SOCKET)
            with daemons.dockerd(made):
                made.must("docker", "load", "--quiet", "--input", made.memory / "busybox.tar")
                configured = made.cisfs("runtime", "configure", "--engine", "docker")
                if configured.returncode:
                    raise RuntimeError(configured.stderr)
                version = made.must("docker", "version", "--format", "{{.Server.Version}}")
                facts["docker"] = version.strip()
                with secret.unlocked(made, LAYER):
                    yield made
