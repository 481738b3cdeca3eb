"""A file without a name: gone with the last descriptor of it, whatever becomes of its process.

Knows nothing of what is in it.  Safe anywhere; the descriptor may be used by forked processes too.
"""

from __future__ import annotations

import errno
import os
import tempfile
from pathlib import Path

# What file systems answer that have no O_TMPFILE (open(2)).
_NO_TMPFILE = frozenset({errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL})


def nameless(directory: Path) -> int:
    """Return a descriptor of a new file on the file system of `directory`.  Raises OSError."""
    try:
        return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in _NO_TMPFILE:
            raise
    fd, path = tempfile.mkstemp(dir=directory)
    os.unlink(path)
    return fd
