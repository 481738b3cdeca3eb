"""Any bytes as options, packets or a payload give a value or one of our errors, nothing else."""

from __future__ import annotations

import gzip
import io
import json
import os

from hypothesis import given, settings
from hypothesis import strategies as st

from cisfs.crypto.keys import SecretKey
from cisfs.registry.descriptor import Descriptor
from cisfs.registry.ocicrypt.layers import decrypt_layer
from cisfs.registry.ocicrypt.options import PrivateOptions, PublicOptions
from cisfs.registry.ocicrypt.payload import parse
from cisfs.registry.ocicrypt.unpacking import unpacked_digest
from tests.fuzz.test_parsers import Parser, value_or_our_error
from tests.system.ocicrypt import KEYS, PUBLIC_OPTIONS
from tests.unit.test_ocicrypt_layers import GOOD, MINE, TAR
from tests.unit.test_ocicrypt_payload import payload

DIGEST = f"sha256:{'a' * 64}"
ANNOTATIONS = json.dumps(dict(GOOD.descriptor().annotations)).encode()


def annotated(data: bytes) -> object:
    """Open a layer whose annotations are what JSON there is in `data`."""
    try:
        found = json.loads(data)
    except ValueError:
        return None
    if not isinstance(found, dict) or not all(isinstance(each, str) for each in found.values()):
        return None
    descriptor = Descriptor.of(GOOD.blob, TAR, annotations=found)
    return _opened(descriptor, GOOD.blob)


def packet(data: bytes) -> object:
    """Open it where `data` is the packet."""
    options = GOOD.descriptor().annotations[PUBLIC_OPTIONS]
    return annotated(json.dumps({KEYS: data.decode("latin-1"), PUBLIC_OPTIONS: options}).encode())


def ciphertext(data: bytes) -> object:
    return _opened(GOOD.descriptor(), data)


def _opened(descriptor: Descriptor, data: bytes) -> object:
    fd = os.memfd_create("ciphertext")
    try:
        os.write(fd, data)
        with decrypt_layer(descriptor, fd, [MINE]) as layer:
            return b"".join(layer.pieces())
    finally:
        os.close(fd)


PACKET = GOOD.descriptor().annotations[KEYS]
GZIPPED = gzip.compress(b"words", mtime=0)
PARSERS: dict[str, Parser] = {
    "public options": (PublicOptions.parse, PublicOptions(bytes(32), bytes(16)).pack()),
    "private options": (
        PrivateOptions.parse,
        PrivateOptions(SecretKey(bytes(32)), DIGEST, bytes(16)).pack(),
    ),
    "annotations": (annotated, ANNOTATIONS),
    "packet": (packet, PACKET.encode()),
    "ciphertext": (ciphertext, GOOD.blob),
    "payload": (parse, payload({"privkeys": ["AA=="]})),
    "gzip": (lambda data: unpacked_digest(io.BytesIO(data), "+gzip", 1 << 20), GZIPPED),
}


MANY = settings(max_examples=60)


@MANY
@given(st.dictionaries(st.text(max_size=10), st.text(max_size=30), max_size=3))
def test_any_annotations(found: dict[str, str]) -> None:
    named = {KEYS.removesuffix("jwe") + name: value for name, value in found.items()}
    options = {PUBLIC_OPTIONS: GOOD.descriptor().annotations[PUBLIC_OPTIONS]}
    value_or_our_error(lambda: annotated(json.dumps(named | options).encode()))
