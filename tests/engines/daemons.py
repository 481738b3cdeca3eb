"""dockerd, containerd and podman on a machine of the tests, as their packages set them up.

containerd comes first and dockerd uses it, as on a Debian that has both.  Everything is at its
usual place, on that machine; only control groups stay below the machine's own.  Does not know
cisfs.  One of each at a time.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from tests.engines.images import PAUSE
from tests.engines.machine import Machine
from tests.registry.harness.certificates import Certificate

CONTAINERD_SOCKET = "/run/containerd/containerd.sock"
DOCKER_SOCKET = "/run/docker.sock"
REGISTRY = "127.0.0.1:5000"  # on the machine's own loopback
IMAGE_KEYS = "/etc/cisfs/image-keys"  # for encrypted images; may be absent

_CONTAINERD = """\
version = 2

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  disable_apparmor = true
  restrict_oom_score_adj = true

[stream_processors."io.containerd.ocicrypt.decoder.v1.tar"]
  accepts = ["application/vnd.oci.image.layer.v1.tar+encrypted"]
  returns = "application/vnd.oci.image.layer.v1.tar"
  path = "{decoder}"
  args = ["--keys", "{keys}"]

[stream_processors."io.containerd.ocicrypt.decoder.v1.tar.gzip"]
  accepts = ["application/vnd.oci.image.layer.v1.tar+gzip+encrypted"]
  returns = "application/vnd.oci.image.layer.v1.tar+gzip"
  path = "{decoder}"
  args = ["--keys", "{keys}"]
"""
_DECODER = Path(sys.executable).with_name("cisfs-decoder")


def answers(path: Path) -> bool:
    """Whether somebody listens on a socket."""
    with socket.socket(socket.AF_UNIX) as tried:
        try:
            tried.connect(str(path))
        except OSError:
            return False
    return True


def configure_containerd(machine: Machine) -> None:
    """Write what there is before cisfs adds to it."""
    text = _CONTAINERD.format(pause=PAUSE, decoder=_DECODER, keys=IMAGE_KEYS)
    _write(machine, "/etc/containerd/config.toml", text)


def configure_dockerd(machine: Machine, containerd: str) -> None:
    """The same for dockerd, which is to use the containerd at a socket."""
    settings = {
        "bip": "172.31.77.1/24",
        "cgroup-parent": machine.group,
        "containerd": containerd,
        "log-level": "warn",
        "storage-driver": "overlay2",
        "userland-proxy": False,
    }
    _write(machine, "/etc/docker/daemon.json", json.dumps(settings))


@contextlib.contextmanager
def containerd(machine: Machine) -> Iterator[None]:
    """containerd with its CRI plugin, as it is configured."""
    sock = machine.outside(CONTAINERD_SOCKET)
    with machine.daemon("containerd", ready=lambda: answers(sock)):
        yield


@contextlib.contextmanager
def dockerd(machine: Machine) -> Iterator[None]:
    """dockerd, as it is configured."""

    def ready() -> bool:
        """It listens before it minds SIGHUP, of which it would die; it answers after that."""
        return machine.run("docker", "version").returncode == 0

    with machine.daemon("dockerd", ready=ready):
        yield


@contextlib.contextmanager
def registry(machine: Machine) -> Iterator[str]:
    """docker-registry, which keeps everything in the machine's memory; yields its address."""
    storage = machine.memory / "registry"
    with _registry(machine, REGISTRY, storage, {}):
        yield REGISTRY
    shutil.rmtree(storage)


@contextlib.contextmanager
def registry_of_many(machine: Machine, host: str, certificate: Certificate) -> Iterator[str]:
    """The same for other machines, with TLS, and with everything on the machine's disk."""
    tls = {"certificate": str(certificate.certificate), "key": str(certificate.key)}
    address = f"{host}:5000"
    with _registry(machine, address, Path("/var/lib/registry"), {"tls": tls}):
        yield address


@contextlib.contextmanager
def _registry(
    machine: Machine, address: str, storage: Path, more: Mapping[str, object]
) -> Iterator[None]:
    config = {
        "version": "0.1",
        "storage": {"filesystem": {"rootdirectory": str(storage)}},
        "http": {"addr": address, **more},
    }
    file = machine.memory / "registry.yml"
    file.write_text(json.dumps(config))
    host, _, port = address.partition(":")
    tried = ["bash", "-c", f": </dev/tcp/{host}/{port}"]

    def ready() -> bool:
        return machine.run(*tried).returncode == 0

    with machine.daemon("docker-registry", "serve", file, ready=ready):
        yield


def _write(machine: Machine, path: str, text: str) -> None:
    file = machine.outside(path)
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
