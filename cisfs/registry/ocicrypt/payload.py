"""What containerd tells a stream processor about the layer it is given.

On descriptor 3, if that is a pipe: a protobuf `Any` (protobuf.dev, "Encoding") whose value is JSON,
`Payload` of containerd/imgcrypt: the layer's descriptor, and the parameters of whoever pulls, among
which ocicrypt puts private keys.  Does not know what is done with them.  One thread.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field

from cisfs.errors import FormatError, UsageError
from cisfs.format.config import from_b64
from cisfs.registry.descriptor import Descriptor
from cisfs.registry.documents import Json, parse_object

DESCRIPTOR = 3
MAX_SIZE = 8 << 20  # bytes; a manifest, and so all annotations of a layer, has 4 MiB at most
TYPE = "io.containerd.ocicrypt.v1.Payload"

_KEYS, _PASSWORDS = "privkeys", "privkeys-passwords"  # ocicrypt, config/constructors.go
_CHUNK = 1 << 16
_LENGTH_DELIMITED = 2
_SKIPPED = {1: 8, 5: 4}  # wire types of a fixed size, in bytes


@dataclass(frozen=True, slots=True)
class Payload:
    """A layer's descriptor, and private keys, each with its password or an empty one."""

    layer: Descriptor
    keys: tuple[tuple[bytes, bytes], ...] = field(repr=False)


def receive(fd: int = DESCRIPTOR) -> Payload:
    """Read a payload to its end.

    Raises UsageError if there is none, FormatError for one that is not what it should be, OSError.
    """
    try:
        there = stat.S_ISFIFO(os.fstat(fd).st_mode)
    except OSError:
        there = False
    if not there:
        raise UsageError(
            f"no payload on descriptor {fd}: the engine does not pass on the layer's annotations, "
            "in which its keys are (ctr of containerd 1.6 and Docker do not; the CRI plugin does)"
        )
    return parse(_read(fd))


def parse(data: bytes) -> Payload:
    """Return the payload in an `Any`.  Raises FormatError, which repeats none of it."""
    fields = _fields(data)
    kind = fields.get(1, b"").decode("utf-8", "replace").rpartition("/")[2]
    if kind != TYPE:
        raise FormatError(f"the payload is not of type {TYPE}")
    document = parse_object(fields.get(2, b""), "the payload")
    layer = document.get("Descriptor")
    if not isinstance(layer, dict):
        raise FormatError("the payload has no descriptor")
    described = Descriptor.parse(layer, "the payload's descriptor")
    return Payload(described, _keys(document.get("DecryptConfig")))


def _read(fd: int) -> bytes:
    data = bytearray()
    while chunk := os.read(fd, _CHUNK):
        data += chunk
        if len(data) > MAX_SIZE:
            raise FormatError(f"the payload has more than {MAX_SIZE} bytes")
    return bytes(data)


def _keys(config: Json) -> tuple[tuple[bytes, bytes], ...]:
    parameters = config.get("Parameters") if isinstance(config, dict) else None
    if not isinstance(parameters, dict):
        return ()
    keys, passwords = (_values(parameters, name) for name in (_KEYS, _PASSWORDS))
    passwords += [b""] * (len(keys) - len(passwords))
    return tuple(zip(keys, passwords, strict=False))


def _values(parameters: Mapping[str, Json], name: str) -> list[bytes]:
    values = parameters.get(name) or []
    if not isinstance(values, list):
        raise FormatError(f"the payload's {name} are not a list")
    return [from_b64(value or "", f"one of the payload's {name}") for value in values]


def _fields(message: bytes) -> dict[int, bytes]:
    """Return the fields of bytes; of several with one number the last, as protobuf has it."""
    found: dict[int, bytes] = {}
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        number, wire_type = tag >> 3, tag & 7
        if wire_type == 0:
            _, at = _varint(message, at)
            continue
        if wire_type == _LENGTH_DELIMITED:
            size, at = _varint(message, at)
            found[number] = message[at : at + size]
        elif wire_type in _SKIPPED:
            size = _SKIPPED[wire_type]
        else:
            raise FormatError("the payload is no protobuf message")
        at += size
    if at != len(message):
        raise FormatError("the payload is cut short")
    return found


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """Return the number at `at`, and where it ends."""
    value = 0
    for shift in range(0, 64, 7):
        if at >= len(message):
            raise FormatError("the payload is cut short")
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise FormatError("the payload has a number without end")
