"""The names of images that the embedded engine takes, as skopeo writes them.

Pure functions over text; does not look whether there is such an image.  Safe anywhere.
Source: containers-transports(5).
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from cisfs.errors import EngineError

TRANSPORTS = ("oci", "docker-archive", "docker", "docker-daemon")
LOCAL = frozenset(("oci", "docker-archive", "docker-daemon"))
# A registry's reference: host and path, ":tag", "@digest" (distribution, reference.go).
_NAME = re.compile(
    r"(?:[a-zA-Z0-9.-]+|\[[0-9a-fA-F:]+\])(?::\d+)?(?:/[a-z0-9]+(?:(?:[._-]|__|-+)[a-z0-9]+)*)*"
    r"(?::[\w][\w.-]{0,127})?(?:@sha256:[0-9a-f]{64})?",
    re.ASCII,
)


@dataclass(frozen=True, slots=True)
class Reference:
    """One image's name: a transport, and the rest as that transport spells it."""

    transport: str
    rest: str

    def __str__(self) -> str:
        """Return it as skopeo takes it."""
        return f"{self.transport}:{self.rest}"

    @property
    def local(self) -> bool:
        """Whether looking at the original costs no network."""
        return self.transport in LOCAL


def transport_of(text: str) -> str | None:
    """Return the transport that a name begins with, None for a bare name."""
    return next((one for one in TRANSPORTS if text.startswith(f"{one}:")), None)


def parse(text: str) -> Reference:
    """Read an image's name; paths become absolute.  Raises EngineError for a bad one.

    A bare name is one of a registry, as docker has it.
    """
    if not text or "\0" in text or text.startswith("-"):
        raise EngineError(f"{text!r} names no image")
    transport = transport_of(text) or "docker"
    rest = text.removeprefix(f"{transport}:")
    if transport in ("oci", "docker-archive"):
        path, colon, name = rest.partition(":")
        if not path or (colon and not name):
            raise EngineError(
                f"image {text!r}: write it as {transport}:PATH or {transport}:PATH:NAME"
            )
        return Reference(transport, os.path.abspath(path) + colon + name)
    name = rest.removeprefix("//")
    if transport == "docker-daemon" and re.fullmatch(r"sha256:[0-9a-f]{64}", name):
        return Reference(transport, name)
    if not _NAME.fullmatch(name):
        raise EngineError(f"image {text!r}: {name!r} is not a name such as alpine:3.20")
    if transport == "docker":
        return Reference(transport, f"//{name}")
    return Reference(transport, name if ":" in name.rpartition("/")[2] else f"{name}:latest")
