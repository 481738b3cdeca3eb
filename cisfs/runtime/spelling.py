"""How the values of `cisfs run`'s options are written: sizes, volumes, ports, capabilities.

Pure functions from text to values, with docker's grammar where docker has one; they raise
EngineError, whose message names the option and shows the right form.  Knows no engine.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence

from cisfs.errors import EngineError
from cisfs.runtime.options import Port, Tmpfs, Volume

MIN_MEMORY = 6 << 20  # bytes, docker's: with less the container cannot even start
MAX_PORT = 65535
_FACTORS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")
_TMPFS_FLAGS = frozenset(
    ("rw", "ro", "exec", "noexec", "suid", "nosuid", "dev", "nodev", "noatime", "strictatime")
)
_TMPFS_VALUES = re.compile(r"(size=\d+[kKmMgG%]?|nr_inodes=\d+[kKmMgG]?|mode=[0-7]+|[ug]id=\d+)")

# capabilities(7), in the kernel's order (include/uapi/linux/capability.h, Linux 5.9).
_CAPABILITIES = """
CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE
NET_BIND_SERVICE NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT
SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE
AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ
PERFMON BPF CHECKPOINT_RESTORE
"""
CAPABILITIES = tuple(f"CAP_{word}" for word in _CAPABILITIES.split())


def memory(text: str) -> int:
    """Return the bytes of a `--memory` value such as "512m" or "2G"."""
    match = re.fullmatch(r"(\d{1,15})([bkmgt]?)b?", text.lower(), re.ASCII)
    if match is None:
        raise EngineError(f"--memory {text!r}: write a size such as 512m or 2g")
    size = int(match[1]) * _FACTORS[match[2]]
    if not MIN_MEMORY <= size < 1 << 63:
        raise EngineError(f"--memory {text}: at least 6m, and less than 8 EiB")
    return size


def cpus(text: str, available: int | None = None) -> float:
    """Return the processors of a `--cpus` value such as "1.5"; at most those `available`."""
    if not re.fullmatch(r"\d{1,6}(\.\d{1,9})?|\.\d{1,9}", text, re.ASCII):
        raise EngineError(f"--cpus {text!r}: write a number of processors such as 1.5")
    most = available or os.cpu_count() or 1
    number = float(text)
    if not 0.01 <= number <= most:
        raise EngineError(f"--cpus {text}: from 0.01 to {most}, which this machine has")
    return number


def pids_limit(text: str) -> int:
    """Return the number of a `--pids-limit` value; 0 for "-1", which docker calls unlimited."""
    if not re.fullmatch(r"-1|\d{1,7}", text, re.ASCII):
        raise EngineError(f"--pids-limit {text!r}: write a number of processes, or -1 for no limit")
    return max(0, int(text))


def name(text: str) -> str:
    """Return a `--name`, if it is one."""
    if len(text) > 128 or not _NAME.fullmatch(text):
        raise EngineError(
            f"--name {text!r}: use letters, digits, '_', '.' and '-', and begin with a letter or "
            "digit"
        )
    return text


def hostname(text: str) -> str:
    """Return a `--hostname`, if the kernel takes it (sethostname(2): 64 bytes)."""
    if len(text) > 63 or not re.fullmatch(r"[a-zA-Z0-9]([a-zA-Z0-9.-]*[a-zA-Z0-9])?", text):
        raise EngineError(f"--hostname {text!r}: use up to 63 letters, digits, '.' and '-'")
    return text


def volume(text: str) -> Volume:
    """Parse "SRC:DST[:ro]".  A source without a "/" is a named volume."""
    source, *rest = text.split(":")
    if not source or not 1 <= len(rest) <= 2:
        raise EngineError(f"--volume {text!r}: write it as SRC:DST or SRC:DST:ro")
    target, modes = rest[0], rest[1].split(",") if len(rest) == 2 else []
    if wrong := [mode for mode in modes if mode not in ("ro", "rw")]:
        raise EngineError(f"--volume {text!r}: {wrong[0]!r} is not a mode; use ro or rw")
    if "/" in source or source in (".", ".."):
        source = os.path.abspath(source)
    elif not _NAME.fullmatch(source):
        raise EngineError(f"--volume {text!r}: {source!r} is neither a path nor a volume's name")
    return Volume(source, _target("--volume", text, target), "ro" in modes)


def tmpfs(text: str) -> Tmpfs:
    """Parse "DST[:OPTION,...]"."""
    target, _, rest = text.partition(":")
    chosen = tuple(filter(None, rest.split(",")))
    for one in chosen:
        if one not in _TMPFS_FLAGS and not _TMPFS_VALUES.fullmatch(one):
            raise EngineError(
                f"--tmpfs {text!r}: {one!r} is not an option of a tmpfs; "
                "those are size=, mode=, uid=, gid=, nr_inodes=, exec, ro, and the like"
            )
    return Tmpfs(_target("--tmpfs", text, target), chosen)


def _target(option: str, text: str, target: str) -> str:
    if not target.startswith("/") or ".." in target.split("/"):
        raise EngineError(f"{option} {text!r}: the path in the container has to be absolute")
    path = os.path.normpath(target).replace("//", "/")
    if path == "/":
        raise EngineError(f"{option} {text!r}: the container's / is the image's")
    return path


def ports(text: str) -> tuple[Port, ...]:
    """Parse "[[ADDRESS:]HOST:]CONTAINER[/tcp|/udp|/sctp]"; HOST and CONTAINER may be ranges."""
    rest, _, protocol = text.partition("/")
    protocol = protocol or "tcp"
    match = re.fullmatch(
        r"(?:(?:(?P<ip>[0-9.]+|\[[0-9a-fA-F:]+\]):)?(?P<host>[0-9-]*):)?(?P<inner>[0-9-]+)", rest
    )
    if match is None or protocol not in ("tcp", "udp", "sctp"):
        raise EngineError(
            f"--publish {text!r}: write it as CONTAINER, HOST:CONTAINER or ADDRESS:HOST:CONTAINER, "
            "with /udp behind it for UDP"
        )
    inner = _range(text, match["inner"])
    outer: Sequence[int | None] = [None] * len(inner)
    if match["host"]:
        outer = _range(text, match["host"])
    if len(outer) != len(inner):
        raise EngineError(f"--publish {text!r}: the two ranges have different lengths")
    address = (match["ip"] or "").strip("[]")
    return tuple(Port(own, protocol, host, address) for own, host in zip(inner, outer, strict=True))


def _range(text: str, ports_: str) -> range:
    first, dash, last = ports_.partition("-")
    if first.isdigit() and (last.isdigit() if dash else True):
        low, high = int(first), int(last or first)
        if 1 <= low <= high <= MAX_PORT:
            return range(low, high + 1)
    raise EngineError(f"--publish {text!r}: ports are numbers from 1 to {MAX_PORT}")


def capability(option: str, text: str) -> str:
    """Return "ALL" or the full name of a capability; "net_admin" is as good as "CAP_NET_ADMIN"."""
    wanted = text.upper()
    if wanted == "ALL":
        return wanted
    full = wanted if wanted.startswith("CAP_") else f"CAP_{wanted}"
    if full not in CAPABILITIES:
        raise EngineError(f"{option} {text!r}: no such capability; capabilities(7) lists them")
    return full


def bounding(status: Mapping[str, str]) -> list[str]:
    """Return the capabilities that a process of such a status, proc(5), can have at most.

    None if it is gone.
    """
    mask = int(status.get("CapBnd", "0"), 16)
    return [name for bit, name in enumerate(CAPABILITIES) if mask & 1 << bit]


def label(text: str) -> tuple[str, str]:
    """Parse "NAME[=VALUE]"."""
    key, _, value = text.partition("=")
    if not key:
        raise EngineError(f"--label {text!r}: write it as NAME=VALUE")
    return key, value


def capabilities(
    defaults: Sequence[str], add: Sequence[str], drop: Sequence[str]
) -> tuple[str, ...]:
    """Return what a container may have: the defaults without `drop`, and with `add`.

    The rule is docker's: what is added by name stays, also when everything is dropped.
    """
    kept = set() if "ALL" in drop else set(CAPABILITIES if "ALL" in add else defaults)
    kept -= set(drop)
    return tuple(sorted(kept | {one for one in add if one != "ALL"}))
