"""Where a seal works: a directory of its own beside the output, and mounts that only it can see.

The directory, `.NAME.XXXXXXXX.scratch`, is made when it is first needed.  It holds a mount point
and ciphertext whose key is never stored, so that what a SIGKILL leaves of it may be deleted unseen.
Does not know what is mounted.  One thread; as root the process changes its mount namespace for
good.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Self

from cisfs.build import interrupts
from cisfs.mount import syscalls

_SUFFIX = ".scratch"
_NAME_LIMIT = 200  # bytes of the output's name, of 255 that there may be


class Workplace:
    """The place of one seal; a context manager."""

    def __init__(self, output: Path) -> None:
        """Work beside `output`, a resolved path."""
        self.parent = output.parent
        self.is_private = False
        self._prefix = os.fsdecode(b"." + os.fsencode(output.name)[:_NAME_LIMIT] + b".")
        self._undo = contextlib.ExitStack()
        self._directory: Path | None = None

    def __enter__(self) -> Self:
        """Begin: as root, in a mount namespace of our own."""
        self.is_private = os.geteuid() == 0 and _leave_namespace()
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the directory, if it was made."""
        self._undo.close()

    def directory(self, name: str) -> Path:
        """Make a directory in the place; the first makes the place.  Raises OSError."""
        with interrupts.held():
            if self._directory is None:
                made = tempfile.mkdtemp(dir=self.parent, prefix=self._prefix, suffix=_SUFFIX)
                self._directory = Path(made)
                self._undo.callback(shutil.rmtree, made, ignore_errors=True)
        path = self._directory / name
        path.mkdir(mode=0o700)
        return path


def _leave_namespace() -> bool:
    """Go on in a mount namespace of our own; False where that is not allowed.

    What is mounted there is seen by no other process, and is gone when the last of ours ends.
    """
    try:
        syscalls.leave_mounts()
    except OSError:
        return False  # a container's root, or one in a chroot
    return True
