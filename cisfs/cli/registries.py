"""What the commands that speak to registries have in common: options, and the way there.

Does not know what any of them does.  One call per process.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cisfs.registry.reference import Reference
    from cisfs.registry.repository import Repository
    from cisfs.registry.session import Access

PREFIX = "docker://"


def add_access_options(parser: argparse.ArgumentParser) -> None:
    """Give `parser` the options that say how registries are reached."""
    group = parser.add_argument_group(
        "registry",
        "Logins are those of docker and podman: config.json, auth.json and credential\n"
        "helpers; so are authorities of single registries: /etc/docker/certs.d,\n"
        "/etc/containers/certs.d.",
    )
    group.add_argument(
        "--ca-file", metavar="FILE", type=Path, help="trust the authorities in FILE as well (PEM)"
    )
    group.add_argument(
        "--plain-http",
        action="store_true",
        help="allow HTTP without TLS to any host; to this machine itself it is always allowed",
    )


def access_of(args: argparse.Namespace) -> Access:
    """Return how registries are reached."""
    from cisfs.registry.session import Access

    return Access(ca_file=args.ca_file, plain_http=args.plain_http)


def reference_of(text: str) -> Reference:
    """Read a reference, with or without docker:// before it.  Raises UsageError."""
    from cisfs.registry.reference import Reference

    return Reference.parse(text.removeprefix(PREFIX))


def machine() -> str:
    """Return this machine's architecture in OCI's words."""
    import platform

    from cisfs.runtime.images.config import ARCHITECTURES

    name = platform.machine()
    return ARCHITECTURES.get(name, name)


@contextmanager
def engine_failures() -> Iterator[None]:
    """Turn what an engine or skopeo refused into an ordinary failure: 125 is for `run`."""
    from cisfs.errors import CisfsError, EngineError

    try:
        yield
    except EngineError as error:
        raise CisfsError(str(error)) from None


@contextmanager
def repository_of(args: argparse.Namespace, reference: Reference) -> Iterator[Repository]:
    """Yield the repository of a reference; says what to install where HTTP is missing."""
    from cisfs.errors import UsageError

    if importlib.util.find_spec("httpx") is None:
        raise UsageError(
            "registries take the package httpx; install it with: pip install 'cisfs[registry]'"
        )
    from cisfs.registry.repository import open_repository

    with open_repository(reference, access_of(args)) as repository:
        yield repository
