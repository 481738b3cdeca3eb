"""Which engine runs a container, when the user leaves that to cisfs.

Asks whether engines are there; starts nothing.  Safe anywhere.
"""

from __future__ import annotations

from cisfs.errors import EngineError
from cisfs.runtime.images.reference import transport_of
from cisfs.runtime.options import Options

EMBEDDED, DOCKER, PODMAN = "embedded", "docker", "podman"


def choose(asked: str, options: Options) -> str:
    """Return the engine to take: the one that was asked for, or for "auto" what fits the image.

    Raises EngineError for what only the embedded one has.
    """
    found = _chosen(asked, options)
    if found != EMBEDDED and options.userns is not None:
        raise EngineError(
            f"--userns {options.userns}: {found} decides that for all of its containers; "
            "use --engine embedded"
        )
    return found


def _chosen(asked: str, options: Options) -> str:
    if asked != "auto":
        return asked
    if options.image is None or transport_of(options.image) not in (None, "docker-daemon"):
        return EMBEDDED
    from cisfs.runtime.engines import docker, podman

    if docker.is_ready():
        return DOCKER
    return PODMAN if podman.has_image(options.image) else EMBEDDED
