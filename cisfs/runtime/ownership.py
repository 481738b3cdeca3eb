"""Directories of our own, in which nobody else may put anything.

Does not know what is kept in them.  Changes the umask for a moment, so it is for processes with one
thread.
"""

from __future__ import annotations

import os
from pathlib import Path

from cisfs.errors import UsageError


def owned(directory: Path, mode: int) -> None:
    """Make a directory of ours, and its parents, unless it is there and nobody else can change it.

    Raises UsageError if somebody can: what root finds in it must be what root put there.  OSError.
    """
    before = os.umask(0o022)  # a server has none, and `parents` get no mode
    try:
        directory.mkdir(mode=mode, parents=True, exist_ok=True)
    finally:
        os.umask(before)
    status = directory.stat()
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise UsageError(
            f"{directory} can be changed by others than root: chown root {directory}; "
            f"chmod go-w {directory}; and look at what is in it"
        )
