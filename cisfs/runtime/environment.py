"""The environment of a container's command: `--env`, `--env-file`, and the image's own.

Text to mappings, with docker's rules; takes out what is meant for cisfs and not for the command.
Does not know engines.  Reads the files it is given, and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cisfs.errors import EngineError

LAYERS_VARIABLE = "CISFS_LAYERS"
SCRATCH_VARIABLE = "CISFS_SCRATCH"
FETCH_VARIABLE = "CISFS_FETCH_TIMEOUT"
_FILE_LIMIT = 1 << 20  # bytes


def assemble(
    files: Sequence[Path], settings: Sequence[str], own: Mapping[str, str]
) -> dict[str, str]:
    """Return what `--env-file` and `--env` set; the latter wins, and the last of a name.

    `own` is this process's environment, which a bare NAME takes its value from.  In a file, a NAME
    that is not set there is left out (docker's rule); on the command line it is an error.
    Raises EngineError for a setting or a file that will not do.
    """
    result: dict[str, str] = {}
    for path in files:
        for name, value in _entries(path):
            if value is not None:
                result[name] = value
            elif name in own:
                result[name] = own[name]
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not name or (not equals and name not in own):
            raise EngineError(
                f"--env {setting!r}: write it as NAME=VALUE, or name a variable that is set here"
            )
        result[name] = value if equals else own[name]
    return result


def _entries(path: Path) -> Iterator[tuple[str, str | None]]:
    """Yield name and value of each line.  Nothing is unquoted, as docker does not either."""
    try:
        with path.open("rb") as file:
            data = file.read(_FILE_LIMIT + 1)
    except OSError as error:
        raise EngineError(f"--env-file {path}: {error.strerror}") from None
    if len(data) > _FILE_LIMIT:
        raise EngineError(f"--env-file {path}: too long; at most {_FILE_LIMIT >> 20} MiB")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise EngineError(f"--env-file {path}: not UTF-8") from None
    for number, line in enumerate(text.split("\n"), 1):
        line = line.removesuffix("\r").lstrip()
        if not line or line.startswith("#"):
            continue
        name, equals, value = line.partition("=")
        if not name or any(character.isspace() for character in name) or "\0" in line:
            raise EngineError(f"--env-file {path}, line {number}: {name!r} is no variable's name")
        yield name, value if equals else None


def from_list(words: Sequence[str]) -> dict[str, str]:
    """Return an image's list of NAME=VALUE as a mapping."""
    return {name: value for name, _, value in (word.partition("=") for word in words) if name}


@dataclass(frozen=True, slots=True)
class Split:
    """The environment of the command, and what the variables for cisfs ask for."""

    environment: dict[str, str]
    layers: tuple[str, ...]
    scratch: str | None
    fetch_timeout: str | None = None


def split(environment: Mapping[str, str]) -> Split:
    """Take `CISFS_LAYERS`, `CISFS_SCRATCH` and `CISFS_FETCH_TIMEOUT` out of an environment."""
    rest = dict(environment)
    named = rest.pop(LAYERS_VARIABLE, "")
    scratch = rest.pop(SCRATCH_VARIABLE, "").strip()
    fetch_timeout = rest.pop(FETCH_VARIABLE, "").strip()
    return Split(rest, names_in(named), scratch or None, fetch_timeout or None)


def names_in(text: str) -> tuple[str, ...]:
    """Return the layers that a variable or annotation names, with commas between."""
    return tuple(word.strip() for word in text.split(",") if word.strip())
