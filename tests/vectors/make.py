"""Made the files in tests/vectors/v1, once; kept to show how.

A vector, once committed, is never made again: it says what version 1 of the format is.  A change
of the format gets new vectors beside the old ones.

    python -m tests.vectors.make DIRECTORY

Every file is one scenario: "comment" says what it shows, "kind" what is to be done with it (see
tests/vectors/test_v1.py), bytes are in hex, and there is either what is to come out or "refusal",
the name of the error and how its message begins.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from cisfs.crypto.keys import SecretKey, VaultKeys, file_keys
from cisfs.crypto.names import NameCipher
from cisfs.crypto.units import UnitCipher
from cisfs.format import journal
from cisfs.format import names as spelling
from cisfs.format.config import VaultConfig
from cisfs.format.geometry import Geometry
from cisfs.format.header import FileHeader, pack_directory
from cisfs.keys.credentials import RawKey
from cisfs.keys.slots import new_slot
from cisfs.layer.directory import StoredNames
from tests.vectors import writing

MASTER = SecretKey(bytes(range(32)))
VAULT_ID = bytes(range(100, 116))
FILE_ID, DIR_ID, NONCE = b"file id 16 bytes", b"directory id 16b", b"nonce of 16 byte"
UNIT = 4096
SLOT = UNIT + 16
PLAIN = bytes(at * 31 % 251 for at in range(2 * UNIT + 100))


def main(target: Path) -> None:
    """Write every scenario into a directory that has none of them."""
    for name, scenario in {**files(), **refused_files(), **others(), **vault_files()}.items():
        path = target / f"{name}.json"
        if path.exists():
            sys.exit(f"{path} is there already: a vector is never made again")
        path.write_text(json.dumps(scenario, indent=1) + "\n", "ascii")


def common(comment: str, kind: str) -> dict[str, Any]:
    """What all scenarios have."""
    return {
        "comment": comment,
        "kind": kind,
        "master key": MASTER.reveal().hex(),
        "vault id": VAULT_ID.hex(),
    }


def files() -> dict[str, Any]:
    """Files, as a list of steps, and what is stored."""
    scenarios: dict[str, tuple[str, list[writing.Step]]] = {
        "file-empty": ("an empty file is a header and an end", []),
        "file-1-byte": ("one byte is padded to a block", [["write", 0, PLAIN[:1].hex()]]),
        "file-15-bytes": ("unaligned, one block", [["write", 0, PLAIN[:15].hex()]]),
        "file-16-bytes": ("aligned, one block", [["write", 0, PLAIN[:16].hex()]]),
        "file-17-bytes": ("unaligned, two blocks", [["write", 0, PLAIN[:17].hex()]]),
        "file-unit": ("exactly one unit", [["write", 0, PLAIN[:UNIT].hex()]]),
        "file-unit-and-1": ("a unit and a byte", [["write", 0, PLAIN[: UNIT + 1].hex()]]),
        "file-two-units": ("three slots, the last short", [["write", 0, PLAIN.hex()]]),
        "file-hole": ("a hole of one unit, then a part", [["truncate", UNIT + 7, ""]]),
        "file-hole-of-3": ("two markers: 2**1 and 2**0 units", [["truncate", 3 * UNIT, ""]]),
        "file-hole-filled": (
            "a unit written into a hole of four splits it in three",
            [["truncate", 4 * UNIT, ""], ["write", UNIT, PLAIN[:UNIT].hex()]],
        ),
        "file-hole-cut": (
            "a hole of four cut to three",
            [["truncate", 4 * UNIT, ""], ["truncate", 3 * UNIT, ""]],
        ),
        "file-cut": ("cut within a unit", [["write", 0, PLAIN.hex()], ["truncate", 100, ""]]),
    }
    return {
        name: {
            **common(comment, "file"),
            "file id": FILE_ID.hex(),
            "unit size": UNIT,
            "steps": steps,
            "plain": writing.plain(steps).hex(),
            "stored": writing.stored(MASTER, FILE_ID, UNIT, steps).hex(),
        }
        for name, (comment, steps) in scenarios.items()
    }


def refused_files() -> dict[str, Any]:
    """Stored files that must not be read, and why."""
    good = writing.stored(MASTER, FILE_ID, UNIT, [["write", 0, PLAIN.hex()]])
    hole = writing.stored(MASTER, FILE_ID, UNIT, [["truncate", 2 * UNIT, ""]])
    empty = writing.stored(MASTER, FILE_ID, UNIT, [])
    geometry = Geometry(UNIT)
    end = geometry.trailer_offset(len(PLAIN))
    units = [good[32 + SLOT * unit : 32 + SLOT * (unit + 1)] for unit in range(2)]
    cipher = UnitCipher(*file_keys(MASTER, FILE_ID, FileHeader(UNIT, FILE_ID).fields()))
    altered = "IntegrityError: the end of the file, or its header, was altered"

    def patched(data: bytes, offset: int, new: bytes) -> bytes:
        return data[:offset] + new + data[offset + len(new) :]

    scenarios = {
        "magic": ("bad magic", patched(good, 0, b"X"), "FormatError: file header damaged: bad mag"),
        "version": (
            "version 2",
            patched(good, 8, b"\2"),
            "UnsupportedVersionError: file header has version 2; this cisfs reads version 1",
        ),
        "unit-size": (
            "units of 8 KiB in a vault of 4",
            patched(good, 10, b"\15"),
            "IntegrityError: units of 8192 bytes in a vault with units of 4096",
        ),
        "reserved": (
            "a reserved byte is set",
            patched(good, 11, b"\1"),
            "FormatError: file header damaged: reserved bytes are not zero",
        ),
        "file-id": ("the id altered", patched(good, 16, b"\0"), altered),
        "header-truncated": ("31 bytes", good[:31], "FormatError: file header truncated to 31"),
        "header-alone": ("no end", good[:32], "FormatError: 32 bytes cannot be a whole"),
        "trailer-truncated": ("the last byte is missing", empty[:-1], "FormatError: 63 bytes"),
        "tail-missing": ("the last byte is missing", good[:-1], altered),
        "trailer-padding": ("padding is not zero", good[:-1] + b"\1", altered),
        "end-of-other-size": (
            "the end tag of a file one byte shorter",
            patched(good, end, cipher.end_tag(len(PLAIN) - 1)),
            altered,
        ),
        "cut-to-a-unit": (
            "the first unit with the old end tag",
            good[: 32 + SLOT] + good[end : end + 16] + bytes(16),
            altered,
        ),
        "units-swapped": (
            "the two full units have changed places",
            good[:32] + units[1] + units[0] + good[32 + 2 * SLOT :],
            "IntegrityError: unit 0 was altered",
        ),
        "tag": (
            "one bit of the tag of unit 1",
            patched(good, 32 + SLOT + UNIT, bytes([good[32 + SLOT + UNIT] ^ 1])),
            "IntegrityError: unit 1 was altered",
        ),
        "content": (
            "one bit of the last unit's content",
            patched(good, 32 + 2 * SLOT + 50, bytes([good[32 + 2 * SLOT + 50] ^ 128])),
            "IntegrityError: unit 2 was altered",
        ),
        "unit-zeroed": (
            "a zeroed unit is no hole",
            patched(good, 32, bytes(SLOT)),
            "IntegrityError: unit 0 was altered",
        ),
        "marker-zeroed": (
            "a hole without its marker",
            patched(hole, 32, bytes(32)),
            "IntegrityError: unit 0 was altered",
        ),
        "marker-level": (
            "a marker that claims another level",
            patched(hole, 32, b"\2"),
            "IntegrityError: unit 0 was altered",
        ),
        "empty": ("no byte at all", b"", "FormatError: file header truncated to 0 bytes"),
    }
    return {
        f"refused-file-{name}": {
            **common(comment, "refused file"),
            "unit size": UNIT,
            "stored": data.hex(),
            "refusal": refusal,
        }
        for name, (comment, data, refusal) in scenarios.items()
    }


def others() -> dict[str, Any]:
    """Directory ids, names, symlinks, attributes, journal records."""
    keys = VaultKeys.derive(MASTER, VAULT_ID)
    cipher = NameCipher(keys)
    names = StoredNames(cipher)
    found: dict[str, Any] = {}
    directory = pack_directory(DIR_ID)
    for name, comment, data, out in [
        ("directory-id", "a directory's id file", directory, DIR_ID.hex()),
        ("refused-directory-magic", "bad magic", b"X" + directory[1:], "FormatError: directory id"),
        ("refused-directory-short", "cut", directory[:31], "FormatError: directory id is 31 bytes"),
        (
            "refused-directory-version",
            "version 3",
            directory[:8] + b"\3" + directory[9:],
            "UnsupportedVersionError: directory id has version 3",
        ),
        (
            "refused-directory-reserved",
            "a reserved byte is set",
            directory[:10] + b"\1" + directory[11:],
            "FormatError: directory id damaged: reserved bytes",
        ),
    ]:
        key = "refusal" if name.startswith("refused") else "directory id"
        found[name] = {**common(comment, "directory id"), "stored": data.hex(), key: out}
    for name, comment, plain in [
        ("name-short", "an ordinary name", b"secret.txt"),
        ("name-bytes", "a name is bytes", b"\xff\n "),
        ("name-175", "the longest name that is stored in place", b"n" * 175),
        ("name-176", "the shortest that needs a file beside it", b"n" * 176),
        ("name-255", "the longest name", b"n" * 255),
    ]:
        stored = names.stored(DIR_ID, plain)
        spelled = spelling.encode(cipher.encrypt_name(DIR_ID, plain))
        found[name] = {
            **common(comment, "name"),
            "directory id": DIR_ID.hex(),
            "name": plain.hex(),
            "stored name": stored.decode("ascii"),
            "beside": {spelling.sidecar(stored).decode(): spelled.decode()}
            if spelling.is_long(stored)
            else {},
        }
    sealed = cipher.encrypt_target(NONCE, b"../target")
    found["symlink"] = {
        **common("a symlink's target", "symlink"),
        "nonce": NONCE.hex(),
        "target": b"../target".hex(),
        "stored": spelling.encode(NONCE + sealed).decode("ascii"),
    }
    found["xattr"] = {
        **common("an extended attribute of a file", "xattr"),
        "owner id": FILE_ID.hex(),
        "name": b"user.colour".hex(),
        "value": b"green".hex(),
        "stored name": "user.cisfs."
        + spelling.encode(cipher.xattr_id(FILE_ID, b"user.colour")).decode("ascii"),
        "stored": cipher.encrypt_xattr(
            FILE_ID, spelling.pack_xattr(b"user.colour", b"green")
        ).hex(),
    }
    record = journal.Record(FILE_ID, 5000, 9000, 1, 3)
    found["journal-record"] = {
        **common("a record in a journal", "journal record"),
        "journal id": NONCE.hex(),
        "record": [FILE_ID.hex(), 5000, 9000, 1, 3],
        "stored": journal.pack_record(keys.journal, NONCE, record).hex(),
    }
    return found


def vault_files() -> dict[str, Any]:
    """vault.json, with a key file's slot; and ones that must be refused."""
    key = bytes(range(200, 232))
    keys = VaultKeys.derive(MASTER, VAULT_ID)
    config = writing.authenticated(
        VaultConfig(VAULT_ID, UNIT, (new_slot(MASTER, RawKey(key), VAULT_ID),)), keys
    )
    good = config.pack()
    document = json.loads(good)

    def with_checksum(**changed: object) -> bytes:
        changing = {**document, **changed}
        del changing["checksum"]
        body = json.dumps(changing, sort_keys=True, separators=(",", ":")).encode("ascii")
        changing["checksum"] = hashlib.sha256(body).hexdigest()
        return json.dumps(changing).encode("ascii")

    scenarios: dict[str, tuple[str, bytes, bytes, str | None]] = {
        "vault": ("a key file opens the vault", good, key, None),
        "refused-vault-key": ("another key file", good, bytes(32), "WrongKeyError: wrong key file"),
        "refused-vault-version": (
            "version 2",
            with_checksum(version=2),
            key,
            "UnsupportedVersionError: vault.json has version 2",
        ),
        "refused-vault-checksum": (
            "the unit size altered",
            good.replace(b"4096", b"8192"),
            key,
            "FormatError: its checksum does not match its contents",
        ),
        "refused-vault-code": (
            "the unit size altered, with a checksum that fits",
            with_checksum(unit_size=8192),
            key,
            "IntegrityError: ",
        ),
        "refused-vault-truncated": (
            "cut",
            good[: len(good) // 2],
            key,
            "FormatError: it is not valid JSON",
        ),
        "refused-vault-field": (
            "a field that no version 1 has",
            with_checksum(more=1),
            key,
            "FormatError: fields missing or unknown: ['more']",
        ),
    }
    return {
        name: {
            **common(comment, "vault"),
            "vault.json": data.decode("ascii"),
            "key file": credential.hex(),
            **({"refusal": refusal} if refusal else {}),
        }
        for name, (comment, data, credential, refusal) in scenarios.items()
    }


if __name__ == "__main__":
    os.umask(0o022)
    main(Path(sys.argv[1]))
