"""A directory as a source: an index of what is in it, OCI whiteouts applied.

No symlink is followed, except by the path of the directory itself.  One thread.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from cisfs.build.attributes import proper
from cisfs.build.files import FileAt, State
from cisfs.build.index import (
    NO_XATTRS,
    Directory,
    Entry,
    Index,
    quoted,
)
from cisfs.build.whiteouts import Whiteouts, is_metadata
from cisfs.errors import FormatError, UsageError
from cisfs.format.erofs_chunks import WORTHWHILE

_SECTOR = 512  # bytes, which st_blocks counts (stat(2))


def index_directory(path: Path) -> Index:
    """Return the index of a directory, its whiteouts applied.

    Content is read from the files when it is asked for.  Raises UsageError for a whiteout that
    nothing can be meant by, FormatError for extended attributes that no image can have, OSError,
    which names the place.
    """
    return _Tree(os.path.realpath(os.fsencode(path))).read()


class _Tree:
    """The tree of a directory, as far as it has been read."""

    def __init__(self, path: bytes) -> None:
        self._path = path
        self._whiteouts = Whiteouts()
        self._links: dict[tuple[int, int], Entry] = {}  # the files with more than one name

    def read(self) -> Index:
        """Read it all."""
        root = Directory(stat.S_IFDIR)
        _describe(root, self._path, os.stat(self._path))
        directories = [(self._path, root)]
        while directories:
            path, directory = directories.pop()
            for name, status in _listing(path):
                if is_metadata(name):
                    continue
                try:
                    entry = self._add(path, directory, name, status)
                except (FormatError, UsageError) as error:
                    place = quoted(os.path.join(path, name))
                    raise type(error)(f"{place}: {error}") from None
                if isinstance(entry, Directory):
                    directories.append((os.path.join(path, name), entry))
        self._whiteouts.apply()
        return Index(root)

    def _add(self, path: bytes, directory: Directory, name: bytes, status: os.stat_result) -> Entry:
        inode = (status.st_dev, status.st_ino)
        entry = self._links.get(inode) or _entry(path, name, status)
        if status.st_nlink > 1 and not isinstance(entry, Directory):
            self._links[inode] = entry
        if not self._whiteouts.take(directory, name, entry):
            directory.children[name] = entry
        return entry


def _entry(path: bytes, name: bytes, status: os.stat_result) -> Entry:
    mode = status.st_mode
    place = os.path.join(path, name)
    entry = Directory(mode) if stat.S_ISDIR(mode) else Entry(mode)
    _describe(entry, place, status)
    if stat.S_ISLNK(mode):
        entry.target = os.readlink(place)
    elif stat.S_ISREG(mode):
        entry.size = status.st_size
        entry.content = FileAt(path, name, State.of(status))
        if status.st_size - status.st_blocks * _SECTOR >= WORTHWHILE:
            entry.extents = entry.content.extents()
    return entry


def _describe(entry: Entry, place: bytes, status: os.stat_result) -> None:
    entry.mode = status.st_mode
    entry.uid, entry.gid = status.st_uid, status.st_gid
    entry.mtime_ns = status.st_mtime_ns
    entry.rdev = status.st_rdev
    entry.xattrs = proper(status.st_mode, _xattrs(place)) or NO_XATTRS


def _listing(directory: bytes) -> list[tuple[bytes, os.stat_result]]:
    """Names and stat(2) of a directory's entries, sorted."""
    with os.scandir(directory) as entries:
        return sorted((each.name, each.stat(follow_symlinks=False)) for each in entries)


def _xattrs(place: bytes) -> dict[bytes, bytes]:
    try:
        names = os.listxattr(place, follow_symlinks=False)
    except OSError as error:
        if error.errno != errno.EOPNOTSUPP:
            raise
        return {}
    return {os.fsencode(name): os.getxattr(place, name, follow_symlinks=False) for name in names}
