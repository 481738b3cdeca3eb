"""Engines for real, each started once, on a machine of the tests' own.

After every test nothing may be left on it: no mount, process, loop device, file or key of ours, no
control group of a container.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import docker
import pytest

from tests.engines import cri, daemons, images
from tests.engines.clients import Client
from tests.engines.machine import Machine
from tests.engines.machine import machine as new_machine
from tests.engines.secret import Secret, prepare, unlocked
from tests.engines.traces import KEPT, traces, wait_for


@pytest.fixture(scope="session")
def machine() -> Iterator[Machine]:
    if os.geteuid() != 0:
        pytest.fail("these tests start engines: run them as root (scripts/test does)")
    with new_machine() as made:
        prepare(made)
        images.busybox(made.memory / "busybox.tar")
        images.debian(made.memory / "debian.tar")
        images.pause(made.memory / "pause.tar")
        yield made


@pytest.fixture(scope="session")
def containerd(machine: Machine) -> Iterator[str]:
    """Its socket.  It is told of the runtime before it starts."""
    daemons.configure_containerd(machine)
    told = configured(machine, "containerd")
    assert "kind: RuntimeClass" in told
    with daemons.containerd(machine):
        for name in ("busybox", "debian", "pause"):
            path = machine.memory / f"{name}.tar"
            machine.must("ctr", "--namespace=k8s.io", "images", "import", path)
        yield daemons.CONTAINERD_SOCKET


def configured(machine: Machine, engine: str) -> str:
    """Have an engine know the runtime "cisfs"; returns what the command says."""
    ended = machine.cisfs("runtime", "configure", "--engine", engine)
    assert ended.returncode == 0, ended
    return ended.stdout


@pytest.fixture(scope="session")
def kubelet(machine: Machine, containerd: str) -> Iterator[cri.Kubelet]:
    with cri.kubelet(machine.outside(containerd), machine.group) as made:
        yield made


@pytest.fixture(scope="session")
def dockerd(machine: Machine, containerd: str) -> Iterator[Client]:
    """It is told of the runtime while it runs."""
    daemons.configure_dockerd(machine, containerd)
    with daemons.dockerd(machine):
        client = Client(machine, "docker")
        for name in ("busybox", "debian"):
            client.must("load", "--quiet", "--input", machine.memory / f"{name}.tar")
        configured(machine, "docker")
        yield client


@pytest.fixture(scope="session")
def docker_api(dockerd: Client) -> Iterator[docker.DockerClient]:
    sock = dockerd.machine.outside(daemons.DOCKER_SOCKET)
    client = docker.DockerClient(f"unix://{sock}", timeout=60)
    yield client
    client.close()


@pytest.fixture(scope="session")
def podman_engine(machine: Machine) -> Client:
    options = ["--cgroup-manager=cgroupfs", "--events-backend=none", "--storage-driver=overlay"]
    client = Client(machine, "podman", *options)
    for name in ("busybox", "debian"):
        client.must("load", "--quiet", "--input", machine.memory / f"{name}.tar")
    configured(machine, "podman")
    return client


@pytest.fixture(scope="session")
def secret(machine: Machine) -> Iterator[Secret]:
    """A layer that is unlocked."""
    with unlocked(machine, "secret") as made:
        yield made


@pytest.fixture
def kept(machine: Machine) -> Iterator[str]:
    """What names a persistent scratch, which is gone in the end."""
    yield f"persistent:{KEPT}"
    machine.must("rm", "-rf", f"/var/lib/cisfs/scratch/{KEPT}")


@contextlib.contextmanager
def cleared(client: Client) -> Iterator[Client]:
    """An engine without containers, of which none is left and neither is anything else."""
    before = traces(client.machine)
    try:
        yield client
    finally:
        client.clear()
    wait_for(client.machine, before)


@pytest.fixture
def dock(dockerd: Client) -> Iterator[Client]:
    """docker, with no container of another test."""
    with cleared(dockerd) as client:
        yield client


@pytest.fixture
def cisfs_podman(podman_engine: Client) -> Iterator[Client]:
    """The same, with --runtime."""
    with cleared(podman_engine.with_options("--runtime=cisfs")) as client:
        yield client


@pytest.fixture
def pod_man(podman_engine: Client) -> Iterator[Client]:
    """podman, with no container of another test."""
    with cleared(podman_engine) as client:
        yield client


@pytest.fixture
def nothing_left(machine: Machine) -> Iterator[None]:
    before = traces(machine)
    yield
    wait_for(machine, before)
