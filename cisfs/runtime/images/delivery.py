"""A public image of a registry, given to the engine that is to run it.

Does not know sealed layers.  Safe anywhere.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from cisfs.errors import EngineError, UsageError
from cisfs.registry.reference import Reference
from cisfs.runtime.images import store, tools
from cisfs.runtime.images.reference import parse

_TRANSPORTS = {"docker": "docker-daemon", "podman": "containers-storage"}


def target(reference: Reference, engine: str) -> str:
    """Return what docker or podman is to know an image by, as skopeo takes it.

    Raises UsageError for a name without a tag: they take none from a digest.
    """
    if reference.tag is None:
        raise UsageError(
            f"{reference} has no tag for {engine} to know the image by: write NAME:TAG@DIGEST"
        )
    return f"{_TRANSPORTS[engine]}:{replace(reference, digest=None)}"


def deliver(
    reference: Reference,
    digest: str,
    config: bytes,
    engine: str,
    directory: Path,
    *,
    plain: bool,
    ca_file: Path | None = None,
) -> None:
    """Give an image of a registry to docker, podman or the embedded engine.

    `digest` is that of its manifest, and `config` its configuration: the tag may have moved since
    they were found.  `directory` is the store of the embedded engine, which is reached as skopeo is
    set up to; `plain`: HTTP without TLS is allowed; `ca_file`: further authorities, PEM.  Raises
    UsageError as `target` does, EngineError, OSError.
    """
    if engine == "embedded":
        _provide(reference, config, directory)
        return
    source = f"docker://{reference.name}@{digest}"
    tools.deliver(source, target(reference, engine), plain=plain, ca_file=ca_file)


def _provide(reference: Reference, config: bytes, directory: Path) -> None:
    """Have the embedded engine fetch it under the name that it is to be run by."""
    named = reference if reference.digest is None else replace(reference, tag=None)
    found = store.provide(parse(f"docker://{named}"), directory, "always")
    if found.raw_config() != config:
        raise EngineError(f"{named} stands for another image than a moment ago: pull it again")
