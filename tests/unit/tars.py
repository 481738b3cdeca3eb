"""Tars for tests, written byte by byte: also those that no tool would write; and their indexes.

Knows the format by POSIX and the GNU manual, not by cisfs.  One test at a time.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cisfs.build.index import Directory, Entry, Index
from cisfs.build.tar import Limits, index_tar

BLOCK = 512
END = bytes(2 * BLOCK)
USTAR, GNU = b"ustar\x0000", b"ustar  \0"
Records = Iterable[tuple[bytes, bytes]]


def header(
    name: bytes,
    kind: bytes = b"0",
    *,
    size: int | bytes = 0,
    mode: int = 0o644,
    uid: int | bytes = 0,
    gid: int = 0,
    mtime: int | bytes = 0,
    target: bytes = b"",
    device: tuple[int, int] = (0, 0),
    magic: bytes = USTAR,
    prefix: bytes = b"",
) -> bytes:
    """One header block; a number given as bytes is put there as it is."""
    fields = [
        (0, name[:100]),
        (100, number(mode, 8)),
        (108, number(uid, 8)),
        (116, number(gid, 8)),
        (124, number(size, 12)),
        (136, number(mtime, 12)),
        (148, b" " * 8),
        (156, kind),
        (157, target[:100]),
        (257, magic),
        (329, number(device[0], 8)),
        (337, number(device[1], 8)),
        (345, prefix),
    ]
    block = bytearray(BLOCK)
    for at, value in fields:
        block[at : at + len(value)] = value
    return summed(bytes(block))


def summed(block: bytes) -> bytes:
    """A header block with a checksum that fits."""
    block = block[:148] + b" " * 8 + block[156:]
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]


def number(value: int | bytes, width: int) -> bytes:
    """A number field: octal where it fits, else in base 256."""
    if isinstance(value, bytes):
        return value
    digits = b"%0*o" % (width - 1, value) if value >= 0 else b""
    if digits and len(digits) < width:
        return digits + b"\0"
    return (b"\x80" if value >= 0 else b"\xff") + value.to_bytes(width - 1, "big", signed=value < 0)


def padded(data: bytes) -> bytes:
    """Content as it is stored."""
    return data + bytes(-len(data) % BLOCK)


def file(name: bytes, content: bytes = b"", **fields: object) -> bytes:
    """A regular file."""
    return header(name, **{"size": len(content), **fields}) + padded(content)  # type: ignore[arg-type]


def directory(name: bytes, mode: int = 0o755) -> bytes:
    """A directory."""
    return header(name, b"5", mode=mode)


def link(name: bytes, target: bytes, kind: bytes = b"1") -> bytes:
    """A hard link; a symlink with kind 2."""
    return header(name, kind, target=target)


def record(keyword: bytes, value: bytes) -> bytes:
    """One pax record; its length counts its own digits."""
    rest = b" %s=%s\n" % (keyword, value)
    length = len(rest) + len(str(len(rest)))
    length = len(rest) + len(str(length))
    return str(length).encode() + rest


def pax(records: Records, kind: bytes = b"x") -> bytes:
    """A pax header for the next member."""
    return file(b"pax", b"".join(record(*each) for each in records), kind=kind)


def gnu_long(text: bytes, kind: bytes) -> bytes:
    """A GNU long name (L) or link target (K) for the next member."""
    return file(b"././@LongLink", text + b"\0", kind=kind, magic=GNU)


def tar(*members: bytes) -> bytes:
    """A whole archive."""
    return b"".join(members) + END


def index(data: bytes, scratch: Path, max_size: int = 1 << 24, **limits: Any) -> Index:
    """The index of a tar in a file."""
    fd = os.memfd_create("tar")
    try:
        os.write(fd, data)
        os.lseek(fd, 0, os.SEEK_SET)
        return index_tar(fd, "it", Limits(max_size, **limits), scratch)
    finally:
        os.close(fd)


@contextmanager
def piped(data: bytes) -> Iterator[int]:
    """A pipe that `data` comes out of."""
    receive, send = os.pipe()
    writer = threading.Thread(target=_write, args=(send, data))
    writer.start()
    try:
        yield receive
    finally:
        os.close(receive)
        writer.join()


def _write(fd: int, data: bytes) -> None:
    with os.fdopen(fd, "wb", buffering=0) as pipe:
        try:
            pipe.write(data)
        except BrokenPipeError:
            pass  # the reader has had enough


def entries(index: Index) -> dict[bytes, Entry]:
    """Every entry of an index by its path; the root's is empty."""
    found: dict[bytes, Entry] = {b"": index.root}

    def walk(directory: Directory, path: bytes) -> None:
        for name, child in directory.children.items():
            found[path + name] = child
            if isinstance(child, Directory):
                walk(child, path + name + b"/")

    walk(index.root, b"")
    return found


def content(entry: Entry) -> bytes:
    """A file's content, read whole."""
    return b"" if entry.content is None else bytes(entry.content.read(0, entry.size))
