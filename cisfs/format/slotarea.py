"""The key slots of a sealed layer, as bytes: docs/FORMAT.md, section 10.

There is room for two copies.  The second is there only while the first is being changed, under a
mark that says so, and one of them is whole at every instant.

Knows no I/O and no keys: what a slot holds is for `cisfs.keys.slots`.  Pure functions of immutable
values; safe anywhere.
"""

from __future__ import annotations

import hashlib
import struct
from contextlib import suppress
from dataclasses import dataclass

from cisfs.errors import FormatError
from cisfs.format.config import SlotFields, b64, canonical, from_b64, load, parse_slots
from cisfs.format.sealed_geometry import HASH_SIZE, RESERVED_SIZE, SLOTS_SIZE
from cisfs.format.signatures import Signature, parse_signatures, signature_fields

MAGIC = b"CISFSKS\0"
MARK = b"CISFSKC\0".ljust(RESERVED_SIZE, b"\0")  # the key slots are being changed
MAX_REVISION = (1 << 53) - 1  # what every reader of JSON can hold
AREAS_SIZE = 2 * SLOTS_SIZE + RESERVED_SIZE  # both copies, and the mark

_AREA = struct.Struct("<8sI20s32s")
_CHECKSUM_OFFSET = 32
MAX_TEXT = SLOTS_SIZE - _AREA.size


@dataclass(frozen=True, slots=True)
class SlotText:
    """What a copy says.

    `mac` (32 bytes, HMAC-SHA-256) is of slots and revision, for whoever wraps another key for the
    same recipients; empty where no slot names a recipient and nothing was ever changed.
    `revision` counts the changes.  Each signature authenticates itself.
    """

    slots: tuple[SlotFields, ...]
    mac: bytes = b""
    signatures: tuple[Signature, ...] = ()
    revision: int = 0

    def body(self) -> bytes:
        """Return the bytes that the authentication code covers."""
        return canonical(self._authenticated())

    @property
    def needs_mac(self) -> bool:
        """Whether there has to be an authentication code."""
        return bool(self.revision) or any("recipient" in slot for slot in self.slots)

    def spelled(self) -> bytes:
        """Return the text: JSON in canonical form."""
        document = self._authenticated()
        if self.mac:
            document["mac"] = b64(self.mac)
        if self.signatures:
            document["signatures"] = signature_fields(self.signatures)
        return canonical(document)

    def pack(self) -> bytes:
        """Return a copy's bytes; ValueError if it is too long for one."""
        text = self.spelled()
        if len(text) > MAX_TEXT:
            raise ValueError(f"key slots of {len(text)} bytes; a layer has room for {MAX_TEXT}")
        area = _AREA.pack(MAGIC, len(text), b"", b"") + text.ljust(MAX_TEXT, b"\0")
        return area[:_CHECKSUM_OFFSET] + _checksum(area) + area[_AREA.size :]

    @classmethod
    def read(cls, text: bytes) -> SlotText:
        """Read the text; FormatError says what is wrong with it."""
        try:
            return _parsed(text)
        except FormatError as error:
            raise FormatError(f"key slots damaged: {error}") from None

    @classmethod
    def parse(cls, data: bytes) -> SlotText:
        """Read a copy; FormatError says what is wrong with it."""
        if len(data) != SLOTS_SIZE:
            raise FormatError(f"key slots truncated to {len(data)} bytes")
        magic, length, reserved, checksum = _AREA.unpack_from(data)
        if magic != MAGIC:
            raise FormatError("key slots damaged: bad magic")
        if checksum != _checksum(data):
            raise FormatError("key slots damaged: the checksum does not match")
        if any(reserved):
            raise FormatError("key slots damaged: reserved bytes are not zero")
        if length > MAX_TEXT:
            raise FormatError(f"key slots damaged: a text of {length} bytes")
        text, rest = data[_AREA.size : _AREA.size + length], data[_AREA.size + length :]
        if rest != bytes(len(rest)):
            raise FormatError("key slots damaged: padding is not zero")
        return cls.read(text)

    def _authenticated(self) -> dict[str, object]:
        document: dict[str, object] = {"slots": [dict(slot) for slot in self.slots]}
        if self.revision:
            document["revision"] = self.revision
        return document


@dataclass(frozen=True, slots=True)
class SlotAreas:
    """What is stored: the text that counts, and whether a change of it was not finished."""

    text: SlotText
    is_marked: bool = False

    @classmethod
    def parse(cls, data: bytes) -> SlotAreas:
        """Read both copies and the mark behind them, AREAS_SIZE bytes.

        Under the mark, a second copy that is whole was finished before the first was touched, so it
        counts; one that is not, never did.  FormatError if neither is whole.
        """
        if len(data) < SLOTS_SIZE:
            raise FormatError(f"key slots truncated to {len(data)} bytes")
        if len(data) != AREAS_SIZE:
            raise FormatError(f"reserved area truncated to {len(data) - SLOTS_SIZE} bytes")
        first, second = data[:SLOTS_SIZE], data[SLOTS_SIZE : 2 * SLOTS_SIZE]
        is_marked = data[2 * SLOTS_SIZE :] == MARK
        if is_marked:
            with suppress(FormatError):
                return cls(SlotText.parse(second), is_marked)
        elif data[SLOTS_SIZE:] != bytes(AREAS_SIZE - SLOTS_SIZE):
            raise FormatError("reserved area damaged: it is not zero")
        return cls(SlotText.parse(first), is_marked)


def _checksum(area: bytes) -> bytes:
    """SHA-256 of a copy with zeros in the checksum's place."""
    digest = hashlib.sha256(area[:_CHECKSUM_OFFSET] + bytes(HASH_SIZE))
    digest.update(memoryview(area)[_AREA.size :])
    return digest.digest()


def _parsed(text: bytes) -> SlotText:
    document = load(text)
    if canonical(document) != text:
        raise FormatError("it is not in canonical form")
    if not {"slots"} <= set(document) <= {"slots", "mac", "signatures", "revision"}:
        raise FormatError("it has other fields than slots, mac, signatures and revision")
    mac = from_b64(document["mac"], "mac") if "mac" in document else b""
    if "mac" in document and len(mac) != HASH_SIZE:
        raise FormatError(f"mac has {len(mac)} bytes instead of {HASH_SIZE}")
    return SlotText(
        parse_slots(document["slots"]),
        mac,
        parse_signatures(document["signatures"]) if "signatures" in document else (),
        _revision(document["revision"]) if "revision" in document else 0,
    )


def _revision(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= MAX_REVISION:
        raise FormatError("revision is not a number from 1 up")
    return value
