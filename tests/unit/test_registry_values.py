"""Challenges, waits, documents and manifests as values."""

from __future__ import annotations

import datetime
import json
from email.utils import format_datetime

import pytest

from cisfs.errors import FormatError, UnreachableError
from cisfs.registry.challenge import Challenge, find, parse_challenges
from cisfs.registry.descriptor import EMPTY, Descriptor
from cisfs.registry.documents import parse_object
from cisfs.registry.manifest import (
    OCI_INDEX,
    OCI_MANIFEST,
    Index,
    Manifest,
    build_index,
    build_manifest,
    entries,
    parse,
)
from cisfs.registry.patience import Patience, Watch, retry_after

BEARER = 'Bearer realm="https://a/t?x=1",service="s, \\"q\\"",scope="repository:x:pull"'


def test_challenges() -> None:
    (one,) = parse_challenges(BEARER)
    expected = {"realm": "https://a/t?x=1", "service": 's, "q"', "scope": "repository:x:pull"}
    assert one == Challenge("bearer", expected)
    both = parse_challenges(f'BASIC realm="x", {BEARER}')
    assert [each.scheme for each in both] == ["basic", "bearer"]
    assert find(both, "bearer") == one
    assert find(both, "digest") is None
    assert parse_challenges(None) == parse_challenges("") == parse_challenges('="') == []


def test_waits_grow_to_a_limit() -> None:
    patience = Patience(longest_wait=10)
    for failures in (1, 2, 3, 50, 5000):
        wait = patience.wait(failures)
        assert 0 < wait <= 10
        assert wait <= 0.25 * 2.0 ** min(failures, 50)
    assert patience.wait(1, 4.0) == 4.0
    assert patience.wait(1, 3600.0) == 10


def test_retry_after() -> None:
    assert retry_after("0") == 0
    assert retry_after("120") == 120
    assert retry_after(None) is retry_after("") is retry_after("soon") is retry_after("-5") is None
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1)
    found = retry_after(format_datetime(later, usegmt=True))
    assert found is not None
    assert 3000 < found <= 3600
    assert retry_after("Wed, 21 Oct 2015 07:28:00 GMT") == 0


def test_who_creeps_is_noticed() -> None:
    watch = Watch(Patience(idle=10, slowest=100))
    watch.saw(1000, 10)
    watch.saw(1, 9)  # of the next ten seconds
    with pytest.raises(UnreachableError, match="too slow: 999 bytes in 10 s"):
        watch.saw(998, 1)


@pytest.mark.parametrize(
    "body",
    [b"", b"5", b"{", b'{"a":1,"a":1}', b'{"a":Infinity}', b'{"a":1e999}', b'{"a":"\\ud800"}'],
)
def test_objects_that_are_none(body: bytes) -> None:
    with pytest.raises(FormatError, match="the thing"):
        parse_object(body, "the thing")


def test_depth() -> None:
    def nested(levels: int) -> bytes:
        return b'{"a":' * levels + b"1" + b"}" * levels

    assert parse_object(nested(32), "it")
    with pytest.raises(FormatError, match="32 levels"):
        parse_object(nested(33), "it")


def test_manifests_round_trip() -> None:
    subject = Descriptor(OCI_MANIFEST, f"sha256:{'0' * 64}", 7, {"not": "kept"})
    layer = Descriptor.of(b"x", "application/x", annotations={"title": "ä"})
    made = build_manifest(
        config=EMPTY, layers=[layer], artifact_type="a/b", subject=subject, annotations={"c": "d"}
    )
    assert parse(made.body, OCI_MANIFEST) == made
    assert made.layers == (layer,)
    assert made.subject == Descriptor(OCI_MANIFEST, f"sha256:{'0' * 64}", 7)
    assert made.descriptor.artifact_type == "a/b"
    assert made.descriptor.annotations == {"c": "d"}
    assert isinstance(made, Manifest)
    same = build_manifest(
        config=EMPTY, layers=[layer], artifact_type="a/b", subject=subject, annotations={"c": "d"}
    )
    assert same.body == made.body
    index = build_index([{**made.descriptor.as_json(), "more": [1]}])
    assert parse(index.body, OCI_INDEX) == index
    assert isinstance(index, Index)
    assert entries(index) == [{**made.descriptor.as_json(), "more": [1]}]
    assert entries(index)[0] == json.loads(index.body)["manifests"][0]


def test_without_artifact_type_the_config_says_it() -> None:
    config = Descriptor.of(b"{}", "application/vnd.oci.image.config.v1+json")
    made = build_manifest(config=config, layers=[])
    assert made.descriptor.artifact_type == config.media_type


@pytest.mark.parametrize(
    "name", ["", "text", "text/", "/x", "a/b/c", "text/plain; charset=x", "ä/b", "a/b\n", "a/b c"]
)
def test_media_types_that_are_none(name: str) -> None:
    with pytest.raises(FormatError, match="media type"):
        Descriptor.parse({**EMPTY.as_json(), "mediaType": name}, "it")
