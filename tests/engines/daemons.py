"""dockerd, containerd and podman on a machine of the tests, as their packages set them up.

containerd comes first and dockerd uses it, as on a Debian that has both.  Everything is at its
usual place, on that machine; only control groups stay below the machine's own.  Does not know
cisfs: runtimes are given by name and path.  One of each at a time.
"""

from __future__ import annotations

import contextlib
import json
import socket
from collections.abc import Iterator, Mapping
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
_HANDLER = """
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.{name}]
  runtime_type = "io.containerd.runc.v2"
  pod_annotations = ["dev.cisfs.*"]
  container_annotations = ["dev.cisfs.*"]
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.{name}.options]
    BinaryName = "{path}"
"""


def answers(path: Path) -> bool:
    """Whether somebody listens on a socket."""
    with socket.socket(socket.AF_UNIX) as tried:
        try:
            tried.connect(str(path))
        except OSError:
            return False
    return True


@contextlib.contextmanager
def containerd(machine: Machine, runtimes: Mapping[str, str] | None = None) -> Iterator[None]:
    """containerd with its CRI plugin, and runtime handlers by their programs."""
    config = machine.outside("/etc/containerd/config.toml")
    config.parent.mkdir(exist_ok=True)
    handlers = [_HANDLER.format(name=name, path=path) for name, path in (runtimes or {}).items()]
    config.write_text(_CONTAINERD.format(pause=PAUSE) + "".join(handlers))
    sock = machine.outside(CONTAINERD_SOCKET)
    with machine.daemon("containerd", ready=lambda: answers(sock)):
        yield


@contextlib.contextmanager
def dockerd(
    machine: Machine, containerd: str, runtimes: Mapping[str, str] | None = None
) -> Iterator[None]:
    """dockerd over the containerd at a socket, with further runtimes by their programs."""
    config = machine.outside("/etc/docker/daemon.json")
    config.parent.mkdir(exist_ok=True)
    settings = {
        "bip": "172.31.77.1/24",
        "cgroup-parent": machine.group,
        "containerd": containerd,
        "log-level": "warn",
        "runtimes": {name: {"path": path} for name, path in (runtimes or {}).items()},
        "storage-driver": "overlay2",
        "userland-proxy": False,
    }
    config.write_text(json.dumps(settings))
    sock = machine.outside(DOCKER_SOCKET)
    with machine.daemon("dockerd", ready=lambda: answers(sock)):
        yield
