"""The OCI runtime configuration (config.json) of a container, with docker's defaults.

Pure functions over values: no I/O, and no knowledge of how the root filesystem came to be.  Safe
anywhere.  Source: OCI runtime-spec 1.0.2, config.md and config-linux.md; the lists are docker's
(moby, oci/defaults.go and oci/caps/defaults.go) where no other reason is given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cisfs.errors import EngineError
from cisfs.runtime.account import Account

Json = dict[str, object]

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PIDS_LIMIT = 4096  # processes and threads; stops a fork bomb, not a build
OPEN_FILES_SOFT = 1024  # a high soft limit slows programs that close "all" descriptors
OPEN_FILES_HARD = 524288  # systemd's default

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

# Refused to every container although no capability guards them: the kernel keyring is per user
# and not per container, so root in the container could read the keys that `cisfs unlock` left for
# root on the host; the others are there for attacks on the kernel far more often than for use.
REFUSED_CALLS = (
    "add_key",
    "bpf",
    "io_uring_enter",
    "io_uring_register",
    "io_uring_setup",
    "keyctl",
    "perf_event_open",
    "request_key",
    "userfaultfd",
)
_EPERM = 1
_SHARED_MEMORY = "/dev/shm"  # noqa: S108 - a mount point in the container, no file of ours
# A filter that knows only the native calls can be walked around through the 32-bit entry.
_ARCHITECTURES: Mapping[str, tuple[str, ...]] = {
    "x86_64": ("SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"),
    "aarch64": ("SCMP_ARCH_AARCH64", "SCMP_ARCH_ARM"),
}


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
    pids_limit: int | None = PIDS_LIMIT  # None where no controller can enforce it
    open_files: int = OPEN_FILES_HARD  # hard limit; not above this process's own
    machine: str = "x86_64"  # uname's

    @property
    def hostname(self) -> str:
        """The first 12 characters of the identifier, as docker has it."""
        return self.identifier[:12]


def parse_environment(settings: Sequence[str]) -> dict[str, str]:
    """Return the `--env` settings as a mapping, the last of a name winning.

    Raises EngineError for one that is not NAME=VALUE.
    """
    result: dict[str, str] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not name:
            raise EngineError(f"--env {setting!r}: write it as NAME=VALUE")
        result[name] = value
    return result


def environment(container: Container) -> dict[str, str]:
    """Return the whole environment of the command: docker's defaults under the user's settings."""
    defaults = {
        "PATH": DEFAULT_PATH,
        "HOSTNAME": container.hostname,
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
        "hostname": container.hostname,
        "mounts": _mounts(),
        "annotations": {"dev.cisfs.run": container.identifier},
        "linux": _linux(container),
    }


def _process(container: Container) -> Json:
    account = container.account
    capabilities: dict[str, list[str]] = {"bounding": list(CAPABILITIES)}
    if account.uid == 0:
        # Any other user starts with none, as if execve(2) had been called as that user.
        capabilities |= {"effective": list(CAPABILITIES), "permitted": list(CAPABILITIES)}
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
                "soft": min(OPEN_FILES_SOFT, container.open_files),
                "hard": container.open_files,
            },
            # No memory of a container that saw plaintext may reach the host's disk as a core.  The
            # kernel ignores a limit of 0 when cores go to a pipe, and refuses at 1 (core(5),
            # fs/coredump.c); a core file of one byte is none.
            {"type": "RLIMIT_CORE", "soft": 1, "hard": 1},
        ],
    }


def _linux(container: Container) -> Json:
    resources: Json = {"devices": [{"allow": False, "access": "rwm"}]}  # runc adds the usual ones
    if container.pids_limit is not None:
        resources["pids"] = {"limit": container.pids_limit}
    return {
        "cgroupsPath": cgroup_path(container.identifier),
        "namespaces": [{"type": kind} for kind in NAMESPACES],
        "resources": resources,
        "maskedPaths": list(MASKED_PATHS),
        "readonlyPaths": list(READONLY_PATHS),
        "seccomp": {
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": list(_ARCHITECTURES.get(container.machine, ())),
            "syscalls": [
                {
                    "names": list(REFUSED_CALLS),
                    "action": "SCMP_ACT_ERRNO",
                    "errnoRet": _EPERM,
                }
            ],
        },
    }


def _mounts() -> list[Json]:
    quiet = ["nosuid", "noexec", "nodev"]
    return [
        _mount("/proc", "proc", quiet),
        _mount("/dev", "tmpfs", ["nosuid", "strictatime", "mode=755", "size=65536k"]),
        _mount(
            "/dev/pts",
            "devpts",
            ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        _mount(_SHARED_MEMORY, "tmpfs", [*quiet, "mode=1777", "size=65536k"], source="shm"),
        _mount("/dev/mqueue", "mqueue", quiet),
        _mount("/sys", "sysfs", [*quiet, "ro"]),
        _mount("/sys/fs/cgroup", "cgroup", [*quiet, "ro"]),
    ]


def _mount(destination: str, kind: str, options: list[str], source: str | None = None) -> Json:
    return {
        "destination": destination,
        "type": kind,
        "source": source or kind,
        "options": options,
    }
