"""Becoming a fetcher: the little that others have to import to start one.

Does not know what a fetcher does.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import NoReturn


def become(directory: Path, claimed: int, log_file: Path | None) -> NoReturn:
    """Execute a fetcher for the layer in `directory` in this process's place.

    `claimed` is a descriptor of it from `cisfs.layer.filling.claim`.  It logs to
    `log_file`, or else to syslog.  Raises OSError.
    """
    words = [sys.executable, "-P", "-m", "cisfs.registry.fetcher", str(directory), str(claimed)]
    os.set_inheritable(claimed, True)
    if log_file is not None:
        words += ["--log-file", str(log_file)]
    os.execv(sys.executable, words)  # noqa: S606 - a shell is the last thing wanted
