"""Samples of what a registry has, from random places, and whether they look like ciphertext.

What they show: a sample of a sealed layer is what its identity vouches for, by the hash tree, and
there is nothing in it that plaintext has.  What they cannot: tell it from well compressed or random
data, and what is between the samples.  Knows no keys.  One thread.
"""

from __future__ import annotations

import random
import tempfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from cisfs.crypto.hashes import unit_hash
from cisfs.errors import IntegrityError, WrongContentError
from cisfs.format.sealed import LayerHeader
from cisfs.format.sealed_geometry import TREE_BLOCK_SIZE, LayerGeometry
from cisfs.layer.hashtree import HashTree
from cisfs.registry.descriptor import Descriptor
from cisfs.registry.parts import pieces
from cisfs.registry.repository import Repository

COUNT = 8  # samples of a blob
_SIZE = 1 << 16  # bytes of one, where it has no units
_MOST = 1 << 21  # bytes of all samples of a blob, unless they are two
_ENOUGH = 4096  # bytes; of fewer there is nothing to be told
_BLOCK = 16  # bytes of AES's: equal ones would lie below an equal key and place
_FREE = 255  # degrees of freedom of bytes
_LIMIT = 7.0  # standard deviations: random bytes pass it once in 10**11 samples


@dataclass(frozen=True, slots=True)
class Samples:
    """What was seen; `size` in bytes of all.

    `vouched`: each was what the layer's identity vouches for.  `random`: whether they look like
    ciphertext, None for too few bytes to tell.
    """

    count: int
    size: int
    vouched: bool
    random: bool | None


def of_sealed(repository: Repository, parts: Sequence[Descriptor], header: LayerHeader) -> Samples:
    """Fetch units of a sealed layer; `header` has been checked against its identity.

    Raises WrongContentError for a unit that is not of the layer, RegistryError.
    """
    geometry = header.geometry
    most = max(2, min(COUNT, _MOST // geometry.unit_size))
    units = _some(range(geometry.unit_count), most)
    found = []
    with tempfile.TemporaryFile() as file:  # of hashes; with a hole for whatever is not needed
        for block in _blocks(geometry, units):
            at = geometry.block_offset(block)
            file.seek(at)
            file.write(_fetch(repository, parts, at, TREE_BLOCK_SIZE))
        file.flush()
        tree = HashTree(file.fileno(), geometry, header.root)
        for unit in units:
            at, size = geometry.unit_offset(unit), geometry.unit_length(unit)
            found.append(_fetch(repository, parts, at, size))
            _check(tree, unit, found[-1], f"{repository.name}: layer {header.identity}")
    return _judged(found, vouched=True)


def of_blob(repository: Repository, blob: Descriptor) -> Samples:
    """Fetch parts of a blob that has no hash tree: the registry may have sent anything.

    Raises RegistryError.
    """
    places = range(-(-blob.size // _SIZE))
    starts = [place * _SIZE for place in _some(places, COUNT)]
    sizes = [min(_SIZE, blob.size - start) for start in starts]
    pairs = zip(starts, sizes, strict=True)
    return _judged([_fetch(repository, [blob], *pair) for pair in pairs], vouched=False)


def looks_random(data: bytes) -> bool:
    """Tell whether bytes have nothing by which plaintext gives itself away.

    All bytes are about as frequent (chi-squared, by Wilson and Hilferty's approximation), no block
    occurs twice, and deflate finds nothing to save.
    """
    counts, expected = Counter(data), len(data) / 256
    squared = sum((counts[byte] - expected) ** 2 for byte in range(256)) / expected
    spread = 2 / (9 * _FREE)
    deviation = ((squared / _FREE) ** (1 / 3) - (1 - spread)) / spread**0.5
    blocks = [data[at : at + _BLOCK] for at in range(0, len(data) - _BLOCK + 1, _BLOCK)]
    return (
        abs(deviation) < _LIMIT
        and len(set(blocks)) == len(blocks)
        and len(zlib.compress(data)) >= len(data)
    )


def _judged(found: Iterable[bytes], *, vouched: bool) -> Samples:
    samples = list(found)
    size = sum(map(len, samples))
    random_ones = None
    if size >= _ENOUGH:
        # Together they tell the most; one in clear among many would be lost in that.
        large = [each for each in samples if len(each) >= _ENOUGH]
        random_ones = all(map(looks_random, [b"".join(samples), *large]))
    return Samples(len(samples), size, vouched, random_ones)


def _check(tree: HashTree, unit: int, cipher: bytes, where: str) -> None:
    try:
        right = tree.unit_hash(unit) == unit_hash(cipher)
    except IntegrityError as error:
        raise WrongContentError(f"{where}: {error}") from None
    if not right:
        raise WrongContentError(f"{where}: unit {unit} was altered")


def _some(places: range, most: int) -> list[int]:
    return sorted(random.SystemRandom().sample(places, min(most, len(places))))


def _blocks(geometry: LayerGeometry, units: Iterable[int]) -> list[int]:
    """Return the blocks of the hash tree that some units are checked by."""
    return sorted({block for unit in units for block in _above(geometry, unit)})


def _above(geometry: LayerGeometry, unit: int) -> Iterator[int]:
    block = geometry.hash_of_unit(unit)[0]
    while True:
        yield block
        place = geometry.hash_of_block(block)
        if place is None:
            return
        block = place[0]


def _fetch(repository: Repository, parts: Sequence[Descriptor], at: int, size: int) -> bytes:
    return b"".join(pieces(repository, parts, at, at + size))
