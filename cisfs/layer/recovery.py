"""After a crash: find the files that the journal names, and mend them.

docs/FORMAT.md, section 7.2.  Walks the backing directories without decrypting a name, since files
may have moved since.  Knows neither nodes nor FUSE.  One thread at a time, on a locked vault.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator

from cisfs.errors import FormatError, IntegrityError
from cisfs.format.geometry import HEADER_SIZE
from cisfs.format.header import FileHeader
from cisfs.format.names import is_reserved
from cisfs.layer.directory import READ_WRITE_FLAGS, open_own
from cisfs.layer.file import FileContext, open_units
from cisfs.layer.journal import LeftOver
from cisfs.layer.mend import Mended, mend

_FLAGS = READ_WRITE_FLAGS | os.O_NONBLOCK


def recover(root: int, context: FileContext, left: LeftOver) -> list[str]:
    """Mend every file below `root` (a descriptor) that `left` names.

    Returns a line for each that needed it, with its stored path.  Raises OSError.
    """
    lines = []
    missing = left.file_ids()
    for path, fd in _files(root):
        try:
            file_id = _file_id(fd)
            if file_id not in missing:
                continue
            missing.discard(file_id)
            lines += _report(path, _mend_file(fd, context, left.of(file_id)))
        finally:
            os.close(fd)
        if not missing:
            break
    return lines


def _mend_file(fd: int, context: FileContext, left: LeftOver) -> Mended | None:
    try:
        units, _ = open_units(fd, context)
    except (FormatError, IntegrityError):
        return None
    result = mend(units, left.operation, left.regions)
    os.fsync(fd)
    return result


def _report(path: str, mended: Mended | None) -> list[str]:
    if mended is None or not mended.changed:
        return []
    what = [f"units {', '.join(map(str, mended.units))}"] if mended.units else []
    what += [f"the end, at {mended.size} bytes"] if mended.resized else []
    return [f"{path} was being written when its server died; mended {' and '.join(what)}"]


def _file_id(fd: int) -> bytes | None:
    try:
        return FileHeader.parse(os.pread(fd, HEADER_SIZE, 0)).file_id
    except FormatError:
        return None


def _files(root: int) -> Iterator[tuple[str, int]]:
    """Every regular file below `root`: its stored path and a descriptor, open for writing."""
    for directory, _, names, dir_fd in os.fwalk(".", dir_fd=root):
        for name in names:
            with contextlib.suppress(OSError):  # what we may not open, we did not write
                # Looked at before it is opened: opening a device may do things.
                mode = os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode
                if not stat.S_ISREG(mode) or is_reserved(os.fsencode(name)):
                    continue
                opened = open_own(dir_fd, os.fsencode(name), _FLAGS)
                yield os.path.normpath(f"{directory}/{name}"), opened
