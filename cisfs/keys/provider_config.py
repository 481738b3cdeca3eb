"""Which key providers there are and how each is reached: ocicrypt's configuration file.

A JSON object {"key-providers": {NAME: {"cmd": {"path", "args"}} or {"grpc": ADDRESS, "grpc-tls":
{...}}}}, as containers/ocicrypt, docs/keyprovider.md and config/keyprovider-config, has it.  Fields
that we do not know are passed over, as ocicrypt does.  What it names is run and given keys, so it
must not be for others to write.

Does not run anything.  Reads the file anew at each call; safe in any thread.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from cisfs.errors import FormatError, UsageError
from cisfs.format.config import MAX_SIZE, load

VARIABLE = "OCICRYPT_KEYPROVIDER_CONFIG"
DEFAULT = Path("/etc/cisfs/keyproviders.json")


@dataclass(frozen=True, slots=True)
class Command:
    """A program that is run for each key."""

    path: str
    arguments: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Tls:
    """How a service is known for the right one, and we to it; empty: not said."""

    root_ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    server_name: str = ""


@dataclass(frozen=True, slots=True)
class Service:
    """A gRPC service: host:port or unix:PATH."""

    address: str
    tls: Tls | None


def configured() -> list[str]:
    """Return the names of all providers, sorted; none if there is no such file.

    Raises UsageError for a file that cannot be read or trusted.
    """
    return sorted(_entries())


def find(name: str) -> Command | Service:
    """Return how the provider `name` is reached; UsageError if it is not known or badly said."""
    entries = _entries()
    if name not in entries:
        known = ", ".join(sorted(entries)) or "none"
        raise UsageError(f"no key provider {name!r} in {_path()}, which has: {known}")
    where = f"key provider {name} in {_path()}"
    entry = _object(entries[name], where)
    if entry.get("cmd") is not None:
        return _command(_object(entry["cmd"], f"{where}: cmd"), where)
    if entry.get("grpc"):
        return _service(entry, where)
    if "path" in entry:  # as the first example in ocicrypt's own documentation has it
        raise UsageError(f'{where}: "path" and "args" belong into an object "cmd"')
    raise UsageError(f'{where} has neither "cmd" nor "grpc"')


def _path() -> Path:
    return Path(os.environ.get(VARIABLE) or DEFAULT)


def _entries() -> dict[str, object]:
    path = _path()
    data = _read(path)
    if data is None:
        return {}
    try:
        document = load(data)
    except FormatError as error:
        raise UsageError(f"{path}: {error}") from None
    return _object(document.get("key-providers", {}), f"{path}: key-providers")


def _read(path: Path) -> bytes | None:
    """Return what is in the file, None if there is none, which ocicrypt takes for an empty one."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                raise UsageError(f"others can write {path}, which names programs; chmod go-w it")
            if status.st_uid not in (0, os.geteuid()):
                raise UsageError(f"{path} names programs and is neither yours nor root's")
            return file.read(MAX_SIZE + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None


def _command(cmd: dict[str, object], where: str) -> Command:
    path, arguments = _text(cmd, "path", where), cmd.get("args") or []
    if not path:
        raise UsageError(f"{where}: cmd has no path")
    if not isinstance(arguments, list) or not all(isinstance(each, str) for each in arguments):
        raise UsageError(f"{where}: args is not a list of texts")
    return Command(path, tuple(arguments))


def _service(entry: dict[str, object], where: str) -> Service:
    address, options = _text(entry, "grpc", where), entry.get("grpc-tls")
    if options is None:
        return Service(address, None)
    said = _object(options, f"{where}: grpc-tls")
    if said.get("insecure-skip-verify"):
        # Anybody in between would get the key.
        raise UsageError(f"{where}: no insecure-skip-verify; name its CA in root-ca-file instead")
    names = ("root-ca-file", "cert-file", "key-file", "server-name")
    return Service(address, Tls(*(_text(said, name, where) for name in names)))


def _object(value: object, what: str) -> dict[str, object]:
    if not isinstance(value, dict):
        raise UsageError(f"{what} is not a JSON object")
    return value


def _text(fields: dict[str, object], name: str, where: str) -> str:
    value = fields.get(name, "")
    if not isinstance(value, str):
        raise UsageError(f"{where}: {name} is not text")
    return value
