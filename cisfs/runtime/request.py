"""What one `cisfs run` was asked for, how it ended, and the checks that need no key.

Values and read-only looks at the filesystem; does not know how a container is run.  Safe anywhere.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cisfs.errors import EngineError
from cisfs.runtime import engine

MAX_LAYERS = 400  # each takes a server process; overlayfs itself ends at 500


@dataclass(frozen=True, slots=True)
class Request:
    """One run: `layers`, vaults or sealed ones, the first on top of all; `rootfs` lies below."""

    layers: tuple[Path, ...]
    rootfs: Path
    arguments: tuple[str, ...]
    environment: dict[str, str]
    working_directory: str
    user: str | None
    read_only: bool
    terminal: bool
    runc: str
    machine: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """The exit code of `cisfs run`, and the line to print before it, if any."""

    exit_code: int
    message: str = ""


def check(
    *,
    layers: Sequence[Path],
    rootfs: Path,
    arguments: Sequence[str],
    environment: dict[str, str],
    working_directory: str,
    user: str | None,
    read_only: bool,
    terminal: bool,
) -> Request:
    """Return the request, with absolute paths.  Raises EngineError for what cannot be run."""
    if not arguments:
        raise EngineError("no command given: end with the command to run and its arguments")
    if os.geteuid() != 0:
        raise EngineError(
            "`cisfs run` mounts filesystems and starts containers, which takes root: "
            "run it with sudo"
        )
    if not working_directory.startswith("/"):
        raise EngineError(f"--workdir {working_directory!r}: give an absolute path")
    if terminal and not os.isatty(0):
        raise EngineError("--tty: standard input is not a terminal; leave --tty out")
    if len(layers) > MAX_LAYERS:
        raise EngineError(f"{len(layers)} layers; at most {MAX_LAYERS} can be stacked")
    base = _rootfs(rootfs)
    return Request(
        layers=_layers(layers, base),
        rootfs=base,
        arguments=tuple(arguments),
        environment=environment,
        working_directory=working_directory,
        user=user,
        read_only=read_only,
        terminal=terminal,
        runc=engine.find(),
        machine=platform.machine(),
    )


def _rootfs(path: Path) -> Path:
    if not path.is_dir():
        what = "is not a directory" if path.exists() else "does not exist"
        raise EngineError(f"--rootfs {path} {what}; give a directory with a root filesystem")
    if (path / "vault.json").is_file():
        raise EngineError(f"--rootfs {path} is a vault; give it as --layer instead")
    return path.resolve()


def _layers(paths: Sequence[Path], rootfs: Path) -> tuple[Path, ...]:
    seen: list[Path] = []
    for path in paths:
        if not path.exists():
            raise EngineError(
                f"--layer {path} does not exist; make a vault with `cisfs init`, or a "
                "sealed layer with `cisfs seal`"
            )
        real = path.resolve()
        if real in seen:
            raise EngineError(f"--layer {path} is given twice; give each layer once")
        if real.is_relative_to(rootfs) or rootfs.is_relative_to(real):
            raise EngineError(
                f"--layer {path} and --rootfs {rootfs} lie one inside the other; keep them apart"
            )
        seen.append(real)
    return tuple(seen)
