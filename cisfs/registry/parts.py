"""The parts of a bare layer at a registry, read as one.

Does not know what is in them: bytes are unchecked.  For several threads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cisfs.registry.descriptor import Descriptor
from cisfs.registry.repository import Repository


def placed(parts: Sequence[Descriptor]) -> Iterator[tuple[Descriptor, int]]:
    """Yield each part and where it begins."""
    offset = 0
    for part in parts:
        yield part, offset
        offset += part.size


def pieces(
    repository: Repository, parts: Sequence[Descriptor], start: int, stop: int
) -> Iterator[bytes]:
    """Yield bytes `start` to `stop` as they come, exactly so many: see `blobs.open_range`."""
    for part, offset in placed(parts):
        first, last = max(start - offset, 0), min(stop - offset, part.size)
        if first < last:
            with repository.open_range(part, first, last) as found:
                yield from found
