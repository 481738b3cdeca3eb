"""Where `cisfs-runtime` is: the one that was installed with this command.

Looks at files, and runs none.  Safe anywhere.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

BINARY = "cisfs-runtime"


def runtime() -> str | None:
    """Return its path: beside this command or its interpreter, or else on PATH; None if nowhere."""
    for program in (Path(sys.argv[0]).resolve(), Path(sys.executable)):
        path = program.with_name(BINARY)
        if path.is_file() and os.access(path, os.X_OK):
            return str(path)
    return shutil.which(BINARY)
