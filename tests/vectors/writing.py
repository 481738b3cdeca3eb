"""Writes one encrypted file with a given id and keys, the way the layer does.

For making and checking vectors.  Works on anonymous files in memory; one at a time.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import replace
from hmac import digest as hmac_digest

from cisfs.crypto.keys import SecretKey, VaultKeys
from cisfs.format.config import VaultConfig
from cisfs.format.header import FileHeader
from cisfs.layer.file import EncryptedFile
from cisfs.layer.inflight import InFlight
from cisfs.layer.journal import Journal
from cisfs.layer.units import Buffers, Units

Step = Sequence[str | int]  # ["write", offset, hex] or ["truncate", size, ""]


def stored(master: SecretKey, file_id: bytes, unit_size: int, steps: Iterable[Step]) -> bytes:
    """The stored bytes of a file after these steps."""
    fd = os.memfd_create("vector")
    with tempfile.TemporaryDirectory() as directory:
        directory_fd = os.open(directory, os.O_RDONLY)
        journal = Journal(directory_fd, bytes(32), lambda: None)
        os.close(directory_fd)
    units = Units(fd, FileHeader(unit_size, file_id), master, Buffers())
    units.write_at(units.header.pack() + units.trailer(0), 0)
    in_flight = InFlight(journal, file_id, units.geometry, None)
    file = EncryptedFile(units, 0, in_flight)
    for what, number, data in steps:
        if what == "write":
            file.write(int(number), bytes.fromhex(str(data)))
        else:
            file.truncate(int(number))
    content = os.pread(fd, 1 << 24, 0)
    file.close()
    journal.close()
    return content


def plain(steps: Iterable[Step]) -> bytes:
    """What the file then holds."""
    held = bytearray()
    for what, number, data in steps:
        at = int(number)
        if what == "write":
            new = bytes.fromhex(str(data))
            held.extend(bytes(max(0, at - len(held))))
            held[at : at + len(new)] = new
        else:
            del held[at:]
            held.extend(bytes(at - len(held)))
    return bytes(held)


def authenticated(config: VaultConfig, keys: VaultKeys) -> VaultConfig:
    """The same configuration with its authentication code."""
    return replace(config, mac=hmac_digest(keys.header_mac, config.body(), "sha256"))
