"""What looks like ciphertext and what does not."""

from __future__ import annotations

import base64
import random
import sys
import zlib
from pathlib import Path

import pytest

from cisfs.crypto.units import XtsCipher
from cisfs.registry.samples import looks_random

_RANDOM = random.Random(7)
_NOISE = _RANDOM.randbytes(1 << 16)
_TEXT = b"".join(
    f"{n}: the quick brown fox has seen {n * n} of them\n".encode() for n in range(9999)
)


def ciphertext(plain: bytes) -> bytes:
    found = bytearray(len(plain))
    XtsCipher(_RANDOM.randbytes(64)).encrypt_into(3, plain, memoryview(found))
    return bytes(found)


@pytest.mark.parametrize("size", [4096, 65536, 1 << 20])
def test_ciphertext_looks_random(size: int) -> None:
    for plain in (bytes(size), _TEXT[:size].ljust(size, b"\0"), _RANDOM.randbytes(size)):
        assert looks_random(ciphertext(plain))


def test_random_bytes_always_do() -> None:
    assert all(looks_random(_RANDOM.randbytes(4096)) for _ in range(500))


@pytest.mark.parametrize(
    "plain",
    [
        bytes(65536),
        _TEXT[:4096],
        _TEXT[:65536],
        base64.b64encode(_RANDOM.randbytes(65536)),
        bytes(_RANDOM.sample(bytes(range(256)) * 256, 1 << 16)),  # too even to be by chance
        bytes(byte & (n % 200 and 255) for n, byte in enumerate(_NOISE)),
        b"".join(n.to_bytes(16, "big") for n in range(4096)),
        Path(sys.executable).resolve().read_bytes()[4096:69632],
        zlib.compress(b"".join(map(str.encode, map(str, range(400_000)))), 1)[:524288],
        _NOISE[:16] + _NOISE[: 1 << 16],  # as a cipher that does not mind the place would have it
        _NOISE[:3001] + _NOISE[: 1 << 15],
    ],
    ids=[
        *(
            "zeros",
            "short",
            "text",
            "base64",
            "even",
            "a few zeros",
            "numbers",
            "program",
            "deflated",
        ),
        *("a block twice", "a piece twice"),
    ],
)
def test_plaintext_does_not(plain: bytes) -> None:
    assert not looks_random(plain)
