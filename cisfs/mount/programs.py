"""Where the programs of the system are: mkfs, runc and the like.

Does not know what they are run for.  Safe anywhere.
"""

from __future__ import annotations

import shutil

_SYSTEM_DIRECTORIES = "/usr/local/sbin:/usr/sbin:/sbin"  # not everybody's PATH has them


def find(name: str) -> str | None:
    """Return the path of a program, None if it is not installed."""
    return shutil.which(name) or shutil.which(name, path=_SYSTEM_DIRECTORIES)
