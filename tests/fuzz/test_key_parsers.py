"""Any bytes into what reads key slots, requests and answers give a value or one of our errors."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cisfs.errors import CisfsError
from cisfs.format.config import b64
from cisfs.keys import pkcs11, provider, transit

NUMBER = b64(b"\xf0" * 256).replace("+", "-").replace("/", "_").rstrip("=")
JWK = {"alg": "RSA-OAEP", "e": "AQAB", "kty": "RSA", "n": NUMBER}
BLOB = {"version": 0, "recipients": [{"version": 0, "blob": "eA==", "hash": "sha1"}]}
ANNOTATION = {"ciphertext": "vault:v1:eA==", "key": "layers", "mount": "transit"}
UNWRAP = {"op": "keyunwrap", "keyunwrapparams": {"dc": None, "annotation": "eA=="}}
WRAP = {
    "op": "keywrap",
    "keywrapparams": {"ec": {"Parameters": {"vault": ["eA=="]}}, "optsdata": "eA=="},
}
RESULT = {"keywrapresults": {"annotation": "eA=="}}
DOCUMENTS: list[object] = [JWK, BLOB, ANNOTATION, UNWRAP, WRAP, RESULT]

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.just("eA=="),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=5,
)


@pytest.fixture(autouse=True, scope="module")
def no_server() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("VAULT_ADDR", "BAO_ADDR"):
            patch.delenv(name, raising=False)
        yield


def parse(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    slot = {"type": "pkcs11", "recipient": text, "wrapped": b64(data)}
    for parser in (
        lambda: pkcs11.Pkcs11Recipient.from_stored(text),
        lambda: pkcs11._blobs_in(slot),
        lambda: pkcs11._blobs_in({**slot, "wrapped": text}),
        lambda: provider._result(data, "keywrapresults", "annotation", "x"),
        lambda: transit._annotation(data),
        lambda: transit._answer(data, "vault"),
        lambda: transit._answer(json.dumps(UNWRAP).replace("eA==", b64(data)).encode(), "vault"),
    ):
        try:
            parser()
        except CisfsError:
            pass


@given(st.binary())
def test_any_bytes(data: bytes) -> None:
    parse(data)


@given(st.data())
def test_any_value_in_any_place(data: st.DataObject) -> None:
    document = json.loads(json.dumps(data.draw(st.sampled_from(DOCUMENTS))))
    place = document
    while True:
        places = list(place) if isinstance(place, dict) else list(range(len(place)))
        key = data.draw(st.sampled_from(places))
        if not isinstance(place[key], (dict, list)) or data.draw(st.booleans()):
            break
        place = place[key]
    place[key] = data.draw(VALUES)
    parse(json.dumps(document).encode())


def test_what_is_fuzzed_is_right_before() -> None:
    pkcs11.Pkcs11Recipient.from_stored(json.dumps({**JWK, "n": NUMBER[:-1] + "9"}))
    pkcs11._blobs_in({"wrapped": b64(json.dumps(BLOB).encode())})
    transit._annotation(json.dumps(ANNOTATION).encode())
    assert provider._result(json.dumps(RESULT).encode(), "keywrapresults", "annotation", "x")
    with pytest.raises(CisfsError, match="VAULT_ADDR is not set"):
        transit._answer(json.dumps(WRAP).encode(), "vault")
