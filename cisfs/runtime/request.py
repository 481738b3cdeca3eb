"""What one run of the embedded engine comes to, how it ended, and the checks that need no key.

Values and read-only looks at the filesystem; does not know how a container is run.  Safe anywhere.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cisfs.errors import EngineError
from cisfs.layer.admission import named_by_environment
from cisfs.mount.assignment import FETCH_PATIENCE, patience
from cisfs.registry.attach import resolve, resolve_from_here
from cisfs.runtime import engine, environment, isolation
from cisfs.runtime.images.config import ImageConfig, arguments
from cisfs.runtime.isolation import Isolation
from cisfs.runtime.options import Options, settled
from cisfs.runtime.scratch import Scratch, parse
from cisfs.runtime.store import scratch_place

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
    scratch: Scratch
    fetch_patience: float  # seconds
    store: Path  # what cisfs keeps on this host
    isolation: Isolation
    stop_signal: str | None = None
    name: str | None = None
    image: str = ""  # what it was called, for those who list containers
    remove: bool = False  # from the list, when it has ended in the background

    @property
    def scratch_place(self) -> Path | None:
        """Where its scratch is, if it is a persistent one."""
        return scratch_place(self.scratch, self.store)


@dataclass(frozen=True, slots=True)
class Outcome:
    """The exit code of `cisfs run`, and the line to print before it, if any."""

    exit_code: int
    message: str = ""


def check_caller(options: Options) -> None:
    """Refuse what cannot be run whatever the image.  Raises EngineError."""
    if options.image is None and not (options.arguments or options.entrypoint):
        raise EngineError("no command given: end with the command to run and its arguments")
    if os.geteuid() != 0:
        raise EngineError(
            "`cisfs run` mounts filesystems and starts containers, which takes root: "
            "run it with sudo"
        )
    if options.working_directory is not None and not options.working_directory.startswith("/"):
        raise EngineError(f"--workdir {options.working_directory!r}: give an absolute path")
    check_terminal(options)


def check_terminal(options: Options) -> None:
    """Refuse a terminal where there is none.  Raises EngineError."""
    if options.terminal and not options.detach and not os.isatty(0):
        raise EngineError("--tty: standard input is not a terminal; leave --tty out")


def check(options: Options, rootfs: Path, image: ImageConfig, store: Path) -> Request:
    """Return the request, with absolute paths.  Raises EngineError for what cannot be run."""
    check_caller(options)
    asked = environment.split({**image.environment, **options.environment})
    if asked.scratch and options.scratch is None and not (options.read_only or options.strict):
        options = replace(options, scratch=parse(asked.scratch))
    if asked.fetch_timeout and options.fetch_patience is None:
        options = replace(options, fetch_patience=patience(asked.fetch_timeout))
    options = settled(options)
    layers = list(map(resolve_from_here, options.layers))
    layers = layers or [resolve(layer, named_by_environment()) for layer in asked.layers]
    words = arguments(image, options.entrypoint, options.arguments)
    if not words:
        raise EngineError(f"no command given, and image {options.image} names none")
    if len(layers) > MAX_LAYERS:
        raise EngineError(f"{len(layers)} layers; at most {MAX_LAYERS} can be stacked")
    base = _rootfs(rootfs)
    return Request(
        layers=_layers(layers, base),
        rootfs=base,
        arguments=words,
        environment=asked.environment,
        working_directory=options.working_directory or image.working_directory or "/",
        user=options.user if options.user is not None else image.user or None,
        read_only=options.read_only,
        terminal=options.terminal,
        runc=engine.find(),
        machine=platform.machine(),
        scratch=options.scratch or Scratch(),
        fetch_patience=options.fetch_patience or FETCH_PATIENCE,
        store=store.absolute(),  # read where the current directory is another
        isolation=isolation.of(options),
        stop_signal=image.stop_signal or None,
        name=options.name,
        image=options.image or str(base),
        remove=options.remove,
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
