"""The OCI runtime configuration (config.json) of a container, with docker's defaults.

Pure functions over values: no I/O, and no knowledge of how the root filesystem came to be.  Safe
anywhere.  Source: OCI runtime-spec 1.0.2, config.md and config-linux.md; the lists are docker's
(moby, oci/defaults.go) where no other reason is given.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from cisfs.errors import EngineError
from cisfs.mount.idmap import SIZE
from cisfs.runtime import seccomp
from cisfs.runtime.account import Account
from cisfs.runtime.isolation import Isolation, Limits
from cisfs.runtime.options import tmpfs_options

Json = dict[str, object]

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
OPEN_FILES_SOFT = 1024  # a high soft limit slows programs that close "all" descriptors
MASKED_PATHS = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
)
READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")
NAMESPACES = ("cgroup", "ipc", "mount", "network", "pid", "uts")

_CPU_PERIOD = 100_000  # microseconds, the kernel's default
_SHARED_MEMORY = "/dev/shm"  # noqa: S108 - a mount point in the container, no file of ours


@dataclass(frozen=True, slots=True)
class Container:
    """Everything that config.json depends on."""

    identifier: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str]  # what the user asked for; the defaults are added here
    account: Account
    root: str  # directory of the root filesystem, absolute or relative to the bundle
    working_directory: str = "/"
    read_only: bool = False
    terminal: tuple[int, int] | None = None  # columns and lines, None without a terminal
    machine: str = "x86_64"  # uname's
    isolation: Isolation = field(default_factory=Isolation)
    first_owner: int | None = None  # of the ids of its user namespace; None: it has none

    @property
    def host(self) -> str:
        """The name of the container's host."""
        return self.isolation.hostname or self.identifier[:12]


def environment(container: Container) -> dict[str, str]:
    """Return the whole environment of the command: docker's defaults under the user's settings."""
    defaults = {
        "PATH": DEFAULT_PATH,
        "HOSTNAME": container.host,
        "HOME": container.account.home,
    }
    if container.terminal:
        defaults["TERM"] = "xterm"
    return {**defaults, **container.environment}


def cgroup_path(identifier: str) -> str:
    """Return where a container's control groups are, below each hierarchy's root."""
    return f"/cisfs/{identifier}"


def config(container: Container) -> Json:
    """Return config.json.  Raises EngineError for text that JSON cannot carry (not UTF-8)."""
    words = [*container.arguments, container.working_directory]
    words += [word for one in container.isolation.volumes for word in (one.source, one.target)]
    words += [f"{name}={value}" for name, value in container.environment.items()]
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError:
            raise EngineError(
                f"{word!r} is not UTF-8, which an OCI configuration cannot express"
            ) from None
    return {
        "ociVersion": "1.0.2",
        "process": _process(container),
        "root": {"path": container.root, "readonly": container.read_only},
        "hostname": container.host,
        "mounts": [*_mounts(container), *_added(container)],
        "annotations": {"dev.cisfs.run": container.identifier},
        "linux": _linux(container),
    }


def _process(container: Container) -> Json:
    account = container.account
    held = list(container.isolation.capabilities)
    capabilities: dict[str, list[str]] = {"bounding": held}
    if account.uid == 0:
        # Any other user starts with none, as if execve(2) had been called as that user.
        capabilities |= {"effective": held, "permitted": held}
    terminal: Json = {"terminal": False}
    if container.terminal:
        # The size as well: the command may ask for it before anybody could set it.
        columns, lines = container.terminal
        terminal = {"terminal": True, "consoleSize": {"width": columns, "height": lines}}
    return {
        **terminal,
        "user": {"uid": account.uid, "gid": account.gid, "additionalGids": list(account.groups)},
        "args": list(container.arguments),
        "env": [f"{name}={value}" for name, value in environment(container).items()],
        "cwd": container.working_directory,
        "capabilities": capabilities,
        "noNewPrivileges": True,
        "rlimits": [
            {
                "type": "RLIMIT_NOFILE",
                "soft": min(OPEN_FILES_SOFT, container.isolation.limits.open_files),
                "hard": container.isolation.limits.open_files,
            },
            # No memory of a container that saw plaintext may reach the host's disk as a core.  The
            # kernel ignores a limit of 0 when cores go to a pipe, and refuses at 1 (core(5),
            # fs/coredump.c); a core file of one byte is none.
            {"type": "RLIMIT_CORE", "soft": 1, "hard": 1},
        ],
    }


def _linux(container: Container) -> Json:
    shared = ("network",) if container.isolation.host_network else ()
    # Its ports are the container's own affair: no capability is needed for those below 1024.
    own: Json = {"net.ipv4.ip_unprivileged_port_start": "0"}
    kinds = [kind for kind in NAMESPACES if kind not in shared]
    owners: Json = {}
    if container.first_owner is not None:
        kinds.append("user")
        owners = {f"{kind}Mappings": [_ids(container.first_owner)] for kind in ("uid", "gid")}
    return {
        **owners,
        "cgroupsPath": cgroup_path(container.identifier),
        "namespaces": [{"type": kind} for kind in kinds],
        "sysctl": {} if shared else own,
        "resources": _resources(container.isolation.limits),
        "maskedPaths": list(MASKED_PATHS),
        "readonlyPaths": list(READONLY_PATHS),
        "seccomp": seccomp.profile(container.machine, container.isolation.capabilities),
    }


def _ids(first: int) -> Json:
    return {"containerID": 0, "hostID": first, "size": SIZE}


def _resources(limits: Limits) -> Json:
    resources: Json = {"devices": [{"allow": False, "access": "rwm"}]}  # runc adds the usual ones
    if limits.pids is not None:
        resources["pids"] = {"limit": limits.pids}
    if limits.memory is not None:
        memory = {"limit": limits.memory}
        if not limits.swap:
            memory["swap"] = limits.memory
        resources["memory"] = memory
    if limits.cpus is not None:
        resources["cpu"] = {"period": _CPU_PERIOD, "quota": round(limits.cpus * _CPU_PERIOD)}
    return resources


def _mounts(container: Container) -> list[Json]:
    quiet = ["nosuid", "noexec", "nodev"]
    devices = ["nosuid", "strictatime", "mode=755", "size=65536k"]
    if container.isolation.strict:
        devices.append("noexec")
    return [
        _mount("/proc", "proc", quiet),
        _mount("/dev", "tmpfs", devices),
        _mount(
            "/dev/pts",
            "devpts",
            ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        _mount(_SHARED_MEMORY, "tmpfs", [*quiet, "mode=1777", "size=65536k"], source="shm"),
        _mount("/dev/mqueue", "mqueue", quiet),
        _sysfs(container.isolation.sysfs, [*quiet, "ro"]),
        _mount("/sys/fs/cgroup", "cgroup", [*quiet, "ro"]),
    ]


def _sysfs(shown: str | None, options: list[str]) -> Json:
    if shown is None:
        return _mount("/sys", "sysfs", options)
    return _mount("/sys", "bind", ["bind", "rprivate", *options], source=shown)


def _added(container: Container) -> list[Json]:
    """Return the mounts that were asked for, outer ones first."""
    kept = ["noexec", "nosuid", "nodev"] if container.isolation.strict else []
    mounts = [
        _mount(one.target, "tmpfs", [*tmpfs_options(one), *kept])
        for one in container.isolation.tmpfs
    ]
    for volume in container.isolation.volumes:
        chosen = ["ro" if volume.read_only else "rw", *kept]
        # And so for what is mounted below the source (mount_setattr(2), Linux 5.12, runc 1.1).
        below = [f"r{option}" for option in chosen if option != "rw"]
        options = ["rbind", "rprivate", *chosen, *below]
        mounts.append(_mount(volume.target, "bind", options, source=volume.source))
    return sorted(mounts, key=lambda mount: str(mount["destination"]).count("/"))


def _mount(destination: str, kind: str, options: list[str], source: str | None = None) -> Json:
    return {
        "destination": destination,
        "type": kind,
        "source": source or kind,
        "options": options,
    }
