"""Vaults for tests: made with a fixed key file, opened, looked into, left as a crash leaves them.

Knows what a vault is stored as, for the tests which damage it.  One test at a time.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cisfs.format.names import is_reserved
from cisfs.keys.credentials import RawKey
from cisfs.layer import vault as vaults
from cisfs.layer.file import EncryptedFile
from cisfs.layer.tree import ROOT, Caller, VaultTree
from cisfs.layer.vault import Vault
from cisfs.layer.verify import Finding, verify

KEY = RawKey(bytes(range(32)))  # no Argon2: these tests open thousands of vaults
UNIT = 4096
Bytes = bytes | bytearray | memoryview
ME = Caller(os.geteuid(), os.getegid())


def memory() -> Path | None:
    """A directory where fsync costs nothing, if there is one that we may use."""
    path = Path("/dev/shm")
    return path if os.access(path, os.W_OK) else None


def make(path: Path, *, unit_size: int = UNIT) -> Path:
    """Make a vault; returns its path."""
    vaults.create(path, KEY, unit_size=unit_size)
    return path


@contextmanager
def opened(path: Path, *, read_only: bool = False) -> Iterator[Vault]:
    """Open a vault, and close it properly."""
    vault = Vault.open(path, KEY, read_only=read_only)
    try:
        yield vault
    finally:
        vault.close()


@contextmanager
def mounted(path: Path, *, read_only: bool = False) -> Iterator[VaultTree]:
    """The file system in a vault, closed properly afterwards."""
    tree = VaultTree(Vault.open(path, KEY, read_only=read_only))
    try:
        yield tree
    finally:
        tree.close()


def findings(path: Path, *, salvage: bool = False) -> list[Finding]:
    """What `verify` says of a vault."""
    with opened(path, read_only=not salvage) as vault:
        return list(verify(vault, salvage=salvage))


def same(one: Bytes, other: Bytes) -> bool:
    """Compare long bytes: pytest's account of how two of them differ takes it minutes."""
    return one == other


def put(tree: VaultTree, name: bytes, content: bytes, parent: int = ROOT) -> int:
    """Make a file with some content; returns its node, with one reference held."""
    handle, attr = tree.create(parent, name, stat.S_IFREG | 0o644, os.O_RDWR, ME)
    if content:
        tree.write(handle, 0, content)
    tree.release(handle)
    return attr.node


def fetch(tree: VaultTree, name: bytes, parent: int = ROOT) -> bytes:
    """Read a file whole, by name; leaves no reference behind."""
    attr = tree.lookup(parent, name)
    try:
        return content(tree, attr.node)
    finally:
        tree.forget(attr.node, 1)


def content(tree: VaultTree, node: int) -> bytes:
    """Read a node's file whole."""
    handle = tree.open(node, os.O_RDONLY)
    try:
        return bytes(tree.read(handle, 0, tree.getattr(node).size + 1))
    finally:
        tree.release(handle)


def listing(tree: VaultTree, node: int = ROOT) -> list[bytes]:
    """The sorted names in a directory."""
    handle = tree.opendir(node)
    try:
        return sorted(name for name, _, _ in tree.readdir(handle, 0))
    finally:
        tree.releasedir(handle)


def stored(directory: Path) -> list[Path]:
    """The backing objects of a directory's entries, sorted."""
    return sorted(each for each in directory.iterdir() if not is_reserved(os.fsencode(each.name)))


def only(directory: Path) -> Path:
    """The backing object of a directory's one entry."""
    (path,) = stored(directory)
    return path


def abandon(vault: Vault, *files: EncryptedFile) -> None:
    """Leave a vault as a killed process does: nothing is ended, everything is closed."""
    for file in files:
        if file.fd >= 0:
            os.close(file.fd)
    vault.abandon()


def flip(path: Path, offset: int, bit: int = 0) -> None:
    """Flip one bit of a backing file."""
    with path.open("r+b", buffering=0) as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1 << bit]))
