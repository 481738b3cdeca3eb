"""What keeps a container of the embedded engine apart, and how much it may use.

Values, made from the options and from what this host can enforce; does not know how they are
written for an engine (`cisfs.runtime.bundle`).  Immutable; safe anywhere.
"""

from __future__ import annotations

import os
import resource
from dataclasses import dataclass, field
from enum import Enum

from cisfs.errors import EngineError
from cisfs.mount import proc
from cisfs.runtime import cgroup
from cisfs.runtime.options import AUTO, PIDS_LIMIT, Options, Tmpfs, Volume
from cisfs.runtime.spelling import bounding, capabilities

OPEN_FILES_HARD = 524288  # systemd's default
# docker's (moby, oci/caps/defaults.go).
CAPABILITIES = (
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
)
# Files of the host that make names resolvable where its network is shared.
_RESOLVER_FILES = ("/etc/hosts", "/etc/resolv.conf")


class Wish(Enum):
    """Whether a container is to have a user namespace of its own."""

    NONE = "none"
    WANTED = "wanted"  # where it can be had
    NEEDED = "needed"  # or else no container


@dataclass(frozen=True, slots=True)
class Limits:
    """What the container and its parts may use; None: no limit of its own."""

    pids: int | None = PIDS_LIMIT
    memory: int | None = None  # bytes
    swap: bool = True  # False: the memory limit holds for memory and swap together
    cpus: float | None = None
    open_files: int = OPEN_FILES_HARD  # hard limit; not above this process's own


@dataclass(frozen=True, slots=True)
class Isolation:
    """Capabilities, mounts, network and limits of one container."""

    limits: Limits = field(default_factory=Limits)
    capabilities: tuple[str, ...] = CAPABILITIES
    host_network: bool = False
    volumes: tuple[Volume, ...] = ()
    tmpfs: tuple[Tmpfs, ...] = ()
    strict: bool = False  # nothing that can be written may be executed
    hostname: str = ""  # default: the first 12 characters of the identifier, as docker has it
    user_namespace: Wish = Wish.NONE
    sysfs: str | None = None  # one to show, by who may not mount that of its network


def of(options: Options) -> Isolation:
    """Return what settled options come to here.  Raises EngineError for what cannot be enforced."""
    host_network = _is_of_host(options)
    return Isolation(
        limits=_limits(options),
        capabilities=_capabilities(options),
        host_network=host_network,
        volumes=(*map(_checked, options.volumes), *(_resolvers(options) if host_network else ())),
        tmpfs=options.tmpfs,
        strict=options.strict,
        hostname=options.hostname or "",
        user_namespace=_user_namespace(options),
    )


def _capabilities(options: Options) -> tuple[str, ...]:
    """Return what the container may have; ALL is what there is to give, as it is for docker."""
    asked = capabilities(CAPABILITIES, options.cap_add, options.cap_drop)
    if "ALL" not in options.cap_add:
        return asked
    there = {*bounding(proc.status(os.getpid())), *options.cap_add}
    return tuple(one for one in asked if one in there)


def _user_namespace(options: Options) -> Wish:
    if options.userns is None:
        return Wish.WANTED if options.strict else Wish.NONE
    return Wish.NEEDED if options.userns == AUTO else Wish.NONE


def _is_of_host(options: Options) -> bool:
    if options.ports:
        raise EngineError(
            "--publish: the embedded engine has no network to publish ports of; "
            "use --engine docker, or --network host"
        )
    if options.network not in (None, "none", "host"):
        raise EngineError(
            f"--network {options.network}: the embedded engine has the networks none and host; "
            "use --engine docker for others"
        )
    return options.network == "host"


def _limits(options: Options) -> Limits:
    pids = options.pids_limit or None
    for option, asked, controller in (
        ("--memory", options.memory, "memory"),
        ("--cpus", options.cpus, "cpu"),
    ):
        if asked is not None and not cgroup.can_limit(controller):
            raise EngineError(f"{option}: this host has no {controller} controller to enforce it")
    return Limits(
        pids=pids if cgroup.can_limit("pids") else None,
        memory=options.memory,
        # What was decrypted must not get out to swap either, where the kernel can count it.
        swap=options.memory is None or not cgroup.can_limit_swap(),
        cpus=options.cpus,
        open_files=_open_files(),
    )


def _open_files() -> int:
    """Return the hard limit for the container: a raised one would take CAP_SYS_RESOURCE."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        return OPEN_FILES_HARD
    return min(hard, OPEN_FILES_HARD)


def _checked(volume: Volume) -> Volume:
    if volume.named:
        raise EngineError(
            f"--volume {volume.source}:{volume.target}: the embedded engine keeps no volumes; "
            "give a path such as ./data, or use --engine docker"
        )
    if not os.path.exists(volume.source):
        raise EngineError(f"--volume: {volume.source} does not exist; make it first")
    return volume


def _resolvers(options: Options) -> tuple[Volume, ...]:
    taken = {volume.target for volume in options.volumes}
    return tuple(
        Volume(os.path.realpath(path), path, read_only=True)
        for path in _RESOLVER_FILES
        if path not in taken and os.path.exists(path)
    )
