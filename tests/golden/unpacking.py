"""Unpacks a golden vault, member by member: tests/golden/make_v1.py wrote it.

Knows the tar and nothing of the vault in it.
"""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path

XATTR_HEADER = "cisfs.xattr."


def unpack(source: Path, target: Path) -> None:
    """Unpack into `target`, an empty directory, with modes, times and attributes."""
    with tarfile.open(source) as tar:
        for member in tar:
            path = target / member.name
            if member.isdir():
                path.mkdir(exist_ok=True)
            elif member.issym():
                path.symlink_to(member.linkname)
            elif member.islnk():
                os.link(target / member.linkname, path)
            elif member.isfifo():
                os.mkfifo(path)
            else:
                _file(tar, member, path)
            for name, value in member.pax_headers.items():
                if name.startswith(XATTR_HEADER):
                    os.setxattr(path, name.removeprefix(XATTR_HEADER), bytes.fromhex(value))
    _restore_modes(source, target)


def _file(tar: tarfile.TarFile, member: tarfile.TarInfo, path: Path) -> None:
    content = tar.extractfile(member)
    assert content is not None
    pieces = json.loads(member.pax_headers.get("cisfs.pieces", f"[[0, {member.size}]]"))
    with path.open("wb") as file:
        for start, length in pieces:
            file.seek(start)
            file.write(content.read(length))
        file.truncate(int(member.pax_headers.get("cisfs.size", member.size)))


def _restore_modes(source: Path, target: Path) -> None:
    """At the end: a directory may not be writable, and times change with every entry."""
    with tarfile.open(source) as tar:
        for member in reversed(tar.getmembers()):
            path = target / member.name
            if not member.issym():
                path.chmod(member.mode)
            mtime = round(float(member.pax_headers.get("mtime", member.mtime)) * 10**9)
            os.utime(path, ns=(mtime, mtime), follow_symlinks=False)
