"""A public image of a registry, given to the engine that is to run it.

Does not know sealed layers.  Safe anywhere.
"""

from __future__ import annotations

from pathlib import Path

from cisfs.runtime.images import reference, store, tools


def deliver(
    name: str, engine: str, directory: Path, *, plain: bool, ca_file: Path | None = None
) -> None:
    """Give the image NAME of a registry to docker, podman or the embedded engine.

    `directory` is the store of the latter, which is reached as skopeo is set up to; `plain`: HTTP
    without TLS is allowed; `ca_file`: further authorities, PEM.  Raises EngineError, OSError.
    """
    source = reference.parse(f"docker://{name}")
    if engine == "embedded":
        store.provide(source, directory, "always")
        return
    target = "docker-daemon" if engine == "docker" else "containers-storage"
    tools.deliver(str(source), f"{target}:{name}", plain=plain, ca_file=ca_file)
