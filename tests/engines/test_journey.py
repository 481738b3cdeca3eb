"""From one host to another, through a registry: what is sealed stays sealed on the way.

Host A builds an image with docker, seals its top layers and pushes.  Host B pulls and runs it.  The
registry is on a third machine; all three have disks that are searched raw.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.engines import daemons
from tests.engines.clients import Client
from tests.engines.conftest import cleared, configured
from tests.engines.images import BUSYBOX
from tests.engines.machine import Ended, Machine
from tests.engines.machine import machine as new_machine
from tests.engines.network import HUB, connect
from tests.engines.secret import prepare
from tests.registry.harness.certificates import Authority

pytestmark = [pytest.mark.root, pytest.mark.fuse]

APP = "app:1"
TRUSTED = "authority.crt"
_DOCKERFILE = f"""\
FROM {BUSYBOX}
COPY public /public
COPY private /srv/private
RUN mv /srv/private/moved /srv/private/below && rm /etc/passwd
"""


class Canary:
    """A file whose bytes are so random that they show through gzip, which stores them as is."""

    def __init__(self) -> None:
        self.content = secrets.token_bytes(1 << 18)
        middle = range(1 << 12, 1 << 18, 1 << 14)  # anywhere but where a block may begin
        self.needles = [self.content[at : at + 24] for at in middle]

    @property
    def checksum(self) -> str:
        """As sha256sum prints it: what a container prints, docker logs on the disk."""
        return hashlib.sha256(self.content).hexdigest()

    def is_on(self, machine: Machine) -> bool:
        """Whether any of it is anywhere on a machine's disk."""
        return bool(machine.disk_has(*self.needles))


@dataclass(frozen=True)
class Journey:
    """The three machines after the push, and what travelled."""

    a: Client
    b: Client
    registry: Machine
    image: str
    sealed: str  # the layer's file on A
    identity: str
    public: Canary
    private: tuple[Canary, Canary]

    @property
    def layer(self) -> str:
        """The sealed layer, as the image names it."""
        return f"{self.image.rpartition(':')[0]}@{self.identity}"

    @contextlib.contextmanager
    def unlocked(self) -> Iterator[None]:
        """Let containers of B have the layer."""
        must(self.b.machine, "unlock", self.layer, "-i", self.b.machine.memory / "b.key")
        try:
            yield
        finally:
            must(self.b.machine, "lock", self.layer)


@pytest.fixture(scope="module")
def journey(dockerd: Client) -> Iterator[Journey]:
    with new_machine() as middle, _second_host() as b:
        connect(middle, dockerd.machine, b.machine)
        authority = Authority(middle.memory)
        certificate = authority.issue("registry", HUB)
        with (
            daemons.registry_of_many(middle, HUB, certificate) as address,
            _from_here(dockerd) as directory,
        ):
            for host in (dockerd.machine, b.machine):
                shutil.copy(authority.file, host.memory / TRUSTED)
            found = _travelled(dockerd, directory, b, middle, f"{address}/team/{APP}")
            # From here on B trusts it without an option.
            trusted = b.machine.outside(f"/etc/docker/certs.d/{address}")
            trusted.mkdir(parents=True)
            shutil.copy(authority.file, trusted / "ca.crt")
            yield found


@contextlib.contextmanager
def _second_host() -> Iterator[Client]:
    """A machine with engines of its own, and with no image."""
    with new_machine() as made:
        prepare(made)
        daemons.configure_containerd(made)
        with daemons.containerd(made):
            daemons.configure_dockerd(made, daemons.CONTAINERD_SOCKET)
            with daemons.dockerd(made):
                configured(made, "docker")
                yield Client(made, "docker")


@contextlib.contextmanager
def _from_here(a: Client) -> Iterator[str]:
    """A directory on A's disk, gone in the end with the image."""
    directory = "/var/root/journey"
    a.machine.must("mkdir", directory)
    with cleared(a):
        try:
            yield directory
        finally:
            a.must("image", "rm", "--force", APP)
            a.machine.must("rm", "-r", directory)


def _travelled(a: Client, directory: str, b: Client, middle: Machine, image: str) -> Journey:
    """Build, seal and push on A, and pull on B."""
    public, private = Canary(), (Canary(), Canary())
    must(b.machine, "keygen", "-o", b.machine.memory / "b.key")
    recipient = a.machine.memory / "b.key.pub"
    shutil.copy(b.machine.memory / "b.key.pub", recipient)
    _build(a, public, private)
    layer = f"{directory}/app.cis"
    seal = ["--top", "2", "-o", layer, "-r", str(recipient), "--json"]
    sealed = json.loads(must(a.machine, "seal", f"docker-daemon:{APP}", *seal))
    layers = ["--base", sealed["public"], "--layer", layer]
    must(a.machine, "push", image, *layers, "--ca-file", a.machine.memory / TRUSTED)
    must(b.machine, "pull", image, "--engine=docker", "--ca-file", b.machine.memory / TRUSTED)
    return Journey(a, b, middle, image, layer, sealed["identity"], public, private)


def must(machine: Machine, *words: str | Path) -> str:
    """Run a command of cisfs that has to succeed; returns what it printed."""
    ended = machine.cisfs(*words)
    assert ended.returncode == 0, ended
    return ended.stdout


def _build(docker: Client, public: Canary, private: tuple[Canary, Canary]) -> None:
    """`docker build`: two public layers, two private ones."""
    context = docker.machine.memory / "context"
    (context / "private").mkdir(parents=True)
    (context / "Dockerfile").write_text(_DOCKERFILE)
    (context / "public").write_bytes(public.content)
    (context / "private/file").write_bytes(private[0].content)
    (context / "private/moved").write_bytes(private[1].content)
    docker.must("build", "--quiet", "--tag", APP, context)
    shutil.rmtree(context)


@pytest.fixture
def unlocked(journey: Journey) -> Iterator[None]:
    with journey.unlocked():
        yield


@pytest.fixture(autouse=True)
def nothing_left(journey: Journey) -> Iterator[None]:
    with cleared(journey.b):
        yield
        # An image is public, and unpacked to stay.
        journey.b.machine.must("rm", "-rf", "/var/lib/cisfs/images")


_SCRIPT = """
    sha256sum /public /srv/private/file /srv/private/below | cut -c 1-64
    ls /etc/passwd
"""
_GONE = "ls: /etc/passwd: No such file or directory\n"


def run_by_docker(journey: Journey, *more: str, script: str = _SCRIPT) -> Ended:
    """What is printed is logged by docker: checksums, then, on the disk."""
    return journey.b("run", "--rm", *more, journey.image, "sh", "-c", script)


def run_by_cisfs(journey: Journey, *more: str | Path, script: str = _SCRIPT) -> Ended:
    """`cisfs run` without another engine."""
    image = f"docker://{journey.image}"
    return journey.b.machine.cisfs("run", "--rm", *more, image, "sh", "-c", script)


@pytest.mark.usefixtures("unlocked")
@pytest.mark.parametrize("engine", ["docker", "cisfs"])
def test_who_has_the_key_runs_it(journey: Journey, engine: str) -> None:
    run = run_by_docker if engine == "docker" else run_by_cisfs
    ended = run(journey, *(["--runtime=cisfs"] if engine == "docker" else []))
    canaries = (journey.public, *journey.private)
    assert ended.stdout.splitlines() == [each.checksum for each in canaries], ended
    assert ended.stderr == _GONE


def test_who_has_not_is_refused(journey: Journey) -> None:
    ended = run_by_docker(journey, "--runtime=cisfs", script="echo ran")
    assert (ended.returncode, ended.stdout) == (125, "")
    assert "locked" in ended.stderr
    assert "cisfs unlock" in ended.stderr
    assert journey.identity in ended.stderr
    other = journey.b.machine.memory / "other.key"
    must(journey.b.machine, "keygen", "-o", other)
    wrong: tuple[str | Path, ...] = ("--identity", other)
    for key in ((), wrong):
        ended = run_by_cisfs(journey, *key, script="echo ran")
        assert (ended.returncode, ended.stdout) == (125, ""), ended
        assert ended.stderr.startswith("cisfs: ")
        assert ended.stderr.count("\n") == 1


def test_without_cisfs_the_files_are_not_there(journey: Journey) -> None:
    ended = run_by_docker(journey, script=f"find / -xdev; {_SCRIPT}")
    assert "/public" in ended.stdout.splitlines()
    assert "private" not in ended.stdout
    assert journey.public.checksum in ended.stdout
    assert "/etc/passwd" in ended.stdout


@pytest.mark.usefixtures("unlocked")
def test_no_disk_but_the_first_has_what_is_sealed(journey: Journey) -> None:
    """After both ways to run it, searched raw; what is public is found there by the same search."""
    for ended in (run_by_docker(journey, "--runtime=cisfs"), run_by_cisfs(journey)):
        assert journey.private[0].checksum in ended.stdout
    a, b, middle = journey.a.machine, journey.b.machine, journey.registry
    for machine in (a, b, middle):
        assert journey.public.is_on(machine)
    for canary in journey.private:
        assert canary.is_on(a)  # docker has built it there
        assert not canary.is_on(middle)
        assert not canary.is_on(b)


def test_the_whole_image_is_no_base(journey: Journey) -> None:
    """What was sealed does not leave with the image that it was taken from."""
    a = journey.a.machine
    words = ["--base", f"docker-daemon:{APP}", "--layer", journey.sealed]
    ended = a.cisfs("push", journey.image, *words, "--ca-file", a.memory / TRUSTED)
    assert ended.returncode == 23, ended
    assert ended.stderr.count("\n") == 1
    assert not any(canary.is_on(journey.registry) for canary in journey.private)


def test_it_runs_before_its_data_is_there(journey: Journey) -> None:
    """What the containers read is fetched while they run, by the trust that docker has."""
    b = journey.b.machine
    b.must("rm", "-r", f"/var/lib/cisfs/sealed/{journey.identity}")
    with journey.unlocked():
        for ended in (run_by_docker(journey, "--runtime=cisfs"), run_by_cisfs(journey)):
            assert journey.private[0].checksum in ended.stdout, ended
    assert not any(canary.is_on(b) for canary in journey.private)
    must(b, "pull", journey.image)
