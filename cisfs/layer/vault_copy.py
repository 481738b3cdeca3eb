"""The tree of one vault copied into another: all that a vault keeps of its objects, and no more.

Plaintext is in memory only.  Copied over a copy that was interrupted, it keeps what is there
already and right: nothing of that is believed for its size or its times, all of it is read and
compared.  Knows neither keys nor where vaults are.  One thread, whose umask is 0.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from cisfs.errors import FormatError, IntegrityError
from cisfs.layer.tree import ROOT, Attr, Change
from cisfs.layer.vault_copy_node import NodeCopy, owner_of
from cisfs.layer.wholetree import WholeTree


class Unusable(Exception):
    """What an earlier copy left cannot be gone on with; an empty vault can."""


@dataclass(slots=True)
class _Directory:
    """A directory that is being copied: its nodes, and the names that are still to come."""

    source: int
    target: int
    names: list[bytes]


class TreeCopy:
    """Copies `source` into `target`; `report` is called with the bytes that are copied each time.

    A file with several names gets them all.
    """

    def __init__(
        self, source: WholeTree, target: WholeTree, report: Callable[[int], object]
    ) -> None:
        self._source = source
        self._target = target
        self._nodes = NodeCopy(source, target, report)
        self._twins: dict[int, int] = {}  # by node in the source, of files with several names
        self._taken: set[int] = set()  # nodes of the target which have several names

    def run(self) -> None:
        """Copy it all.

        Raises FormatError or IntegrityError, naming the file, for damage in the source, Unusable,
        CisfsError for what only root can copy, OSError with the path in the vault.
        """
        way = [self._enter(ROOT, ROOT)]
        while way:
            directory = way[-1]
            if directory.names:
                inner = self._copy(directory, directory.names.pop())
                way += [inner] if inner is not None else []
                continue
            way.pop()
            with self._naming(directory.source):
                attr = self._source.getattr(directory.source)
                xattrs = self._nodes.xattrs(attr)
                with _of_target():
                    self._nodes.describe(directory.target, attr, xattrs)
            if directory.target != ROOT:
                self._source.forget(directory.source, 1)
                self._target.forget(directory.target, 1)

    def _copy(self, directory: _Directory, name: bytes) -> _Directory | None:
        """Copy an entry; a directory is returned, and what is in it not yet copied."""
        attr = self._source.lookup(directory.source, name)
        with self._naming(attr.node):
            if stat.S_ISDIR(attr.mode):
                return self._enter(attr.node, self._directory(directory.target, name, attr))
            self._place(directory.target, name, attr)
        self._source.forget(attr.node, 1)
        return None

    # -- directories -----------------------------------------------------------------------

    def _directory(self, parent: int, name: bytes, attr: Attr) -> int:
        """Return the node of the target's directory, with a reference; made if need be."""
        with _of_target():
            there = self._found(parent, name)
            if there is not None and stat.S_ISDIR(there.mode):
                return there.node
            if there is not None:
                self._remove(parent, name, there)
            return self._target.mkdir(parent, name, 0o700, owner_of(attr)).node

    def _enter(self, source: int, target: int) -> _Directory:
        """Begin a directory: it is open to us, and has no entries that the source has not."""
        names = self._source.names(source)
        with _of_target():
            if stat.S_IMODE(self._target.getattr(target).mode) != 0o700:
                self._target.setattr(target, Change(mode=0o700))
            for name in set(self._target.names(target)).difference(names):
                there = self._found(target, name)
                if there is not None:
                    self._remove(target, name, there)
        return _Directory(source, target, names)

    # -- other entries ---------------------------------------------------------------------

    def _place(self, parent: int, name: bytes, attr: Attr) -> None:
        """Have the target's entry be like the source's."""
        twin = self._twins.get(attr.node) if attr.nlink > 1 else None
        node = self._like(parent, name, attr, twin)
        if twin is not None:
            if node is None:
                node = self._target.link(twin, parent, name).node
            self._target.forget(node, 1)
            return
        if node is not None and not self._updated(node, attr):
            self._target.unlink(parent, name)
            self._target.forget(node, 1)
            node = None
        if node is None:
            node = self._made(parent, name, attr)
        if attr.nlink > 1:
            self._twins[attr.node] = node  # and keep the reference: there is more to be linked
        else:
            self._target.forget(node, 1)

    def _like(self, parent: int, name: bytes, attr: Attr, twin: int | None) -> int | None:
        """Return the node of the target's entry, with a reference, if it will do; or remove it."""
        text = self._source.readlink(attr.node) if stat.S_ISLNK(attr.mode) else None
        with _of_target():
            there = self._found(parent, name)
            if there is None:
                return None
            if twin is not None:
                fits = there.node == twin
            else:
                fits = there.node not in self._taken and self._is_alike(attr, text, there)
            if fits:
                if there.nlink > 1:
                    self._taken.add(there.node)
                return there.node
            self._remove(parent, name, there)
            return None

    def _is_alike(self, attr: Attr, text: bytes | None, there: Attr) -> bool:
        """Whether all that cannot be changed in place is alike."""
        if stat.S_IFMT(attr.mode) != stat.S_IFMT(there.mode):
            return False
        if text is None:
            return attr.rdev == there.rdev
        try:
            return self._target.readlink(there.node) == text
        except (FormatError, IntegrityError):
            return False

    def _made(self, parent: int, name: bytes, attr: Attr) -> int:
        """Make the entry in the target; returns its node, with a reference."""
        mode, owner = attr.mode, owner_of(attr)
        if stat.S_ISREG(mode):
            handle, new = self._target.create(
                parent, name, stat.S_IFREG | 0o600, os.O_RDWR | os.O_EXCL, owner
            )
            try:
                self._nodes.fill(new.node, attr, fresh=True)
            finally:
                self._target.release(handle)
            return new.node
        if stat.S_ISLNK(mode):
            text = self._source.readlink(attr.node)
            new = self._target.symlink(parent, name, text, owner)
        else:
            new = self._target.mknod(parent, name, mode, attr.rdev, owner)
        self._nodes.describe(new.node, attr, self._nodes.xattrs(attr))
        return new.node

    def _updated(self, node: int, attr: Attr) -> bool:
        """Have a node of the target be like the source's; False where it is damaged."""
        try:
            if not stat.S_ISREG(attr.mode):
                self._nodes.describe(node, attr, self._nodes.xattrs(attr))
                return True
            return self._nodes.fill(node, attr, fresh=False)
        except (FormatError, IntegrityError):
            return False  # if it is the source that is damaged, that is found once more
        except OSError as error:
            if error.errno != errno.EOPNOTSUPP:  # no holes can be made here
                raise
            return False

    # -- the rest --------------------------------------------------------------------------

    def _found(self, parent: int, name: bytes) -> Attr | None:
        """Find an entry of the target and take a reference."""
        try:
            return self._target.lookup(parent, name)
        except FileNotFoundError:
            return None

    def _remove(self, parent: int, name: bytes, there: Attr) -> None:
        """Remove an entry of the target and give its reference back."""
        if stat.S_ISDIR(there.mode):
            raise Unusable
        self._target.unlink(parent, name)
        self._target.forget(there.node, 1)

    @contextmanager
    def _naming(self, node: int) -> Iterator[None]:
        """Say in the system's errors which file it is about."""
        try:
            yield
        except OSError as error:
            raise OSError(error.errno, error.strerror, self._source.path(node)) from None


@contextmanager
def _of_target() -> Iterator[None]:
    """Take damage for the target's."""
    try:
        yield
    except (FormatError, IntegrityError):
        raise Unusable from None
