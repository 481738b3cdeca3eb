"""Made the golden vault tests/golden/v1/vault.tar, once; kept to show how.

A golden vault is never made again: it stands for the vaults that users have.  A change of the
format gets a new script, a new directory and a new version.

    python -m tests.golden.make_v1 DIRECTORY      writes vault.tar and expected.json there
"""

from __future__ import annotations

import json
import os
import stat
import sys
import tarfile
import tempfile
from pathlib import Path

from cisfs.keys import slots
from cisfs.keys.credentials import Passphrase
from cisfs.layer import vault as vaults
from cisfs.layer.tree import ROOT, Caller, Change, VaultTree
from cisfs.layer.vault import Vault
from tests.golden.description import described

PASSPHRASE = Passphrase(b"golden passphrase, not a secret")
UNIT = 4096
MTIME = 1_700_000_000_123_456_789
XATTR_HEADER = "cisfs.xattr."  # our own, because the values are in hex


def main(target: Path) -> None:
    """Write the vault and what is in it."""
    if (target / "vault.tar").exists():
        sys.exit(f"{target}/vault.tar is there already: a golden vault is never made again")
    before = os.umask(0)
    # As cheap as Argon2id gets: the test opens it in every run.
    slots.ITERATIONS, slots.LANES, slots.MEMORY_KIB = 1, 1, 64
    with tempfile.TemporaryDirectory() as work:
        path = Path(work) / "vault"
        vaults.create(path, PASSPHRASE, unit_size=UNIT)
        tree = VaultTree(Vault.open(path, PASSPHRASE))
        fill(tree)
        expected = described(tree)
        tree.close()
        os.umask(before)
        pack(path, target / "vault.tar")
    text = json.dumps(expected, indent=1, sort_keys=True) + "\n"
    (target / "expected.json").write_text(text, "ascii")


def fill(tree: VaultTree) -> None:
    """Put one of everything into the vault."""
    me = Caller(os.geteuid(), os.getegid())

    def put(parent: int, name: bytes, content: bytes, mode: int = 0o644) -> int:
        handle, attr = tree.create(parent, name, stat.S_IFREG | mode, os.O_RDWR, me)
        if content:
            tree.write(handle, 0, content)
        tree.release(handle)
        return attr.node

    def content(length: int) -> bytes:
        return bytes(at * 31 % 251 for at in range(length))

    for size in (0, 1, 15, 16, 17, UNIT - 1, UNIT, UNIT + 1, 5 * UNIT + 1000):
        put(ROOT, b"size-%d" % size, content(size))
    sparse = put(ROOT, b"sparse", b"start")
    handle = tree.open(sparse, os.O_RDWR)
    tree.setattr(sparse, Change(size=1 << 33))
    tree.write(handle, 1 << 32, b"middle")
    tree.write(handle, (1 << 33) - 3, b"end")
    tree.release(handle)
    put(ROOT, b"l" * 175, b"the longest name stored in place")
    put(ROOT, b"l" * 176, b"the shortest name with a file beside it")
    put(ROOT, b"l" * 255, b"the longest name")
    put(ROOT, "nicht-ascii-\u00e4\u00f6\u00fc-\u2713".encode(), b"utf-8")
    put(ROOT, b"not-utf-8-\xff\xfe", b"bytes")
    tree.symlink(ROOT, b"link", b"nested/deep", me)
    tree.symlink(ROOT, b"long-link", b"t" * 3039, me)
    nested = tree.mkdir(ROOT, b"nested", stat.S_IFDIR | 0o750, me).node
    deep = tree.mkdir(nested, b"deep", stat.S_IFDIR | 0o1777, me).node
    put(deep, b"executable", b"#!/bin/sh\n", 0o755)
    linked = put(deep, b"linked", b"two names")
    tree.link(linked, ROOT, b"second name")
    tree.mkdir(nested, b"empty", stat.S_IFDIR | 0o700, me)
    tree.mknod(nested, b"fifo", stat.S_IFIFO | 0o620, 0, me)
    attributed = put(ROOT, b"attributed", b"has attributes", 0o4711)
    tree.setxattr(attributed, b"user.colour", b"gr\xc3\xbcn")
    tree.setxattr(attributed, b"user." + b"n" * 250, b"")
    tree.setxattr(deep, b"trusted.overlay.opaque", b"y")
    for node in (attributed, sparse, deep):
        tree.setattr(node, Change(atime_ns=MTIME, mtime_ns=MTIME))


def pack(path: Path, target: Path) -> None:
    """Put a vault into a tar, attributes in PAX headers; holes are left out of the files."""
    with tarfile.open(target, "w", format=tarfile.PAX_FORMAT) as tar:
        for each in [path, *everything_below(path)]:
            if each.name == "cisfs.journal":
                continue  # belongs to a mount, and the next one makes its own
            member = tar.gettarinfo(each, f"vault/{each.relative_to(path)}")
            headers: dict[str, str] = {}
            member.pax_headers = headers
            member.uid = member.gid = 0
            member.uname = member.gname = ""
            for name in os.listxattr(each, follow_symlinks=False):
                value = os.getxattr(each, name, follow_symlinks=False)
                headers[XATTR_HEADER + name] = value.hex()
            if not member.isreg():
                tar.addfile(member)
                continue
            pieces = stored_pieces(each)
            if len(pieces) > 1:
                headers["cisfs.pieces"] = json.dumps([[start, len(data)] for start, data in pieces])
                headers["cisfs.size"] = str(member.size)
            joined = b"".join(data for _, data in pieces)
            member.size = len(joined)
            with tempfile.TemporaryFile() as file:
                file.write(joined)
                file.seek(0)
                tar.addfile(member, file)


def everything_below(path: Path) -> list[Path]:
    """Every object below a directory; symlinks are not followed."""
    found = []
    for directory, directories, files in os.walk(path):
        found += [Path(directory, name) for name in [*directories, *files]]
    return sorted(found)


def stored_pieces(path: Path) -> list[tuple[int, bytes]]:
    """The parts of a file that are stored: (offset, bytes)."""
    pieces = []
    with path.open("rb", buffering=0) as file:
        size, at = os.fstat(file.fileno()).st_size, 0
        while at < size:
            start = os.lseek(file.fileno(), at, os.SEEK_DATA)
            at = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            pieces.append((start, os.pread(file.fileno(), at - start, start)))
    return pieces


if __name__ == "__main__":
    main(Path(sys.argv[1]))
