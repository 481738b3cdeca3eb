"""Cipher and tag alone, by unit size: AES-256-XTS with keyed BLAKE3 against AES-GMAC.

Uses `cryptography` and `blake3` in the way that cisfs.crypto does, one context and one update a
unit, but nothing of cisfs: the figures must not change with its code.  One thread.

    python -m benchmarks.crypto [--rounds N] [--no-save]
"""

from __future__ import annotations

import argparse
import os
import struct
import time
from collections.abc import Callable
from statistics import median

from blake3 import blake3
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from benchmarks.facts import machine
from benchmarks.results import append_markdown, markdown_table, section

UNIT_SIZES = [4 << 10, 8 << 10, 16 << 10, 32 << 10, 64 << 10, 128 << 10]
BYTES_PER_ROUND = 64 << 20

NOTE = (
    "Microseconds for one unit; then GB/s of decryption with its check.  GMAC needs a nonce that "
    "never repeats under a key, so a unit that may be rewritten needs 12 more random bytes on disk "
    "and its safety hangs on them (two tags under one nonce give the authentication key away); "
    "keyed BLAKE3 needs no nonce.  The time of drawing such a nonce is not counted."
)

Operation = Callable[[int], None]


def operations(size: int) -> dict[str, Operation]:
    """Return what is timed, by name; each does one unit of `size` bytes, given its number."""
    data, out = bytearray(os.urandom(size)), bytearray(size + 15)
    aes = algorithms.AES(os.urandom(64))
    tag_key, gcm = os.urandom(32), AESGCM(os.urandom(32))
    tweak, nonce, number = struct.Struct("<QQ"), struct.Struct("<QI"), struct.Struct("<Q")

    def encrypt(unit: int) -> None:
        Cipher(aes, modes.XTS(tweak.pack(unit, 0))).encryptor().update_into(data, out)

    def decrypt(unit: int) -> None:
        Cipher(aes, modes.XTS(tweak.pack(unit, 0))).decryptor().update_into(data, out)

    def blake3_tag(unit: int) -> None:
        hasher = blake3(data, key=tag_key)
        hasher.update(number.pack(unit))
        hasher.digest(16)

    def gmac_tag(unit: int) -> None:
        gcm.encrypt(nonce.pack(unit, 0), b"", data)

    return {
        "XTS encrypt": encrypt,
        "XTS decrypt": decrypt,
        "BLAKE3 tag": blake3_tag,
        "GMAC tag": gmac_tag,
    }


def seconds_per_unit(operation: Operation, units: int) -> float:
    """Time `units` calls and return the mean."""
    start = time.perf_counter()
    for unit in range(units):
        operation(unit)
    return (time.perf_counter() - start) / units


def row(size: int, rounds: int) -> list[str]:
    """Measure one unit size: the operations in turn, `rounds` times, the median of each."""
    timed = operations(size)
    samples: dict[str, list[float]] = {name: [] for name in timed}
    for _ in range(rounds):
        for name, operation in timed.items():
            samples[name].append(seconds_per_unit(operation, BYTES_PER_ROUND // size))
    cost = {name: median(values) for name, values in samples.items()}
    rates = [size / (cost["XTS decrypt"] + cost[f"{tag} tag"]) / 1e9 for tag in ("BLAKE3", "GMAC")]
    return [
        f"{size >> 10} KiB",
        *(f"{seconds * 1e6:.1f}" for seconds in cost.values()),
        *(f"{rate:.2f}" for rate in rates),
    ]


def main() -> None:
    """Measure, print, append."""
    parser = argparse.ArgumentParser(prog="benchmarks.crypto", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7, help="take the median of so many")
    parser.add_argument("--no-save", action="store_true", help="print only")
    args = parser.parse_args()

    header = ["unit", *(f"{name}, us" for name in operations(16)), "XTS + BLAKE3", "XTS + GMAC"]
    table = markdown_table(header, [row(size, args.rounds) for size in UNIT_SIZES])
    facts = machine()
    text = section(facts.pop("date"), facts, table, [NOTE])
    print(text)
    if not args.no_save:
        print("appended to", append_markdown("crypto", text))


if __name__ == "__main__":
    main()
