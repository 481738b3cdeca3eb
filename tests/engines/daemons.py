"""dockerd, containerd and podman on a machine of the tests, as their packages set them up.

containerd comes first and dockerd uses it, as on a Debian that has both.  Everything is at its
usual place, on that machine; only control groups stay below the machine's own.  Does not know
cisfs.  One of each at a time.
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator
from pathlib import Path

from tests.engines.images import PAUSE
from tests.engines.machine import Machine

CONTAINERD_SOCKET = "/run/containerd/containerd.sock"
DOCKER_SOCKET = "/run/docker.sock"

_CONTAINERD = """\
version = 2

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  disable_apparmor = true
  restrict_oom_score_adj = true
"""


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
    _write(machine, "/etc/containerd/config.toml", _CONTAINERD.format(pause=PAUSE))


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
    sock = machine.outside(DOCKER_SOCKET)
    with machine.daemon("dockerd", ready=lambda: answers(sock)):
        yield


def _write(machine: Machine, path: str, text: str) -> None:
    file = machine.outside(path)
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
