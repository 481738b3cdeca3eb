"""The runtime `cisfs` in an engine's configuration: planned, carried out, and what is left to say.

Does not know any configuration's syntax, nor how things are printed.  One thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cisfs.errors import CisfsError
from cisfs.runtime.configure import containerd, docker, files, name, podman
from cisfs.runtime.configure.files import Edit

_MODULES = {"docker": docker, "containerd": containerd, "podman": podman}
CONFIGS = {name: module.CONFIG for name, module in _MODULES.items()}


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked for."""

    engine: str  # a key of CONFIGS
    undo: bool = False
    config: Path | None = None  # None: the engine's own
    runtime: Path | None = None  # None: the one installed with us
    pid_file: Path = docker.PID_FILE  # dockerd's, if its configuration does not name another
    force: bool = False
    dry_run: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of it."""

    edit: Edit
    backup: Path | None
    note: str  # what the engine makes of it, or what is to be done; may be empty


def carry_out(wanted: Wanted) -> Outcome:
    """Change the configuration, unless it is as wanted, and have the engine read it if it can.

    Raises UsageError for what cannot be changed, CisfsError without the permission, OSError.
    """
    path = files.real(wanted.config or CONFIGS[wanted.engine])
    if wanted.dry_run or (wanted.undo and files.read(path) is None):
        return Outcome(_plan(wanted, path), None, "")
    try:
        with files.locked(path):
            edit = _plan(wanted, path)
            backup = files.apply(edit) if edit.is_needed else None
    except PermissionError as error:
        raise CisfsError(f"{path} cannot be changed: {error.strerror}; run it as root") from None
    note = _tell(wanted, edit) if edit.is_needed else ""
    return Outcome(edit, backup, note)


def runtime_of(engine: str) -> str | None:
    """Return the path that the engine's own configuration has for the runtime, None if it has none.

    Raises UsageError for a configuration that cannot be understood, OSError.
    """
    path = files.real(CONFIGS[engine])
    text = files.read(path)
    return _MODULES[engine].runtime_in(text, path) if text is not None else None


def _plan(wanted: Wanted, path: Path) -> Edit:
    before = files.read(path)
    module = _MODULES[wanted.engine]
    runtime = name.find(wanted.runtime)
    if wanted.undo:
        earlier = _earlier(path)
        return Edit(
            path, before, module.unconfigured(before, path, runtime, earlier, force=wanted.force)
        )
    return Edit(path, before, module.configured(before, path, runtime, force=wanted.force))


def _earlier(path: Path) -> Iterator[str]:
    """Yield the texts of the backups, the latest first."""
    for backup in files.backups(path):
        text = files.read(backup)
        if text is not None:
            yield text


def _tell(wanted: Wanted, edit: Edit) -> str:
    """Tell the engine, or return what the user is to do."""
    if wanted.engine == "docker":
        told = docker.reload(docker.pid_file(edit.after, edit.path, wanted.pid_file))
        # Seen with 20.10: where a file has no runtimes at all, those of before stay.
        return f"{told}; it may offer the runtime until it restarts" if wanted.undo else told
    if wanted.engine == "podman":
        return ""  # it reads its configuration each time
    told = "containerd sees this when it starts: systemctl restart containerd (no container ends)"
    if not wanted.undo and containerd.is_disabled(edit.after, edit.path):
        told += f"; {edit.path} also disables CRI, without which Kubernetes cannot use containerd"
    return told
