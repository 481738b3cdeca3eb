"""The programs that cisfs runs or works for: which are there, which version, and configured or not.

Runs each with --version.  Does not know what they are used for in detail.  Safe anywhere.
"""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass

from cisfs.errors import CisfsError
from cisfs.mount.programs import find
from cisfs.runtime.configure import engines
from cisfs.runtime.doctor.finding import Finding, failure, ok, warning

_PATIENCE = 10.0  # seconds


@dataclass(frozen=True, slots=True)
class Program:
    """A program; `without` says what cannot be done without it, "" if it is a choice."""

    name: str
    package: str  # Debian's
    without: str = ""
    required: bool = False
    version_option: str = "--version"


PROGRAMS = (
    Program("runc", "runc", "no container runs without it", required=True),
    Program("crun", "crun"),
    Program("mkfs.ext4", "e2fsprogs", "no encrypted scratch without it", True, "-V"),
    Program("mkfs.erofs", "erofs-utils", "cisfs seal --compression takes it"),
    Program("skopeo", "skopeo", "cisfs run takes it for images"),
    Program("umoci", "umoci", "cisfs run takes it for images"),
)
ENGINES = {
    "docker": Program("dockerd", "docker.io"),
    "containerd": Program("containerd", "containerd"),
    "podman": Program("podman", "podman"),
}


def version(program: Program) -> str | None:
    """Return what a program says its version is, None if it is not there."""
    path = find(program.name)
    if path is None:
        return None
    try:
        done = subprocess.run(
            [path, program.version_option],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            timeout=_PATIENCE,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return "of unknown version"
    found = re.search(r"\d+\.\d+[\w.+~-]*", done.stdout.decode(errors="replace"))
    return found[0] if found else "of unknown version"


def examine(program: Program) -> Finding:
    """Judge a program."""
    found = version(program)
    if found is not None:
        return ok(program.name, found)
    if not program.without:
        return ok(program.name, "not installed")
    remedy = f"{program.without}; on Debian and Ubuntu: apt install {program.package}"
    return (failure if program.required else warning)(program.name, "not installed", remedy)


def examine_engine(engine: str) -> Finding:
    """Judge an engine: whether it is there, and whether it knows the runtime."""
    found = version(ENGINES[engine])
    if found is None:
        return ok(engine, "not installed")
    configure = f"cisfs runtime configure --engine {engine}"
    try:
        runtime = engines.runtime_of(engine)
    except (CisfsError, OSError) as error:
        return warning(engine, f"{found}; its configuration: {error}", "mend the configuration")
    if runtime is None:
        return warning(engine, f"{found}, without the runtime cisfs", configure)
    if not os.access(runtime, os.X_OK):
        there = f"{found}, with a runtime cisfs that is not there: {runtime}"
        return warning(engine, there, f"{configure} --force")
    return ok(engine, f"{found}, with the runtime {runtime}")
