"""What the command line of `cisfs run` asks for, in terms that every engine understands.

Values, and what `--profile strict` makes of them; does not know how a word is spelled
(`cisfs.runtime.spelling`) or what an engine does with it.  Immutable; safe anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from cisfs.errors import EngineError
from cisfs.runtime.scratch import Kind, Scratch

DEFAULT, STRICT = "default", "strict"
PROFILES = (DEFAULT, STRICT)
AUTO, HOST = "auto", "host"
USER_NAMESPACES = (AUTO, HOST)
PULL_POLICIES = ("always", "missing", "never")
PIDS_LIMIT = 4096  # processes and threads; stops a fork bomb, not a build

STRICT_MEMORY = 512 << 20  # bytes; --memory says otherwise
STRICT_PIDS_LIMIT = 512
# Where programs expect to write whatever else is read-only; memory, and nothing in it executes.
STRICT_TMPFS = ("/run", "/tmp", "/var/tmp")  # noqa: S108 - paths in the container
_STRICT_TMPFS_SIZE = "size=64m"


@dataclass(frozen=True, slots=True)
class Volume:
    """A directory or file of the host (absolute), or a named volume, shown in the container."""

    source: str
    target: str
    read_only: bool = False

    @property
    def named(self) -> bool:
        """Whether the source is the name of a volume that the engine keeps, and no path."""
        return not self.source.startswith("/")


@dataclass(frozen=True, slots=True)
class Tmpfs:
    """A file system in memory, with mount options as mount(8) writes them."""

    target: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Port:
    """A port of the container that the host answers on; `host_port` None: any free one."""

    container_port: int
    protocol: str = "tcp"
    host_port: int | None = None
    address: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """One `cisfs run`; None stands for "not said" wherever an image or engine has a default."""

    image: str | None = None
    rootfs: Path | None = None  # instead of an image
    arguments: tuple[str, ...] = ()
    entrypoint: str | None = None  # "" removes the image's
    layers: tuple[str, ...] = ()  # paths or names as given, the first on top
    scratch: Scratch | None = None
    fetch_patience: float | None = None  # seconds that a read waits for what was not fetched yet
    profile: str = DEFAULT
    pull: str = "missing"
    environment: Mapping[str, str] = field(default_factory=dict)
    working_directory: str | None = None
    user: str | None = None
    interactive: bool = False
    terminal: bool = False
    detach: bool = False
    remove: bool = False
    name: str | None = None
    hostname: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    volumes: tuple[Volume, ...] = ()
    tmpfs: tuple[Tmpfs, ...] = ()
    network: str | None = None
    ports: tuple[Port, ...] = ()
    memory: int | None = None  # bytes
    cpus: float | None = None
    pids_limit: int | None = None  # 0: no limit
    read_only: bool = False
    cap_add: tuple[str, ...] = ()  # "CAP_..." or "ALL"
    cap_drop: tuple[str, ...] = ()
    userns: str | None = None  # a user namespace of its own (AUTO) or none (HOST)

    @property
    def strict(self) -> bool:
        """Whether the strict profile was asked for."""
        return self.profile == STRICT


def settled(options: Options) -> Options:
    """Return the options with the profile's defaults in the place of what was not said.

    Raises EngineError for options that contradict each other.
    """
    wanted = options.scratch
    if options.read_only and wanted is not None and wanted.kind is not Kind.NONE:
        raise EngineError(
            f"--read-only and --scratch {wanted} contradict each other; give one of them"
        )
    if options.strict:
        options = _strict(options)
    scratch = Scratch(Kind.NONE) if options.read_only else options.scratch or Scratch()
    return replace(
        options,
        scratch=scratch,
        read_only=scratch.kind is Kind.NONE,
        pids_limit=PIDS_LIMIT if options.pids_limit is None else options.pids_limit,
    )


def _strict(options: Options) -> Options:
    taken = {one.target for one in options.volumes} | {one.target for one in options.tmpfs}
    added = [
        Tmpfs(target, (_STRICT_TMPFS_SIZE, "mode=1777"))
        for target in STRICT_TMPFS
        if target not in taken
    ]
    return replace(
        options,
        cap_drop=("ALL",),
        scratch=Scratch(Kind.NONE) if options.scratch is None else options.scratch,
        network="none" if options.network is None and not options.ports else options.network,
        memory=STRICT_MEMORY if options.memory is None else options.memory,
        pids_limit=STRICT_PIDS_LIMIT if options.pids_limit is None else options.pids_limit,
        tmpfs=(*added, *options.tmpfs),
    )


def tmpfs_options(one: Tmpfs) -> tuple[str, ...]:
    """Return all mount options of a tmpfs: docker's defaults, then what was asked for.

    Of two that contradict each other the last counts, as in mount(8).
    """
    return ("noexec", "nosuid", "nodev", *one.options)
