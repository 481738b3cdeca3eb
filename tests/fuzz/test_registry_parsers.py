"""Any bytes from a registry give a value or one of our errors, nothing else."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cisfs.format.said import repeatable
from cisfs.registry.challenge import parse_challenges
from cisfs.registry.descriptor import EMPTY, Descriptor
from cisfs.registry.documents import parse_object
from cisfs.registry.manifest import (
    DOCKER_LIST,
    OCI_INDEX,
    OCI_MANIFEST,
    Index,
    build_index,
    build_manifest,
    entries,
    parse,
)
from cisfs.registry.patience import retry_after
from cisfs.registry.reference import Reference
from tests.fuzz.test_parsers import JSON, MANY, value_or_our_error

LAYER = Descriptor.of(b"x", "application/x", annotations={"a": "b"})
MANIFEST = build_manifest(
    config=EMPTY, layers=[LAYER, LAYER], subject=LAYER, artifact_type="a/b", annotations={"a": "b"}
)
INDEX = build_index([MANIFEST.descriptor.as_json(), LAYER.as_json()], annotations={"a": "b"})
TYPES = st.sampled_from([None, OCI_MANIFEST, OCI_INDEX, DOCKER_LIST, "application/json"])


def judged(body: bytes, said: str | None) -> None:
    """What is taken can be written again, and is the same then."""
    found = parse(body, said)
    assert found.descriptor.size == len(body)
    assert parse(found.body, found.media_type) == found
    if isinstance(found, Index):
        again = build_index(entries(found), annotations=found.annotations)
        assert again.manifests == found.manifests


@MANY
@given(body=st.binary(max_size=300), said=TYPES)
def test_any_bytes(body: bytes, said: str | None) -> None:
    value_or_our_error(lambda: judged(body, said))


@MANY
@given(data=st.data(), said=TYPES)
@pytest.mark.parametrize("valid", [MANIFEST.body, INDEX.body])
def test_valid_bytes_that_were_altered(valid: bytes, data: st.DataObject, said: str | None) -> None:
    altered = bytearray(valid)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(altered)))
        altered[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    value_or_our_error(lambda: judged(bytes(altered), said))


@MANY
@given(data=st.data(), value=JSON, said=TYPES)
@pytest.mark.parametrize("valid", [MANIFEST.body, INDEX.body])
def test_any_member_of_any_type(
    valid: bytes,
    data: st.DataObject,
    value: object,
    said: str | None,
) -> None:
    document = json.loads(valid)
    at = document
    while True:
        name = data.draw(st.sampled_from(sorted(at) if isinstance(at, dict) else range(len(at))))
        if not isinstance(at[name], dict | list) or not at[name] or data.draw(st.booleans()):
            break
        at = at[name]
    at[name] = value
    body = json.dumps(document).encode()
    value_or_our_error(lambda: judged(body, said))


@MANY
@given(text=st.text(max_size=300))
def test_any_text(text: str) -> None:
    value_or_our_error(lambda: Reference.parse(text))
    assert all(each.scheme for each in parse_challenges(text))
    wait = retry_after(text)
    assert wait is None or wait >= 0
    assert repeatable(text).isprintable()
    value_or_our_error(lambda: parse_object(text.encode("utf-8", "surrogatepass"), "it"))


@MANY
@given(text=st.from_regex(r'\A(Bearer|Basic|,|=|"|\\|realm="?[a-z ]*"?| ){0,40}\Z'))
def test_what_looks_like_challenges(text: str) -> None:
    for each in parse_challenges(text):
        assert each.scheme == each.scheme.lower()


def test_headers_that_would_take_for_ever() -> None:
    """No part of a header is looked at more than a few times."""
    for text in (
        'a="' + "\\" * 100_000,
        "a" * 100_000,
        "a=" * 50_000,
        "a " * 50_000,
        '"' * 100_000,
    ):
        parse_challenges(text)
    many = "h.io/" + "a_" * 50_000
    value_or_our_error(lambda: Reference.parse(many))
