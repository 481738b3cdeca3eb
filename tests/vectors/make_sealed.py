"""Made the files in tests/vectors/sealed-v1, once; kept to show how.

A vector, once committed, is never made again: it says what version 1 of the format is.  All is
derived by tests/vectors/reference_layer.py, which knows nothing of cisfs.

    python -m tests.vectors.make_sealed DIRECTORY

Every file is one scenario: "comment" says what it shows, bytes are in hex.  An image consists of
the 16-byte big-endian numbers from 1 on.  A layer is "stored" as pieces, each its offset and its
bytes, with zeros between them; the units of long ones are left out, and "sha256" is of it all.  A
refused layer is another file's ("of") with "patches" and a "size", and "refusal" is the name of the
error and words of its message.  "damaged" are the units of a layer that opens which must not be
read.
"""

from __future__ import annotations

import hashlib
import json
import struct
import sys
from pathlib import Path
from typing import Any

from tests.vectors import reference_layer as reference

LAYER_KEY, LAYER_ID = bytes(range(32)), bytes(range(100, 116))
KEY_FILE, PASSPHRASE = bytes(range(200, 232)), b"not a secret"
SALT, NONCE = b"salt of 16 bytes", b"nonce of 12b"
UNIT = 4096
Patches = list[tuple[int, bytes]]
Slots = list[dict[str, str | int]]


def main(target: Path) -> None:
    """Write every scenario into a directory that has none of them."""
    for name, scenario in {**layers(), **refused()}.items():
        path = target / f"{name}.json"
        if path.exists():
            sys.exit(f"{path} is there already: a vector is never made again")
        path.write_text(json.dumps(scenario, indent=1) + "\n", "ascii")


def image(size: int) -> bytes:
    """The image of that size."""
    return b"".join(number.to_bytes(16, "big") for number in range(1, size // 16 + 1))


def slot() -> dict[str, str | int]:
    """The key slot of nearly all of them."""
    return reference.key_file_slot(LAYER_KEY, LAYER_ID, KEY_FILE, SALT, NONCE)


def layers() -> dict[str, Any]:
    """Layers and what is stored."""
    others: Slots = [
        {"type": "tpm2", "blob": "of a kind to come"},
        reference.passphrase_slot(LAYER_KEY, LAYER_ID, PASSPHRASE, SALT[::-1], NONCE[::-1]),
        slot(),
    ]
    return {
        "layer-one-unit": layer("the smallest layer", UNIT, UNIT),
        "layer-three-units": layer("three whole units", UNIT, 3 * UNIT),
        "layer-short-unit": layer("the last unit is shorter", 4 * UNIT, 9 * UNIT),
        "layer-alone-and-short": layer("one unit, and not a whole one", 1 << 20, UNIT),
        "layer-full-block": layer("128 units: one full block is the top", UNIT, 128 * UNIT),
        "layer-two-levels": layer("129 units: two blocks, and a top", UNIT, 129 * UNIT),
        "layer-three-slots": {
            **layer("two slots open it, one is passed over", UNIT, UNIT, others),
            "passphrase": PASSPHRASE.hex(),
        },
    }


def layer(comment: str, unit_size: int, size: int, slots: Slots | None = None) -> dict[str, Any]:
    """A scenario of a layer; what is stored of a long one is left out but for the ends."""
    parts = reference.sealed(LAYER_KEY, LAYER_ID, image(size), unit_size, slots or [slot()])
    stored = parts.joined()
    pieces = [(0, parts.header), (4096, parts.slots.rstrip(b"\0"))]
    if size <= 16 * UNIT:
        pieces.append((131072, b"".join(parts.units)))
    at = 131072 + size
    for level in parts.levels:
        pieces.append((at, level.rstrip(b"\0")))
        at += len(level)
    return {
        "comment": comment,
        "layer key": LAYER_KEY.hex(),
        "layer id": LAYER_ID.hex(),
        "key file": KEY_FILE.hex(),
        "salt": SALT.hex(),
        "nonce": NONCE.hex(),
        "unit size": unit_size,
        "image size": size,
        "image sha256": hashlib.sha256(image(size)).hexdigest(),
        "identity": f"sha256:{hashlib.sha256(parts.header).hexdigest()}",
        "stored": [[offset, data.hex()] for offset, data in pieces],
        "size": len(stored),
        "sha256": hashlib.sha256(stored).hexdigest(),
    }


def refused() -> dict[str, Any]:
    """Layers that must not be opened, or not be read everywhere, and why."""
    base = reference.sealed(LAYER_KEY, LAYER_ID, image(3 * UNIT), UNIT, [slot()])
    good = base.joined()
    text = reference.spelled({"slots": [slot()]})
    tree = 131072 + 3 * UNIT

    def header(offset: int, new: bytes) -> Patches:
        """Another header, with a code that fits: only the format can be its fault."""
        body = good[:offset] + new + good[offset + len(new) : 4064]
        return [(0, reference.authenticated(LAYER_KEY, body))]

    def slots(new: bytes, length: int | None = None, reserved: bytes = b"") -> Patches:
        """Other key slots, with a checksum that fits."""
        area = bytearray(reference.slots_area(new))
        area[8:12] = struct.pack("<I", len(new) if length is None else length)
        area[12 : 12 + len(reserved)] = reserved
        area[32:64] = bytes(32)
        area[32:64] = hashlib.sha256(area).digest()
        return [(4096, bytes(area).rstrip(b"\0").ljust(64 + len(text), b"\0"))]

    damaged = "FormatError: key slots damaged: "
    altered = "IntegrityError: its header was altered by someone without the key"
    other = reference.sealed(LAYER_KEY, bytes(16), image(3 * UNIT), UNIT, [slot()])
    alien = reference.key_file_slot(LAYER_KEY, bytes(16), KEY_FILE, SALT, NONCE)
    scenarios: dict[str, tuple[str, Patches, str]] = {
        "magic": ("bad magic", [(0, b"X")], "NotAVaultError: is not a sealed layer"),
        "version": (
            "version 2",
            header(8, b"\2"),
            "UnsupportedVersionError: layer header has version 2; this cisfs reads version 1",
        ),
        "unit-size-small": (
            "units of 2 KiB",
            header(10, b"\13"),
            "FormatError: layer header damaged: unit size 2**11",
        ),
        "unit-size-large": (
            "units of 2 MiB",
            header(10, b"\25"),
            "FormatError: layer header damaged: unit size 2**21",
        ),
        "kind": (
            "an image of another kind",
            header(11, b"\2"),
            "FormatError: layer header damaged: unknown kind of image 2",
        ),
        "image-size-zero": (
            "no image",
            header(32, bytes(8)),
            "FormatError: layer header damaged: image size 0 is not a multiple of 4096",
        ),
        "image-size-odd": (
            "half a block",
            header(32, struct.pack("<Q", 3 * UNIT + 2048)),
            "FormatError: layer header damaged: image size 14336 is not a multiple of 4096",
        ),
        "image-size-huge": (
            "more than 2**56 bytes",
            header(32, struct.pack("<Q", (1 << 56) + 4096)),
            "FormatError: layer header damaged: image size 72057594037932032 is not",
        ),
        "image-size-other": (
            "a size that is not the stored one",
            header(32, struct.pack("<Q", 4 * UNIT)),
            "FormatError: cut off: it has 147456 bytes instead of 151552",
        ),
        **{
            f"reserved-{offset}": (
                f"byte {offset} is set, with a code that fits",
                header(offset, b"\1"),
                "FormatError: layer header damaged: reserved bytes are not zero",
            )
            for offset in (12, 40, 80, 4063)
        },
        "root": ("another root", [(48, bytes(32))], altered),
        "code": ("one bit of the code", [(4095, bytes([good[4095] ^ 128]))], altered),
        "header-of-other": (
            "the header of another layer under the same key",
            [(0, other.header)],
            "WrongKeyError: wrong key file",
        ),
        "slot-of-other": (
            "a key slot made for another layer id",
            slots(reference.spelled({"slots": [alien]})),
            "WrongKeyError: wrong key file",
        ),
        "slots-magic": ("bad magic", [(4096, b"X")], f"{damaged}bad magic"),
        "slots-checksum": (
            "a byte of padding is set",
            [(65535, b"\1")],
            f"{damaged}the checksum does not match",
        ),
        "slots-reserved": (
            "a reserved byte is set",
            slots(text, reserved=b"\1"),
            f"{damaged}reserved bytes are not zero",
        ),
        "slots-length": (
            "a text that is longer than the area",
            slots(text, length=61377),
            f"{damaged}a text of 61377 bytes",
        ),
        "slots-padding": (
            "a text that goes on after its end",
            slots(text, length=len(text) - 1),
            f"{damaged}padding is not zero",
        ),
        "slots-spelling": (
            "not the canonical form",
            slots(text.replace(b":", b": ", 1)),
            f"{damaged}it is not in canonical form",
        ),
        "slots-fields": (
            "a field that no version 1 has",
            slots(reference.spelled({"slots": [slot()], "more": 1})),
            f"{damaged}it has other fields than slots",
        ),
        "slots-none": (
            "no slot",
            slots(b'{"slots":[]}'),
            f"{damaged}slots is not a list of 1 to 256 key slots",
        ),
        "slots-field": (
            "a fraction",
            slots(b'{"slots":[{"type":"x","y":1.5}]}'),
            f"{damaged}a key slot has a field that is neither text nor number",
        ),
        "reserved-area": (
            "a byte of the reserved area is set",
            [(100000, b"\1")],
            "FormatError: reserved area damaged: it is not zero",
        ),
    }
    found = {
        name: refusal(comment, patches, len(good), words)
        for name, (comment, patches, words) in scenarios.items()
    }
    for name, comment, size, words in [
        ("empty", "no byte at all", 0, "NotAVaultError: is not a sealed layer"),
        ("header-cut", "half a header", 2048, "FormatError: layer header truncated to 2048 bytes"),
        ("slots-cut", "half of the key slots", 34816, "FormatError: key slots truncated to 30720"),
        ("reserved-cut", "no reserved area", 65536, "FormatError: reserved area truncated to 0"),
        (
            "cut-off",
            "the last byte is missing",
            len(good) - 1,
            "FormatError: cut off: it has 147455 bytes instead of 147456",
        ),
        (
            "appended",
            "a zero at the end",
            len(good) + 1,
            "FormatError: 1 bytes were appended to it",
        ),
    ]:
        found[name] = refusal(comment, [], size, words)
    found["key"] = {
        **refusal("another key file", [], len(good), "WrongKeyError: wrong key file"),
        "key file": bytes(32).hex(),
    }
    swapped: Patches = [(131072, base.units[1] + base.units[0])]
    flipped: Patches = [(131072 + 2 * UNIT - 1, bytes([good[131072 + 2 * UNIT - 1] ^ 1]))]
    for name, comment, patches, units in [
        ("unit", "the last bit of unit 1", flipped, [1]),
        ("units-swapped", "two units have changed places", swapped, [0, 1]),
        ("unit-zeroed", "unit 2 is zeros", [(131072 + 2 * UNIT, bytes(UNIT))], [2]),
        ("hash", "the hash of unit 0", [(tree, bytes(32))], [0, 1, 2]),
        ("tree-padding", "a byte after the hashes", [(tree + 4095, b"\1")], [0, 1, 2]),
    ]:
        found[name] = {**refusal(comment, patches, len(good), ""), "damaged": units}
    return {f"refused-{name}": scenario for name, scenario in found.items()}


def refusal(comment: str, patches: Patches, size: int, words: str) -> dict[str, Any]:
    """A scenario of an altered layer of three units."""
    return {
        "comment": comment,
        "of": "layer-three-units",
        "patches": [[offset, data.hex()] for offset, data in patches],
        "size": size,
        **({"refusal": words} if words else {}),
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
