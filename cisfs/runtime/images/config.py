"""An image's configuration, as far as it says how to run the image.

Bytes to values, with docker's rules for how they meet the command line; no I/O.  Safe anywhere.
Source: OCI image-spec 1.0, config.md; the rules are moby's (daemon/commit.go, merge).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from cisfs.errors import EngineError
from cisfs.runtime.environment import from_list

# uname's machine to Go's GOARCH, which images speak.
ARCHITECTURES = {
    "x86_64": "amd64",
    "aarch64": "arm64",
    "armv7l": "arm",
    "i686": "386",
    "ppc64le": "ppc64le",
    "riscv64": "riscv64",
    "s390x": "s390x",
}
# Programs for these run there, too.
_COMPATIBLE = {"amd64": {"386"}, "arm64": {"arm"}}


@dataclass(frozen=True, slots=True)
class ImageConfig:
    """What an image says about the containers made of it; empty for a bare root filesystem."""

    environment: dict[str, str] = field(default_factory=dict)
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    working_directory: str = ""
    user: str = ""
    stop_signal: str = ""
    exposed_ports: tuple[str, ...] = ()
    platform: str = ""  # "linux/amd64"
    diff_ids: tuple[str, ...] | None = None  # of its layers, the lowest first


def parse(data: bytes, reference: str) -> ImageConfig:
    """Read an image configuration.  Raises EngineError, which names `reference`, for a bad one."""
    try:
        document = json.loads(data)
        wanted = document.get("config") or {}
        return ImageConfig(
            environment=from_list(_words(wanted.get("Env"))),
            entrypoint=tuple(_words(wanted.get("Entrypoint"))),
            command=tuple(_words(wanted.get("Cmd"))),
            working_directory=_text(wanted.get("WorkingDir")),
            user=_text(wanted.get("User")),
            stop_signal=_text(wanted.get("StopSignal")),
            exposed_ports=tuple(_words(list(wanted.get("ExposedPorts") or {}))),
            diff_ids=tuple(_words((document.get("rootfs") or {}).get("diff_ids"))),
            platform=f"{_text(document.get('os'))}/{_text(document.get('architecture'))}",
        )
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise EngineError(f"image {reference}: its configuration is malformed ({error})") from None


def _words(value: object) -> list[str]:
    """Return a list of strings, which JSON's null is an empty one of."""
    if value is None:
        return []
    if not isinstance(value, list) or not all(isinstance(word, str) for word in value):
        raise TypeError("a list of strings was expected")
    return value


def _text(value: object) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise TypeError("a string was expected")
    return value


def check_platform(config: ImageConfig, machine: str, reference: str) -> None:
    """Refuse an image whose programs this machine cannot run.  Raises EngineError."""
    own = ARCHITECTURES.get(machine, machine)
    system, _, architecture = config.platform.partition("/")
    if system != "linux" or architecture not in {own, *_COMPATIBLE.get(own, ())}:
        raise EngineError(
            f"image {reference} is for {config.platform}, and this machine is linux/{own}"
        )


def arguments(
    image: ImageConfig, entrypoint: str | None, command: Sequence[str]
) -> tuple[str, ...]:
    """Return what to execute: entry point and command, the user's words instead of the image's.

    An entry point of the user's takes the image's command away as well; "" is none at all.
    """
    if entrypoint is not None:
        return (*([entrypoint] if entrypoint else []), *command)
    return (*image.entrypoint, *(command or image.command))
