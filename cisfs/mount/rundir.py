"""Directories in /run/cisfs: whoever needs one makes it, whoever leaves it empty removes it.

Both at any moment, by any number of processes.  Does not know what is kept in them.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path


def make(*directories: Path) -> None:
    """Make those that are not there, for nobody else to look into: the outer ones first.

    Raises FileNotFoundError if one was removed again just then, for the caller to start anew;
    OSError.  (Of pathlib's mkdir, `exist_ok` takes one that is removed at that moment for a file
    that is in the way.)
    """
    for directory in directories:
        try:
            os.mkdir(directory, 0o700)
        except FileExistsError:
            if not stat.S_ISDIR(os.stat(directory).st_mode):
                raise


def remove(*directories: Path) -> None:
    """Remove those that are empty, the inner ones first."""
    for directory in directories:
        with suppress(OSError):  # gone already, or others have something in it
            directory.rmdir()
