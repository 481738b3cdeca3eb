"""What an OCI configuration (config.json) asks of us, and what it becomes for runc.

Source: OCI runtime-spec 1.0.2, config.md and config-linux.md.  Pure functions over parsed JSON; no
I/O.  Safe anywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from cisfs.errors import FormatError
from cisfs.runtime.environment import FETCH_VARIABLE, LAYERS_VARIABLE, SCRATCH_VARIABLE, names_in
from cisfs.runtime.seccomp import ARCHITECTURES

Json = dict[str, Any]
Kind = TypeVar("Kind")

LAYERS_ANNOTATION = "dev.cisfs.layers"
SCRATCH_ANNOTATION = "dev.cisfs.scratch"
FETCH_ANNOTATION = "dev.cisfs.fetch-timeout"
_STOP_SIGNAL_ANNOTATION = "org.opencontainers.image.stopSignal"  # image-spec, annotations.md
_VARIABLES = (LAYERS_VARIABLE, SCRATCH_VARIABLE, FETCH_VARIABLE)

# The kernel's keyrings belong to users and not to containers: root in a container could read what
# `cisfs unlock` left for root on the host, whatever its capabilities.
KEYRING_CALLS = ("add_key", "keyctl", "request_key")
_EPERM = 1
_KINDS: Mapping[type, str] = {dict: "object", list: "array", str: "string"}  # as JSON calls them
# The kernel ignores a limit of 0 when cores go to a pipe, and refuses at 1 (fs/coredump.c).
CORE_LIMIT = 1  # bytes
_CORE = "RLIMIT_CORE"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a bundle names: layers, the topmost first, and the kind of scratch, if it says one.

    `fetch_timeout`: the seconds that a read waits for what was not fetched yet, if it says that.
    """

    layers: tuple[str, ...]
    scratch: str | None
    fetch_timeout: str | None = None


def wanted(config: Json) -> Wanted | None:
    """Return what the configuration names, None if nothing: then it is none of our business.

    An annotation is stronger than the variable of the same meaning, which images can set.  One that
    is empty names nothing, and takes away what the other one says.
    Raises FormatError for a configuration that is none; of one that is our business, all that is
    read here was looked at.
    """
    annotations = _of_kind(config.get("annotations") or {}, dict, "annotations")
    variables = _variables(config)
    layers, scratch, timeout = (
        _of_kind(annotations.get(name, variables.get(variable, "")), str, f"annotations.{name}")
        for name, variable in (
            (LAYERS_ANNOTATION, LAYERS_VARIABLE),
            (SCRATCH_ANNOTATION, SCRATCH_VARIABLE),
            (FETCH_ANNOTATION, FETCH_VARIABLE),
        )
    )
    names = names_in(layers)
    found = Wanted(names, scratch.strip() or None, timeout.strip() or None)
    if not names and not found.scratch:
        return None
    _check_text("layers", layers)
    _check_shape(config)
    return found


def root_path(config: Json) -> str:
    """Return where the root filesystem is, absolute or relative to the bundle.

    Raises FormatError.
    """
    root = _of_kind(config.get("root"), dict, "root")
    return str(_of_kind(root.get("path"), str, "root.path"))


def rewritten(
    config: Json,
    root: str,
    *,
    read_only: bool,
    machine: str,
    environment: Mapping[str, str] | None = None,
) -> Json:
    """Return the configuration for runc: another root, and nothing by which secrets get out.

    `machine` is uname's; `environment` is what the layers hold, and what the configuration sets is
    stronger.
    """
    process = dict(_of_kind(config.get("process") or {}, dict, "process"))
    if "env" in process or environment:
        kept = [each for each in process.get("env") or [] if _name(each) not in _VARIABLES]
        process["env"] = _merged(kept, environment or {})
    if process:
        process = without_core(process)
    linux = dict(config.get("linux") or {})
    linux["seccomp"] = without_keyring(linux.get("seccomp"), machine)
    before = config["root"]
    read_only = read_only or bool(before.get("readonly"))
    return {
        **config,
        **({"mounts": _without_programs(config.get("mounts") or [])} if read_only else {}),
        **({"process": process} if process else {}),
        "root": {**before, "path": root, "readonly": read_only},
        "linux": linux,
    }


def without_core(process: Json) -> Json:
    """Return a process that leaves no core, whatever the one that was given may."""
    limits = (each for each in process.get("rlimits") or [] if each.get("type") != _CORE)
    none = {"type": _CORE, "soft": CORE_LIMIT, "hard": CORE_LIMIT}
    return {**process, "rlimits": [*limits, none]}


def _merged(settings: list[str], own: Mapping[str, str]) -> list[str]:
    """Return the settings, NAME=VALUE, with those of `own` that are not among them."""
    given = {_name(each) for each in settings}
    return [*settings, *(f"{name}={value}" for name, value in own.items() if name not in given)]


def _without_programs(mounts: list[Json]) -> list[Json]:
    """Return the mounts with /dev, which can be written where the root cannot, not executable."""
    return [
        {**each, "options": [*(each.get("options") or []), "noexec"]}
        if each.get("destination") == "/dev"
        else each
        for each in mounts
    ]


def without_keyring(seccomp: Json | None, machine: str) -> Json:
    """Return a system call filter that refuses the keyring's calls and else is as it was."""
    if not seccomp:
        seccomp = {
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": list(ARCHITECTURES.get(machine, ())),
        }
    rules = []
    for rule in seccomp.get("syscalls") or []:
        names = [name for name in rule.get("names", []) if name not in KEYRING_CALLS]
        if names:
            rules.append({**rule, "names": names})
    if seccomp.get("defaultAction") != "SCMP_ACT_ERRNO":
        action = {"action": "SCMP_ACT_ERRNO", "errnoRet": _EPERM}
        rules.append({"names": list(KEYRING_CALLS), **action})
    return {**seccomp, "syscalls": rules}


def has_own_pid_namespace(config: Json) -> bool:
    """Whether all of the container ends with its first process (pid_namespaces(7))."""
    linux = config.get("linux") or {}
    return any(
        each.get("type") == "pid" and not each.get("path") for each in linux.get("namespaces") or []
    )


def stop_signal(config: Json) -> str | None:
    """Return the signal that asks the container to end, where the engine says it (podman does)."""
    found = (config.get("annotations") or {}).get(_STOP_SIGNAL_ANNOTATION)
    return found if isinstance(found, str) else None


def _variables(config: Json) -> dict[str, str]:
    process = _of_kind(config.get("process") or {}, dict, "process")
    settings = _of_kind(process.get("env") or [], list, "process.env")
    return {
        name: each.partition("=")[2]
        for each in settings
        if isinstance(each, str) and (name := _name(each)) in _VARIABLES
    }


def _check_text(what: str, text: str) -> None:
    """Refuse half a surrogate pair, which JSON can spell and no path has."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise FormatError(f"config.json: {what} {text!r} is no text") from None


def _check_shape(config: Json) -> None:
    """Refuse what `rewritten` and the others could not read: runc would not read it either."""
    process = _part(config, "process", dict, "process")
    _parts(process, "env", str, "process.env")
    _parts(process, "rlimits", dict, "process.rlimits")
    for mount in _parts(config, "mounts", dict, "mounts"):
        _parts(mount, "options", str, "mounts.options")
    linux = _part(config, "linux", dict, "linux")
    _parts(linux, "namespaces", dict, "linux.namespaces")
    seccomp = _part(linux, "seccomp", dict, "linux.seccomp")
    for rule in _parts(seccomp, "syscalls", dict, "linux.seccomp.syscalls"):
        _parts(rule, "names", str, "linux.seccomp.syscalls.names")
    _check_text("root.path", root_path(config))


def _part(of: Json, name: str, kind: type[Kind], what: str) -> Kind:
    """Return a part that may be missing."""
    return _of_kind(of.get(name) or kind(), kind, what)


def _parts(of: Json, name: str, kind: type[Kind], what: str) -> list[Kind]:
    """Return a list that may be missing."""
    return [_of_kind(each, kind, f"each of {what}") for each in _part(of, name, list, what)]


def _name(setting: str) -> str:
    return setting.partition("=")[0]


def _of_kind(value: object, kind: type[Kind], what: str) -> Kind:
    if not isinstance(value, kind):
        raise FormatError(f"config.json: {what} is no {_KINDS[kind]}")
    return value
