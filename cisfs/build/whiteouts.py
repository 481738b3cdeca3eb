"""Whiteouts: the file names by which an OCI layer deletes what is below it, made overlayfs's own.

OCI image-spec, layer.md, "Whiteouts"; Linux, Documentation/filesystems/overlayfs.rst, "whiteouts
and opaque directories".  Does not know where names come from.  One thread.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable

from cisfs.build.index import Directory, Entry
from cisfs.errors import UsageError

PREFIX = b".wh."
OPAQUE_XATTR = b"trusted.overlay.opaque"
REDIRECT_XATTR = b"trusted.overlay.redirect"

_OPAQUE = b".wh..wh..opq"
_METADATA = b".wh..wh."  # of aufs, where whiteouts come from; no part of the layer


def is_metadata(name: bytes) -> bool:
    """Whether an entry, with all below it, is to be left out."""
    return name.startswith(_METADATA) and name != _OPAQUE


class Whiteouts:
    """Gathers a layer's whiteouts, and applies them when all of its entries are known.

    They are about the layers below only: an entry of this layer with the same name stays, wherever
    in the archive it is.
    """

    def __init__(self) -> None:
        self._opaque: list[Directory] = []
        self._hidden: list[tuple[Directory, bytes, Entry]] = []

    def take(self, parent: Directory, name: bytes, entry: Entry) -> bool:
        """Take in an entry if its name makes it a whiteout; False if it does not.

        Raises UsageError for one that nothing could be meant by.
        """
        if not name.startswith(PREFIX):
            return False
        hidden = name.removeprefix(PREFIX)
        if isinstance(entry, Directory) or hidden in (b"", b".", b".."):
            raise UsageError("is no proper whiteout, and no other name may begin with .wh.")
        if name == _OPAQUE:
            self._opaque.append(parent)
        else:
            self._hidden.append((parent, hidden, _device(entry)))
        return True

    def apply(self) -> None:
        """Put the whiteouts where no entry is, and make opaque what hides the same below it."""
        for directory in self._opaque:
            make_opaque(directory)
        for parent, name, device in self._hidden:
            shown = parent.children.setdefault(name, device)
            if isinstance(shown, Directory):
                make_opaque(shown)
                shown.implied = False  # it is a new one, and not as the one that was deleted


def check_path(components: Iterable[bytes]) -> None:
    """Raise UsageError if something is to be in a directory that has a whiteout's name."""
    if any(name.startswith(PREFIX) for name in components):
        raise UsageError("is inside a whiteout")


def make_opaque(directory: Directory) -> None:
    """Have a directory hide all that is below it."""
    directory.xattrs = {**directory.xattrs, OPAQUE_XATTR: b"y"}


def is_opaque(directory: Directory) -> bool:
    """Whether a directory hides all that is below it."""
    return OPAQUE_XATTR in directory.xattrs


def is_whiteout(entry: Entry) -> bool:
    """Whether an entry is overlayfs's own whiteout."""
    return stat.S_ISCHR(entry.mode) and entry.rdev == 0


def _device(entry: Entry) -> Entry:
    """The device 0:0 without permissions that overlayfs knows a whiteout by."""
    return Entry(stat.S_IFCHR, entry.uid, entry.gid, entry.mtime_ns)
