"""Ways from a registry to a running container, each a shell command, and to and from it only.

Each way begins with nothing of the image on the machine, and what it left is cleared away.  The
first line that a container prints is checked: it is the sum of what it read.  One thread.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from benchmarks.link import REGISTRY, Link
from benchmarks.programs import cisfs
from benchmarks.published import (
    ENCRYPTED,
    PATIENCE,
    PLAIN,
    SEALED,
    SKOPEO,
    START,
    Published,
    push_command,
)
from benchmarks.trials import settle
from tests.engines.machine import Machine

LAZY, DOCKER_LAZY, FULL, OCICRYPT, DOCKER = "lazy", "docker+lazy", "cisfs", "skopeo", "docker"
LINK = "curl"
FIRST, PUSH, PULL = "first output", "push", "pull"

_FETCHER = "cisfs: fetcher"  # in the titles of the processes
# Where each of them keeps things: on the disk of interest.
PLACES = {
    "cisfs": "/var/lib/cisfs",
    "containers": "/var/lib/containers",  # skopeo's
    "docker": "/var/lib/docker",
    "tmp": "/var/tmp",
}


class Begun(NamedTuple):
    """How long the first line took, and the bytes that came over the link until then."""

    seconds: float
    received: int


@dataclass(frozen=True)
class Way:
    """One of them; `before` and `after` are not timed."""

    command: str
    before: str = ""
    after: str = ""


class Host:
    """The machine at the near end of the link, and all that it can do with what is published."""

    def __init__(self, machine: Machine, link: Link, published: Published) -> None:
        self._machine = machine
        self._link = link
        self._made = published
        self._bundle = machine.room / "bundle"
        self._fetched = machine.room / "fetched"
        self._pushes = 0

    # -- starts ------------------------------------------------------------------------------

    def start(self, name: str) -> Begun:
        """Time a way to the first line of a container's output.

        Raises subprocess.CalledProcessError, RuntimeError.
        """
        way = self._starts()[name]
        with self._anew(way):
            begun, received = time.perf_counter(), self._link.received
            with self._shell(way.command, stdout=subprocess.PIPE) as process:
                line = next(iter(process.stdout or ()), "").strip()
                took = Begun(time.perf_counter() - begun, self._link.received - received)
                _, complaint = process.communicate(timeout=PATIENCE)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, name, line, complaint)
        if line != self._made.line:
            raise RuntimeError(f"{name}: the container printed {line!r}, not {self._made.line!r}")
        return took

    def _starts(self) -> dict[str, Way]:
        made = self._made
        identity = ["--identity", str(made.private)]
        run = shlex.join(cisfs("run", "--rm", *identity, f"docker://{SEALED}", *START))
        opened = [*SKOPEO, "--decryption-key", str(made.private), f"docker://{ENCRYPTED}"]
        unpack = ["umoci", "raw", "unpack", "--image", f"{self._fetched}:1"]
        by_skopeo = [
            shlex.join([*opened, f"oci:{self._fetched}:1"]),
            shlex.join([*unpack, str(self._bundle / "rootfs")]),
            shlex.join(["runc", "run", "--bundle", str(self._bundle), self._machine.base.name]),
        ]
        docker = "docker run --rm"
        return {
            LAZY: Way(run),
            DOCKER_LAZY: Way(
                shlex.join([*docker.split(), "--runtime=cisfs", SEALED, *START]),
                before=shlex.join(cisfs("unlock", *identity, str(made.layer))),
                after=shlex.join(cisfs("lock", str(made.layer))),
            ),
            FULL: Way(f"{shlex.join(cisfs('pull', '--quiet', SEALED))} && {run}"),
            OCICRYPT: Way(" && ".join(by_skopeo)),
            DOCKER: Way(shlex.join([*docker.split(), PLAIN, *START])),
        }

    # -- transfers ---------------------------------------------------------------------------

    def push(self, name: str) -> float:
        """Time an upload to a repository that is new.  Raises subprocess.CalledProcessError."""
        self._pushes += 1
        target = f"{REGISTRY}/push/number-{self._pushes}:1"
        words = {
            FULL: push_command(target, self._made.layout, self._made.layer),
            OCICRYPT: [*SKOPEO, f"oci:{self._made.layout}:plain", f"docker://{target}"],
        }
        return self._transfer(words[name])

    def pull(self, name: str) -> float:
        """Time a download to the disk.  Raises subprocess.CalledProcessError."""
        blob = f"https://{REGISTRY}/v2/bench/plain/blobs/{self._made.plain_blob}"
        words = {
            FULL: cisfs("pull", "--quiet", SEALED),
            OCICRYPT: [*SKOPEO, f"docker://{PLAIN}", f"oci:{self._fetched}:1"],
            LINK: ["curl", "--silent", "--fail", "--output", str(self._machine.room / "x"), blob],
        }
        return self._transfer(words[name])

    def _transfer(self, words: Sequence[str]) -> float:
        with self._anew(Way("")):
            begun = time.perf_counter()
            self._must(f"{shlex.join(words)} && sync -f {shlex.quote(str(self._machine.room))}")
            return time.perf_counter() - begun

    # -- what is common ----------------------------------------------------------------------

    @contextmanager
    def _anew(self, way: Way) -> Iterator[None]:
        """Begin with nothing here, nor in the kernel's memory; clear away what is left then."""
        try:
            if way.before:
                self._must(way.before)
            self._make_bundle()
            settle(cold=True)
            yield
        finally:
            if way.after:
                self._must(way.after)
            self._clear()

    def _make_bundle(self) -> None:
        """Make all of an OCI bundle but its root filesystem."""
        self._bundle.mkdir()
        self._machine.must("runc", "spec", "--bundle", self._bundle)
        path = self._bundle / "config.json"
        config = json.loads(path.read_text())
        config["process"] |= {"terminal": False, "args": list(START)}
        config["linux"]["cgroupsPath"] = f"{self._machine.group}/bundle"
        path.write_text(json.dumps(config))

    def _clear(self) -> None:
        """Remove every image and layer; end whoever still fetches more of one."""
        if fetchers := self._machine.pids(_FETCHER):
            self._machine.kill(*fetchers)
        # docker alone knows how to remove what it has
        self._must("docker images --quiet | xargs --no-run-if-empty docker rmi --force")
        for path in (self._bundle, self._fetched, self._machine.room / "x"):
            self._must(f"rm -rf {shlex.quote(str(path))}")
        for name in ("cisfs", "containers", "tmp"):
            self._must(f"find {PLACES[name]} -mindepth 1 -delete")

    def _must(self, command: str) -> None:
        """Run a shell command on the machine.  Raises subprocess.CalledProcessError."""
        with self._shell(command, stdout=subprocess.DEVNULL) as process:
            _, complaint = process.communicate(timeout=PATIENCE)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command, None, complaint)

    @contextmanager
    def _shell(self, command: str, stdout: int) -> Iterator[subprocess.Popen[str]]:
        """Run a shell command; if we must end, what it has started ends with the machine."""
        with subprocess.Popen(
            self._machine.words("bash", "-c", command),
            env=self._machine.environment,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                yield process
            except BaseException:
                process.kill()
                raise
