"""Programs that the systems are made of: how cisfs is called, what is missing, what they tell.

Knows nothing of the systems.  Pure queries; one thread.
"""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path


def cisfs(*words: str) -> list[str]:
    """Return a command line of the cisfs of this checkout."""
    return [sys.executable, "-m", "cisfs", *words]


def cisfs_in_shell(*words: str) -> str:
    """Return the same for a shell, which still expands the variables in `words`."""
    return " ".join([shlex.join(cisfs()), *words])


def unit_size(store: Path) -> str:
    """Return the unit size of a vault or sealed layer, as `cisfs inspect` tells it."""
    command = cisfs("inspect", "--json", str(store))
    told = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    return str(told.get("unit_size", "unknown"))


def missing(*programs: str) -> str:
    """Name those of the programs that are not installed."""
    return ", ".join(program for program in programs if not shutil.which(program))


def disk_usage(directory: Path) -> int:
    """Return the bytes that a directory and all in it take on its disk."""
    command = ["du", "--summarize", "--block-size=1", str(directory)]
    return int(
        subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[0]
    )
