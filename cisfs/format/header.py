"""The fixed structures in files: file header, directory id, trailer, hole marker, as bytes.

See docs/FORMAT.md, sections 3 and 4.  Knows no I/O and computes no tag; the caller brings them.
Pure functions of immutable values; safe anywhere.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from cisfs.errors import FormatError, UnsupportedVersionError
from cisfs.format.geometry import HEADER_SIZE, MAX_UNIT_SIZE, MIN_UNIT_SIZE, TAG_SIZE

FILE_MAGIC = b"CISFSVF\0"
DIRECTORY_MAGIC = b"CISFSVD\0"
VERSION = 1
DIRECTORY_SIZE = 32
MARKER_SIZE = 32
NO_TAG = bytes(TAG_SIZE)  # what a slot that was never written has for a tag
MAX_HOLE_LEVEL = 62

_FILE = struct.Struct("<8sHB5s16s")
_DIRECTORY = struct.Struct("<8sH6s16s")
_MARKER = struct.Struct("<B15s16s")


@dataclass(frozen=True, slots=True)
class FileHeader:
    """The 32 bytes at the start of every encrypted file."""

    unit_size: int
    file_id: bytes

    def pack(self) -> bytes:
        """Return the header's 32 bytes."""
        log2 = self.unit_size.bit_length() - 1
        return _FILE.pack(FILE_MAGIC, VERSION, log2, bytes(5), self.file_id)

    def fields(self) -> bytes:
        """Return the 16 bytes before the id, which the file's keys are derived with."""
        return self.pack()[:16]

    @classmethod
    def parse(cls, data: bytes) -> FileHeader:
        """Read a header; FormatError or UnsupportedVersionError say what is wrong with it."""
        if len(data) < HEADER_SIZE:
            raise FormatError(f"file header truncated to {len(data)} bytes")
        magic, version, log2, reserved, file_id = _FILE.unpack_from(data)
        _check(magic, FILE_MAGIC, version, "file header")
        if not MIN_UNIT_SIZE <= 1 << log2 <= MAX_UNIT_SIZE:
            raise FormatError(f"file header damaged: unit size 2**{log2}")
        if any(reserved):
            raise FormatError("file header damaged: reserved bytes are not zero")
        return cls(unit_size=1 << log2, file_id=file_id)


def pack_directory(dir_id: bytes) -> bytes:
    """Return the 32 bytes of a directory's id file."""
    return _DIRECTORY.pack(DIRECTORY_MAGIC, VERSION, bytes(6), dir_id)


def parse_directory(data: bytes) -> bytes:
    """Return the 16-byte id in a directory's id file, or raise FormatError."""
    if len(data) != DIRECTORY_SIZE:
        raise FormatError(f"directory id is {len(data)} bytes instead of {DIRECTORY_SIZE}")
    magic, version, reserved, dir_id = _DIRECTORY.unpack(data)
    _check(magic, DIRECTORY_MAGIC, version, "directory id")
    if any(reserved):
        raise FormatError("directory id damaged: reserved bytes are not zero")
    return bytes(dir_id)


def pack_trailer(end_tag: bytes, length: int) -> bytes:
    """Return a trailer of `length` bytes (17 to 32): the end tag, then zeros."""
    return end_tag.ljust(length, b"\0")


def parse_trailer(data: bytes, length: int) -> bytes:
    """Return the end tag of a trailer that must have `length` bytes, or raise FormatError."""
    if len(data) != length:
        raise FormatError(f"trailer truncated to {len(data)} bytes")
    if any(data[TAG_SIZE:]):
        raise FormatError("trailer damaged: padding is not zero")
    return data[:TAG_SIZE]


def pack_marker(level: int, hole_tag: bytes) -> bytes:
    """Return the 32 bytes at the start of a hole of 2**level units."""
    return _MARKER.pack(level, bytes(15), hole_tag)


def parse_marker(data: bytes) -> tuple[int, bytes] | None:
    """Return (level, hole tag), or None for bytes that are no marker."""
    if len(data) != MARKER_SIZE:
        return None
    level, reserved, tag = _MARKER.unpack(data)
    if level > MAX_HOLE_LEVEL or any(reserved) or tag == NO_TAG:
        return None
    return level, tag


def _check(magic: bytes, expected: bytes, version: int, what: str) -> None:
    if magic != expected:
        raise FormatError(f"{what} damaged: bad magic")
    if version != VERSION:
        raise UnsupportedVersionError(
            f"{what} has version {version}; this cisfs reads version {VERSION}: upgrade cisfs"
        )
