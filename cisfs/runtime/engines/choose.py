"""Which engine runs a container, when the user leaves that to cisfs.

Asks whether engines are there; starts nothing.  Safe anywhere.
"""

from __future__ import annotations

from cisfs.runtime.images.reference import transport_of
from cisfs.runtime.options import Options

EMBEDDED, DOCKER, PODMAN = "embedded", "docker", "podman"


def choose(asked: str, options: Options) -> str:
    """Return the engine to take: the one that was asked for, or for "auto" what fits the image."""
    if asked != "auto":
        return asked
    if options.image is None or transport_of(options.image) not in (None, "docker-daemon"):
        return EMBEDDED
    from cisfs.runtime.engines import docker, podman

    if docker.is_ready():
        return DOCKER
    return PODMAN if podman.has_image(options.image) else EMBEDDED
