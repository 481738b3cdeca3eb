"""The tree of a vault against a model of dictionaries, under any sequence of operations."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from cisfs.layer.tree import (
    RENAME_EXCHANGE,
    RENAME_NOREPLACE,
    ROOT,
    Change,
    VaultTree,
)
from cisfs.layer.vault import Vault
from tests.unit import vaults
from tests.unit.vaults import KEY, ME, UNIT

NAMES = st.sampled_from([b"a", b"b", b"c", b"l" * 255, b"m" * 200])
PATHS = st.lists(NAMES, max_size=2).map(tuple)
Where = tuple[bytes, ...]


@dataclass(eq=False)
class Thing:
    """What the model knows of an inode: `kind` is "file", "directory" or "link"."""

    kind: str
    content: bytearray = field(default_factory=bytearray)
    entries: dict[bytes, Thing] = field(default_factory=dict)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)

    def holds(self, other: Thing) -> bool:
        return self is other or any(each.holds(other) for each in self.entries.values())


class Refused(Exception):
    """What the model would answer with an error number."""

    def __init__(self, *numbers: int) -> None:
        self.numbers = numbers


class TreeMachine(RuleBasedStateMachine):
    """The tree is `tree`, what it should hold `root`; nodes are found by walking from the root."""

    def __init__(self) -> None:
        super().__init__()
        self.umask = os.umask(0)
        self.directory = Path(tempfile.mkdtemp(prefix="cisfs-test-", dir=vaults.memory()))
        self.path = vaults.make(self.directory / "vault")
        self.tree = VaultTree(Vault.open(self.path, KEY))
        self.root = Thing("directory")
        self.count = 0

    def teardown(self) -> None:
        self.tree.close()
        os.umask(self.umask)
        shutil.rmtree(self.directory)

    # -- finding things on both sides ------------------------------------------------------

    def find(self, where: Where) -> Thing:
        thing = self.root
        for name in where:
            if thing.kind != "directory":
                raise Refused(errno.ENOTDIR)
            if name not in thing.entries:
                raise Refused(errno.ENOENT)
            thing = thing.entries[name]
        return thing

    def parent(self, where: Where) -> dict[bytes, Thing]:
        thing = self.find(where)
        if thing.kind != "directory":
            raise Refused(errno.ENOTDIR)
        return thing.entries

    @contextlib.contextmanager
    def node(self, where: Where) -> Iterator[int]:
        nodes = [ROOT]
        for name in where:
            attr = self.tree.lookup(nodes[-1], name)
            nodes.append(attr.node)
        try:
            yield nodes[-1]
        finally:
            for node in reversed(nodes[1:]):
                self.tree.forget(node, 1)

    @contextlib.contextmanager
    def both(self, *directories: Where) -> Iterator[list[int]]:
        """Directories that exist on both sides; anything else is not asked for."""
        with contextlib.ExitStack() as stack:
            for where in directories:
                self.parent(where)
            yield [stack.enter_context(self.node(where)) for where in directories]

    @contextlib.contextmanager
    def agreed(self) -> Iterator[None]:
        """The model's refusals are the tree's: inside, the model comes first, then the tree."""
        try:
            yield
        except Refused:
            pass

    def refused(self, *numbers: int) -> pytest.RaisesExc[OSError]:
        return pytest.raises(OSError, check=lambda error: error.errno in numbers)

    # -- making things ---------------------------------------------------------------------

    @rule(where=PATHS, name=NAMES, kind=st.sampled_from(["file", "directory", "link"]))
    def make(self, where: Where, name: bytes, kind: str) -> None:
        with self.agreed(), self.both(where) as (node,):
            entries = self.parent(where)
            if name in entries:
                with self.refused(errno.EEXIST):
                    self.make_really(node, name, kind)
            else:
                entries[name] = Thing(kind)
                self.make_really(node, name, kind)

    def make_really(self, node: int, name: bytes, kind: str) -> None:
        if kind == "file":
            flags = os.O_RDWR | os.O_EXCL
            handle, attr = self.tree.create(node, name, stat.S_IFREG | 0o644, flags, ME)
            self.tree.release(handle)
        elif kind == "directory":
            attr = self.tree.mkdir(node, name, stat.S_IFDIR | 0o755, ME)
        else:
            attr = self.tree.symlink(node, name, b"target", ME)
        self.tree.forget(attr.node, 1)

    @rule(old=PATHS, where=PATHS, name=NAMES)
    def link(self, old: Where, where: Where, name: bytes) -> None:
        with self.agreed(), self.both(where) as (directory,):
            thing, entries = self.find(old), self.parent(where)
            if thing.kind == "directory":
                return
            with self.node(old) as node:
                if name in entries:
                    with self.refused(errno.EEXIST):
                        self.tree.link(node, directory, name)
                else:
                    entries[name] = thing
                    self.tree.forget(self.tree.link(node, directory, name).node, 1)

    # -- moving and removing them ----------------------------------------------------------

    @rule(where=PATHS, name=NAMES)
    def remove(self, where: Where, name: bytes) -> None:
        with self.agreed(), self.both(where) as (node,):
            entries = self.parent(where)
            thing = entries.get(name)
            if thing is None:
                with self.refused(errno.ENOENT):
                    self.tree.unlink(node, name)
                with self.refused(errno.ENOENT):
                    self.tree.rmdir(node, name)
            elif thing.kind != "directory":
                with self.refused(errno.ENOTDIR):
                    self.tree.rmdir(node, name)
                self.tree.unlink(node, name)
                del entries[name]
            elif thing.entries:
                with self.refused(errno.ENOTEMPTY):
                    self.tree.rmdir(node, name)
            else:
                with self.refused(errno.EISDIR):
                    self.tree.unlink(node, name)
                self.tree.rmdir(node, name)
                del entries[name]

    @rule(
        old=PATHS,
        old_name=NAMES,
        new=PATHS,
        new_name=NAMES,
        flags=st.sampled_from([0, RENAME_NOREPLACE, RENAME_EXCHANGE]),
    )
    def rename(self, old: Where, old_name: bytes, new: Where, new_name: bytes, flags: int) -> None:
        with self.agreed(), self.both(old, new) as (source, target):
            numbers = self.why_not(old, old_name, new, new_name, flags)
            if numbers:
                with self.refused(*numbers):
                    self.tree.rename(source, old_name, target, new_name, flags)
                return
            mine, theirs = self.parent(old), self.parent(new)
            moved, other = mine[old_name], theirs.get(new_name)
            if moved is other:
                return  # the kernel does not ask for what changes nothing
            self.tree.rename(source, old_name, target, new_name, flags)
            del mine[old_name]
            theirs[new_name] = moved
            if flags == RENAME_EXCHANGE and other is not None:
                mine[old_name] = other

    def why_not(
        self, old: Where, old_name: bytes, new: Where, new_name: bytes, flags: int
    ) -> set[int]:
        """The error numbers with which a rename may be refused; none if it may not."""
        moved, other = self.parent(old).get(old_name), self.parent(new).get(new_name)
        if moved is None:
            return {errno.ENOENT}
        numbers = set()
        if moved.holds(self.find(new)):
            numbers.add(errno.EINVAL)
        if flags == RENAME_EXCHANGE:
            if other is None:
                return {*numbers, errno.ENOENT}
            if other.holds(self.find(old)):
                numbers.add(errno.EINVAL)
            return numbers
        if other is not None and flags == RENAME_NOREPLACE:
            numbers.add(errno.EEXIST)
        elif other is not None and other is not moved:
            if other.holds(self.find(old)) or other.entries:
                numbers |= {errno.ENOTEMPTY, errno.EEXIST}
            if (moved.kind == "directory") != (other.kind == "directory"):
                numbers |= {errno.ENOTDIR if moved.kind == "directory" else errno.EISDIR}
        return numbers

    # -- contents --------------------------------------------------------------------------

    @rule(
        where=PATHS,
        offset=st.sampled_from([0, 1, 16, UNIT - 1, UNIT, 3 * UNIT]),
        length=st.sampled_from([1, 16, UNIT, UNIT + 1]),
    )
    def write(self, where: Where, offset: int, length: int) -> None:
        with self.agreed():
            thing = self.find(where)
            if thing.kind != "file":
                return
            self.count += 1
            data = (b"%d." % self.count * length)[:length]
            thing.content.extend(bytes(max(0, offset - len(thing.content))))
            thing.content[offset : offset + length] = data
            with self.node(where) as node:
                handle = self.tree.open(node, os.O_WRONLY)
                assert self.tree.write(handle, offset, data) == length
                self.tree.release(handle)

    @rule(where=PATHS, size=st.sampled_from([0, 1, 17, UNIT, 2 * UNIT + 5, 6 * UNIT]))
    def truncate(self, where: Where, size: int) -> None:
        with self.agreed():
            thing = self.find(where)
            if thing.kind != "file":
                return
            del thing.content[size:]
            thing.content.extend(bytes(size - len(thing.content)))
            with self.node(where) as node:
                assert self.tree.setattr(node, Change(size=size)).size == size

    @rule(where=PATHS, name=st.sampled_from([b"user.a", b"user.b"]), value=st.binary(max_size=20))
    def set_attribute(self, where: Where, name: bytes, value: bytes) -> None:
        with self.agreed():
            thing = self.find(where)
            if thing.kind == "link":
                return
            thing.xattrs[name] = value
            with self.node(where) as node:
                self.tree.setxattr(node, name, value)

    @rule(where=PATHS, name=st.sampled_from([b"user.a", b"user.b"]))
    def remove_attribute(self, where: Where, name: bytes) -> None:
        with self.agreed():
            thing = self.find(where)
            if thing.kind == "link":
                return
            with self.node(where) as node:
                if name in thing.xattrs:
                    del thing.xattrs[name]
                    self.tree.removexattr(node, name)
                else:
                    with self.refused(errno.ENODATA):
                        self.tree.removexattr(node, name)

    @rule()
    def reopen(self) -> None:
        self.tree.close()
        self.tree = VaultTree(Vault.open(self.path, KEY))

    @invariant()
    def the_trees_agree(self) -> None:
        self.compare(ROOT, self.root, {})

    def compare(self, node: int, thing: Thing, seen: dict[Thing, int]) -> None:
        """The same names, kinds, contents and attributes; one node for each inode of the model."""
        assert seen.setdefault(thing, node) == node
        if thing.kind == "link":
            assert self.tree.readlink(node) == b"target"
            return
        held = {name: self.tree.getxattr(node, name) for name in self.tree.listxattr(node)}
        assert held == thing.xattrs
        if thing.kind == "file":
            assert vaults.same(vaults.content(self.tree, node), thing.content)
            return
        assert vaults.listing(self.tree, node) == sorted(thing.entries)
        for name, child in thing.entries.items():
            attr = self.tree.lookup(node, name)
            assert attr.size == len(child.content) or child.kind != "file"
            self.compare(attr.node, child, seen)
            self.tree.forget(attr.node, 1)


TestTreeMachine = TreeMachine.TestCase
TestTreeMachine.settings = settings(max_examples=50, stateful_step_count=30)
