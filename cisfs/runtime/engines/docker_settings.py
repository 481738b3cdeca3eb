"""What docker is told of a container, as the parameters of its Python package spell it.

Pure functions over options, which are settled.  Does not know the daemon, nor import the package.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cisfs.runtime.options import Options, Port, tmpfs_options

RUNTIME = "cisfs"


def of_process(options: Options, variables: Mapping[str, str]) -> dict[str, Any]:
    """Return what runs in a container, and what it is called; `variables` are for the runtime."""
    return {
        "command": list(options.arguments) or None,
        "entrypoint": None if options.entrypoint is None else [options.entrypoint],
        "environment": {**options.environment, **variables},
        "user": options.user,
        "working_dir": options.working_directory,
        "hostname": options.hostname,
        "labels": dict(options.labels),
        "name": options.name,
        "tty": options.terminal,
        "stdin_open": options.interactive,
        "ports": [(port.container_port, port.protocol) for port in options.ports],
    }


def of_host(options: Options) -> dict[str, Any]:
    """Return what its host does for a container, but for the network that it joins."""
    kept = ",noexec,nosuid,nodev" if options.strict else ""
    bindings: dict[str, list[tuple[str, int | None]]] = {}
    for port in options.ports:
        bindings.setdefault(_port(port), []).append((port.address, port.host_port))
    return {
        "runtime": RUNTIME,
        "security_opt": ["no-new-privileges"],
        "pids_limit": options.pids_limit or -1,
        "binds": [
            f"{one.source}:{one.target}:{'ro' if one.read_only else 'rw'}"
            for one in options.volumes
        ],
        "tmpfs": {one.target: ",".join(tmpfs_options(one)) + kept for one in options.tmpfs},
        "port_bindings": bindings,
        "mem_limit": options.memory,
        "memswap_limit": options.memory,
        "nano_cpus": round(options.cpus * 1e9) if options.cpus else None,
        "read_only": options.read_only,
        "cap_add": list(options.cap_add),
        "cap_drop": list(options.cap_drop),
        "auto_remove": options.remove,
    }


def _port(port: Port) -> str:
    return f"{port.container_port}/{port.protocol}"
