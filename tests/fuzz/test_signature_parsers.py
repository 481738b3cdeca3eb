"""Any bytes for a file of signatures give a value or one of our errors."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from cisfs.crypto.signatures import is_valid
from cisfs.format.signatures import Signature, SignatureFile, parse_signatures, parse_signer
from tests.fuzz.test_parsers import JSON, MANY, value_or_our_error

IDENTITY = f"sha256:{'0a' * 32}"
FILE = SignatureFile(IDENTITY, (Signature(bytes(32), bytes(64)), Signature(b"x" * 32, bytes(64))))
NAMES = st.sampled_from(["format", "version", "identity", "signatures", "signer", "signature", "x"])


def parsed(data: bytes) -> None:
    """Parse; what is taken is packed to the same again, and any signature can be judged."""
    held = SignatureFile.parse(data)
    assert held.pack() == data
    for each in held.signatures:
        is_valid(each.signer, each.signature, IDENTITY)


def spelled(document: object) -> bytes:
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode("ascii") + b"\n"


@MANY
@given(data=st.binary(max_size=300))
def test_any_bytes(data: bytes) -> None:
    value_or_our_error(lambda: parsed(data))


@MANY
@given(data=st.data())
def test_valid_bytes_that_were_altered(data: st.DataObject) -> None:
    altered = bytearray(FILE.pack())
    for _ in range(data.draw(st.integers(1, 3))):
        at, length = data.draw(st.integers(0, len(altered))), data.draw(st.integers(0, 4))
        altered[at : at + length] = data.draw(st.binary(max_size=4))
    value_or_our_error(lambda: parsed(bytes(altered)))


@MANY
@given(name=NAMES, value=JSON)
def test_any_value_of_a_field(name: str, value: object) -> None:
    document = json.loads(FILE.pack())
    fields = {**document["signatures"][0], name: value}
    value_or_our_error(lambda: parsed(spelled({**document, name: value})))
    value_or_our_error(lambda: parse_signatures([fields]))
    value_or_our_error(lambda: parse_signatures(value))


@MANY
@given(text=st.one_of(st.text(), st.text().map(lambda text: f"ed25519:{text}")))
def test_any_text_of_a_signer(text: str) -> None:
    value_or_our_error(lambda: parse_signer(text))
