"""What engines call the runtime, and whose it is.

Pure functions.  Knows no engine.
"""

from __future__ import annotations

import os
from pathlib import Path

from cisfs.errors import UsageError
from cisfs.runtime import installed

NAME = "cisfs"
ANNOTATIONS = "dev.cisfs.*"


def find(named: Path | None) -> str:
    """Return the absolute path of the runtime: the one that is named, or our own.

    Raises UsageError if it is not there or cannot be executed.
    """
    found = str(named.absolute()) if named is not None else installed.runtime()
    if found is None:
        raise UsageError(f"{installed.BINARY} was not found; name it with --runtime-path")
    if not os.path.isfile(found) or not os.access(found, os.X_OK):
        raise UsageError(f"{found} is not a program; name the runtime with --runtime-path")
    if not found.isprintable():
        raise UsageError(f"{found!r} has characters that no configuration should have")
    return found


def refuse_foreign(path: Path, there: str | None, runtime: str) -> None:
    """Raise UsageError if the runtime `there`, at another path, is not the one that is meant."""
    if there != runtime:
        what = f"is {there}" if there is not None else "is something else"
        raise UsageError(
            f"the runtime {NAME} in {path} {what}, not {runtime}; --force does it all the same"
        )
