"""dockerd's daemon.json: the runtime `cisfs` in it, and the signal on which dockerd reads it again.

Pure functions over its text, but for `reload`.  Does not know how the file is written.  Source:
dockerd(8), "Daemon configuration file"; the keys that take effect on SIGHUP are listed there.
"""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterable
from pathlib import Path

from cisfs.errors import UsageError
from cisfs.mount import proc
from cisfs.runtime.configure.name import NAME, refuse_foreign

CONFIG = Path("/etc/docker/daemon.json")
PID_FILE = Path("/var/run/docker.pid")

Json = dict[str, object]


def configured(before: str | None, path: Path, runtime: str, *, force: bool) -> str:
    """Return the text of daemon.json with the runtime in it.

    Raises UsageError for text that is no configuration, or a runtime that is somebody else's.
    """
    config = _parse(before, path)
    runtimes = _runtimes(config, path)
    there = runtimes.get(NAME)
    if there == {"path": runtime} and before is not None:
        return before
    if there is not None and not force:
        refuse_foreign(path, _path_of(there), runtime)
    config["runtimes"] = {**runtimes, NAME: {"path": runtime}}
    return _spelled(config, before)


def unconfigured(
    before: str | None, path: Path, runtime: str, earlier: Iterable[str], *, force: bool
) -> str | None:
    """Return the text without the runtime: one of the `earlier` texts if it says the same.

    None if there should be no file: there was none, as far as is known, and nothing is left in it.
    Raises UsageError as `configured` does.
    """
    config = _parse(before, path)
    runtimes = _runtimes(config, path)
    if NAME not in runtimes:
        return before
    if not force:
        refuse_foreign(path, _path_of(runtimes[NAME]), runtime)
    rest = _without(config)
    for text in earlier:
        try:
            config = _parse(text, path)
            if config == rest or (_without(config) == rest and NAME not in _runtimes(config, path)):
                return text
        except UsageError:
            continue  # that one was mended since
    return _spelled(rest, before) if rest else None


def runtime_in(text: str, path: Path) -> str | None:
    """Return the path of the runtime in the text.  Raises UsageError as `configured` does."""
    return _path_of(_runtimes(_parse(text, path), path).get(NAME))


def pid_file(text: str | None, path: Path, default: Path) -> Path:
    """Return where dockerd says which process it is: the configuration's word goes first."""
    named = _parse(text, path).get("pidfile")
    return Path(named) if isinstance(named, str) and named else default


def reload(pid_path: Path) -> str:
    """Have dockerd read its configuration again, which disturbs no container; say what was done."""
    try:
        pid = int(pid_path.read_text())
        process = os.pidfd_open(pid)
    except (OSError, ValueError, OverflowError):
        return "dockerd is not running: it will see this when it starts"
    try:
        # A number that a dead dockerd left behind may be anybody's by now, and SIGHUP kills.
        if proc.name(pid) != "dockerd":
            return f"{pid_path} is not of a running dockerd: it will see this when it starts"
        signal.pidfd_send_signal(process, signal.SIGHUP)
    except PermissionError:
        return "dockerd cannot be told to read this: run: sudo systemctl reload docker"
    except (FileNotFoundError, ProcessLookupError):
        return "dockerd has just ended: it will see this when it starts"
    finally:
        os.close(process)
    return "dockerd was told to read it (SIGHUP); running containers are not affected"


def _parse(text: str | None, path: Path) -> Json:
    if text is None or not text.strip():
        return {}
    try:
        config = json.loads(text, object_pairs_hook=_unique)
    except json.JSONDecodeError as error:
        raise UsageError(
            f"{path}, line {error.lineno}, column {error.colno}: {error.msg}; nothing was changed"
        ) from None
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: {error}; nothing was changed") from None
    if not isinstance(config, dict):
        raise UsageError(f"{path} is no JSON object; nothing was changed")
    return config


def _unique(pairs: list[tuple[str, object]]) -> Json:
    """Make a dict of what an object says, unless it says something twice."""
    made = dict(pairs)
    if len(made) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} is there twice")
    return made


def _runtimes(config: Json, path: Path) -> Json:
    runtimes = config.get("runtimes", {})
    if not isinstance(runtimes, dict):
        raise UsageError(f'{path}: "runtimes" is no object; nothing was changed')
    return runtimes


def _path_of(there: object) -> str | None:
    named = there.get("path") if isinstance(there, dict) else None
    return named if isinstance(named, str) else None


def _without(config: Json) -> Json:
    """Return the configuration without the runtime, and without runtimes if it was the only one."""
    runtimes = config.get("runtimes", {})
    others = {}
    if isinstance(runtimes, dict):
        others = {name: value for name, value in runtimes.items() if name != NAME}
    kept = {key: value for key, value in config.items() if key != "runtimes"}
    if not others:
        return kept
    return {key: others if key == "runtimes" else kept[key] for key in config}


def _spelled(config: Json, before: str | None) -> str:
    """Return a configuration as text, indented as it was before."""
    found = re.search(r'^([ \t]+)"', before or "", re.MULTILINE)
    return json.dumps(config, indent=found[1] if found else 4, ensure_ascii=False) + "\n"
