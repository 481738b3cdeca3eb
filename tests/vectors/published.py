"""Reads the published vectors that the package cryptography-vectors carries.

Knows their file format (NIST CAVP responses and their kin) and none of the ciphers.  Reads each
file when asked.
"""

from __future__ import annotations

from collections.abc import Iterator

import cryptography_vectors


def records(path: str) -> Iterator[dict[str, str]]:
    """Yield the records of a file: `NAME = value` lines.

    Names are in lower case; a record begins with the first of its names that comes again.
    """
    record: dict[str, str] = {}
    with cryptography_vectors.open_vector_file(path, "r") as file:
        for line in file:
            if "=" not in line or line.startswith("#"):
                continue
            name, value = (part.strip() for part in line.split("=", 1))
            if name.lower() in record:
                yield record
                record = {}
            record[name.lower()] = value
    yield record
