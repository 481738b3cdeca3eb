"""Records of what is being overwritten, as bytes: docs/FORMAT.md, section 7.

Knows neither the memory map they are kept in nor how a file is mended (`cisfs.layer`).
Pure functions of immutable values; safe anywhere.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from hmac import compare_digest

from blake3 import blake3

from cisfs.errors import FormatError, UnsupportedVersionError

MAGIC = b"CISFSVJ\0"
VERSION = 1
HEADER_SIZE = 64
RECORD_SIZE = 64
SLOTS = 511
FILE_SIZE = HEADER_SIZE + SLOTS * RECORD_SIZE  # 32 KiB
FREE = bytes(RECORD_SIZE)

_HEADER = struct.Struct("<8sH6s16s16s16s")
_RECORD = struct.Struct("<16sQQQQ")
_TAG_SIZE = RECORD_SIZE - _RECORD.size


@dataclass(frozen=True, slots=True)
class Record:
    """One file's units [first, end) are being rewritten, its size going from `old` to `new`."""

    file_id: bytes
    old_size: int
    new_size: int
    first: int
    end: int


def pack_header(journal_id: bytes, boot_id: bytes) -> bytes:
    """Return the 64 bytes at the start of a journal.

    `journal_id` is 16 fresh random bytes, `boot_id` the 16 of the running kernel.
    """
    return _HEADER.pack(MAGIC, VERSION, bytes(6), journal_id, boot_id, bytes(16))


def parse_header(data: bytes) -> tuple[bytes, bytes]:
    """Return (journal id, boot id), or raise FormatError or UnsupportedVersionError."""
    if len(data) < HEADER_SIZE:
        raise FormatError(f"journal truncated to {len(data)} bytes")
    magic, version, reserved, journal_id, boot_id, rest = _HEADER.unpack_from(data)
    if magic != MAGIC or any(reserved) or any(rest):
        raise FormatError("journal damaged: bad header")
    if version != VERSION:
        raise UnsupportedVersionError(f"journal has version {version}: upgrade cisfs")
    return journal_id, boot_id


def pack_record(key: bytes, journal_id: bytes, record: Record) -> bytes:
    """Return a record's 64 bytes, the last 16 of them keyed BLAKE3 of the rest."""
    body = _RECORD.pack(record.file_id, record.old_size, record.new_size, record.first, record.end)
    return body + blake3(journal_id + body, key=key).digest(_TAG_SIZE)


def parse_record(key: bytes, journal_id: bytes, data: bytes) -> Record | None:
    """Read a record; None for a free slot, a torn record or one that no key holder wrote.

    A record that was torn by a crash protects nothing: it is written whole before the data is
    touched.
    """
    if len(data) != RECORD_SIZE:
        return None
    body = data[: _RECORD.size]
    tag = blake3(journal_id + body, key=key).digest(_TAG_SIZE)
    if not compare_digest(tag, data[_RECORD.size :]):
        return None
    return Record(*_RECORD.unpack(body))
