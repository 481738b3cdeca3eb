"""Content like that of real software, to judge compression by: the same in every run.

Words that recur as they do in text and in machine code, some rarely, with bytes between them that
do not.  gzip halves it in blocks of 64 KiB (2.3:1) and takes a third off blocks of 4 KiB (1.6:1);
what lies in /usr/lib compresses somewhat better.  Pure; any thread.
"""

from __future__ import annotations

import functools
import random

_SEED = 1619  # any constant
_POOL_SIZE = 16 << 20  # far more than a compressor looks back over
_WORDS = 6000
_WORD_SIZES = (3, 24)
_ZIPF = 1.2  # the n-th most frequent word is n to this power less frequent than the first
_BETWEEN = 6  # bytes
_BETWEEN_SHARE = 0.3


def software(drawn: bytes) -> bytes:
    """Return as many bytes of such content as were drawn at random, chosen by what was drawn."""
    pool = _pool()
    start = int.from_bytes(drawn[:8], "little") % (len(pool) - len(drawn))
    return pool[start : start + len(drawn)]


@functools.cache
def _pool() -> bytes:
    chance = random.Random(_SEED)
    words = [chance.randbytes(chance.randint(*_WORD_SIZES)) for _ in range(_WORDS)]
    frequencies = [(n + 1) ** -_ZIPF for n in range(_WORDS)]
    pool = bytearray()
    while len(pool) < _POOL_SIZE:
        for word in chance.choices(words, frequencies, k=10_000):
            pool += word
            if chance.random() < _BETWEEN_SHARE:
                pool += chance.randbytes(_BETWEEN)
    return bytes(pool)
