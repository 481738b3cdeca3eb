"""What the kernel says of a process, proc(5).

A process calls itself whatever it likes: its name may be bytes of any kind, and look like the end
of a line and another line.  Does not know whose process it is.  Stateless; safe anywhere.
"""

from __future__ import annotations

import os
from pathlib import Path


def status(pid: int) -> dict[str, str]:
    """Return the fields of a process's status, none when it is gone."""
    # The kernel escapes the "\n" in a name, and nothing else that may end a line.
    rows = (row.partition(":") for row in _read(pid, "status").split("\n"))
    return {name: value.strip() for name, colon, value in rows if colon}


def stat(pid: int) -> list[str]:
    """Return the fields of a process's stat that follow its name, from its state on.

    None when it is gone.
    """
    return _read(pid, "stat").rpartition(")")[2].split()


def name(pid: int) -> str:
    """Return what a process calls itself, "" when it is gone."""
    return _read(pid, "comm").removesuffix("\n")


def _read(pid: int, file: str) -> str:
    try:
        return os.fsdecode(Path(f"/proc/{pid}/{file}").read_bytes())
    except (FileNotFoundError, ProcessLookupError):
        return ""
