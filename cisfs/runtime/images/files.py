"""The files in a tar that holds an image, by name, without unpacking them.

Does not know what they are for: names are only looked up, and lead nowhere.  One thread.
"""

from __future__ import annotations

import posixpath
import tarfile
from dataclasses import dataclass

from cisfs.build.archive import Archive
from cisfs.build.index import Content
from cisfs.build.members import Member, Members
from cisfs.errors import FormatError

_SMALL = 8 << 20  # bytes of a manifest or configuration
_FILES_MAX = 1 << 16
_LINKS_MAX = 8  # that lead to each other


@dataclass(frozen=True, slots=True)
class File:
    """A file in the archive."""

    content: Content | None
    size: int

    def read(self, offset: int, size: int) -> bytes:
        """See `Content`."""
        return b"" if self.content is None else bytes(self.content.read(offset, size))


class Files:
    """The files of an archive by name, once it was read to its end."""

    def __init__(self, archive: Archive) -> None:
        self._files: dict[str, File] = {}
        self._links: dict[str, str] = {}
        for member in Members(archive):
            self._take(archive, member)

    def find(self, name: str) -> File:
        """Return a file, by way of links or not.  Raises FormatError if there is none."""
        found = posixpath.normpath(name)
        for _ in range(_LINKS_MAX):
            if found in self._files:
                return self._files[found]
            found = self._links.get(found, "")
        raise FormatError(f"it has no file {name!r}")

    def read(self, name: str) -> bytes:
        """Return what is in a small file.  Raises FormatError, OSError."""
        file = self.find(name)
        if file.size > _SMALL:
            raise FormatError(f"{name!r} has more than {_SMALL} bytes")
        return file.read(0, file.size)

    def _take(self, archive: Archive, member: Member) -> None:
        if len(self._files) + len(self._links) >= _FILES_MAX:
            raise FormatError(f"it has more than {_FILES_MAX} files, and so is no image")
        name = posixpath.normpath(member.name.decode("utf-8", "surrogateescape"))
        target = member.target.decode("utf-8", "surrogateescape")
        if member.kind == tarfile.REGTYPE and member.segments is None:
            size = member.stored
            self._files[name] = File(archive.keep(size) if size else None, size)
        elif member.kind == tarfile.SYMTYPE:  # a layer that another image has, too
            self._links[name] = posixpath.normpath(posixpath.join(posixpath.dirname(name), target))
        elif member.kind == tarfile.LNKTYPE:
            self._links[name] = posixpath.normpath(target)
