"""One node of a vault copied onto one of another: content, holes, owner, attributes, mode, times.

Does not know names or directories (`cisfs.layer.vault_copy`).  One thread.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable

from cisfs.errors import CisfsError, FormatError, IntegrityError
from cisfs.layer.tree import Attr, Caller, Change
from cisfs.layer.wholetree import WholeTree

_PIECE = 1 << 20  # bytes; whole units of any size


class NodeCopy:
    """Copies from nodes of `source` to nodes of `target`; see `TreeCopy` for `report`."""

    def __init__(
        self, source: WholeTree, target: WholeTree, report: Callable[[int], object]
    ) -> None:
        self._source = source
        self._target = target
        self._report = report

    def fill(self, node: int, attr: Attr, *, fresh: bool) -> bool:
        """Give a file the source's content, then all else; tells whether it is whole then.

        A `fresh` one is empty.  Others may have any content, some of which never got to the disk.
        """
        source, target = self._source, self._target
        reading = source.open(attr.node, os.O_RDONLY)
        try:
            size = source.getattr(reading).size
            writing = target.open(node, os.O_RDWR)
            try:
                if not fresh and target.getattr(node).size > size:
                    target.setattr(node, Change(size=size))
                end = 0
                for start, stop in source.data_spans(reading):
                    self._empty(writing, end, start)
                    self._copy_span(reading, writing, start, stop)
                    end = stop
                self._empty(writing, end, size)
                if target.getattr(node).size < size:
                    target.setattr(node, Change(size=size))
                if not fresh and not target.is_intact(writing):
                    return False
                self.describe(node, attr, self.xattrs(attr))
            finally:
                target.release(writing)
        finally:
            source.release(reading)
        return True

    def _empty(self, writing: int, start: int, stop: int) -> None:
        """Make whole units a hole, as far as there are any yet."""
        stop = min(stop, self._target.getattr(writing).size)
        if start < stop:
            self._target.discard(writing, start, stop - start)

    def _copy_span(self, reading: int, writing: int, start: int, stop: int) -> None:
        for at in range(start, stop, _PIECE):
            data = self._source.read(reading, at, min(_PIECE, stop - at))
            if not self._holds(writing, at, data):
                self._target.write(writing, at, data)
            self._report(len(data))

    def _holds(self, writing: int, at: int, data: memoryview) -> bool:
        if at >= self._target.getattr(writing).size:
            return False
        try:
            return bytes(self._target.read(writing, at, len(data))) == bytes(data)
        except (FormatError, IntegrityError):
            return False

    def xattrs(self, attr: Attr) -> dict[bytes, bytes]:
        """Return the extended attributes of a node of the source."""
        names = self._source.listxattr(attr.node)
        return {name: self._source.getxattr(attr.node, name) for name in names}

    def describe(self, node: int, attr: Attr, xattrs: dict[bytes, bytes]) -> None:
        """Give a node all but its content.  In this order: each may change what comes later."""
        target = self._target
        there = target.getattr(node)
        if (there.uid, there.gid) != owner_of(attr):
            try:
                target.setattr(node, Change(uid=attr.uid, gid=attr.gid))
            except PermissionError:
                path = self._source.path(attr.node)
                raise CisfsError(f"{path} is another user's: only root can rotate this") from None
        self._set_xattrs(node, xattrs)
        mode = stat.S_IMODE(attr.mode)
        if not stat.S_ISLNK(attr.mode) and stat.S_IMODE(target.getattr(node).mode) != mode:
            target.setattr(node, Change(mode=mode))
        target.setattr(node, Change(atime_ns=attr.atime_ns, mtime_ns=attr.mtime_ns))

    def _set_xattrs(self, node: int, xattrs: dict[bytes, bytes]) -> None:
        there = self._target.listxattr(node)
        for name in there:
            if name not in xattrs:
                self._target.removexattr(node, name)
        for name, value in xattrs.items():
            if name not in there or self._target.getxattr(node, name) != value:
                self._target.setxattr(node, name, value)


def owner_of(attr: Attr) -> Caller:
    """Return whose a node is."""
    return Caller(attr.uid, attr.gid)
