"""podman's configuration: a file of our own, which podman reads after the others.

Pure functions over its text.  Does not know how the file is written.  Source:
containers.conf(5), "[engine.runtimes]" and the directories of drop-ins.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cisfs.errors import UsageError
from cisfs.runtime.configure.name import NAME, refuse_foreign

CONFIG = Path("/etc/containers/containers.conf.d/50-cisfs.conf")

_TEXT = """\
# Written by "cisfs runtime configure", removed by "cisfs runtime unconfigure".
[engine.runtimes]
{name} = [{path}]
"""


def configured(before: str | None, path: Path, runtime: str, *, force: bool) -> str:
    """Return the text of the drop-in.  Raises UsageError if there is another than ours."""
    wanted = _TEXT.format(name=NAME, path=json.dumps(runtime, ensure_ascii=False))
    if before is not None and not force:
        _check(before, path, runtime)
    return wanted


def unconfigured(
    before: str | None,
    path: Path,
    runtime: str,
    _earlier: Iterable[str],
    *,
    force: bool,
) -> str | None:
    """Return None: without the runtime there is no file.  Raises UsageError if it is not ours."""
    if before is not None and not force:
        _check(before, path, runtime)
    return None


def runtime_in(text: str, path: Path) -> str | None:
    """Return the path of the runtime in the text.  Raises UsageError if it is no TOML."""
    try:
        (there,) = _parse(text, path)["engine"]["runtimes"][NAME]
    except (KeyError, TypeError, ValueError):
        return None
    return there if isinstance(there, str) else None


def _check(text: str, path: Path, runtime: str) -> None:
    """Raise UsageError if there is anything but a runtime of ours."""
    there = runtime_in(text, path)
    if _parse(text, path) != {"engine": {"runtimes": {NAME: [there]}}}:
        raise UsageError(f"{path} has more than the runtime {NAME}; --force replaces it")
    refuse_foreign(path, there, runtime)


def _parse(text: str, path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UsageError(f"{path}: {error}; nothing was changed") from None
