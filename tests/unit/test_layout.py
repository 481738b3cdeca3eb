"""An OCI image layout on disk: what is stored is found again, and nothing else is believed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cisfs.errors import FormatError, UsageError
from cisfs.registry import manifest as forms
from cisfs.registry.descriptor import EMPTY, EMPTY_JSON, EMPTY_TYPE, Descriptor
from cisfs.registry.layout import Layout

BLOB = "application/octet-stream"
CONFIG = "application/vnd.oci.image.config.v1+json"


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout.create(tmp_path / "layout")


def image(layout: Layout, content: bytes = b"layer") -> forms.Manifest:
    config = layout.put(b'{"rootfs":{"type":"layers","diff_ids":[]}}', CONFIG)
    made = forms.build_manifest(config=config, layers=[layout.put(content, BLOB)])
    layout.put_manifest(made)
    return made


def files(layout: Layout) -> set[str]:
    return {path.name for path in (layout.path / "blobs/sha256").iterdir()}


def test_a_blob_is_stored_under_its_digest_and_read_back(layout: Layout) -> None:
    pieces = [b"a" * (1 << 20), b"b" * 5, b""]
    made = layout.store(pieces, BLOB)
    assert made == Descriptor.of(b"".join(pieces), BLOB)
    assert b"".join(layout.pieces(made)) == b"".join(pieces)
    assert layout.has(made.digest)
    assert files(layout) == {made.digest.removeprefix("sha256:")}
    assert layout.read(layout.put(b"", BLOB)) == b""


@pytest.mark.parametrize("pieces", [[b"abd"], [b"ab"], [b"ab", b"cd"], []])
def test_what_is_not_as_expected_is_not_stored(layout: Layout, pieces: list[bytes]) -> None:
    with pytest.raises(FormatError, match=r"another content|longer than 3 bytes"):
        layout.store(pieces, BLOB, Descriptor.of(b"abc", BLOB))
    assert files(layout) == set()


def test_an_endless_blob_is_given_up(layout: Layout) -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield b"x"

    with pytest.raises(FormatError, match="longer than 3 bytes"):
        layout.store(endless(), BLOB, Descriptor.of(b"xxx", BLOB))


def test_a_blob_that_was_changed_is_not_handed_on(layout: Layout) -> None:
    content = bytes(3 << 20)
    made = layout.store([content], BLOB)
    layout.blob_path(made.digest).write_bytes(content[:-1] + b"x")
    passed: list[bytes] = []
    with pytest.raises(FormatError, match="has another content than its name says"):
        passed.extend(layout.pieces(made))
    assert sum(map(len, passed)) < len(content)
    layout.blob_path(made.digest).write_bytes(content[:-1])
    with pytest.raises(FormatError, match=f"is not a file of {len(content)} bytes"):
        layout.read(made, len(content))
    layout.blob_path(made.digest).unlink()
    with pytest.raises(FormatError, match="is missing"):
        list(layout.pieces(made))
    os.mkfifo(layout.blob_path(made.digest))
    with pytest.raises(FormatError, match="is not a file"):
        list(layout.pieces(made))


def test_small_things_are_small(layout: Layout) -> None:
    made = layout.put(b"abc", BLOB)
    with pytest.raises(FormatError, match="has more than 2 bytes"):
        layout.read(made, 2)


def test_no_digest_leads_out_of_the_directory(layout: Layout) -> None:
    with pytest.raises(FormatError, match="is no digest of sha256"):
        layout.blob_path("sha256:../../../etc/passwd")


def test_an_image_is_found_by_name_digest_or_as_the_only_one(layout: Layout) -> None:
    one = image(layout)
    layout.add(one.descriptor, "one")
    assert layout.find(None).digest == layout.find("one").digest == one.descriptor.digest
    other = image(layout, b"other")
    layout.add(other.descriptor, "other")
    assert layout.find(other.descriptor.digest).digest == other.descriptor.digest
    with pytest.raises(UsageError, match="has 2 images: name one"):
        layout.find(None)
    with pytest.raises(UsageError, match="has no image 'third'"):
        layout.find("third")
    layout.add(other.descriptor, "one")
    assert layout.find("one").digest == other.descriptor.digest
    assert len(layout.entries()) == 2
    assert layout.manifest(layout.find("one")) == other


def test_what_lost_its_name_can_be_removed_but_for_what_others_have(layout: Layout) -> None:
    first, second, nested = (image(layout, each) for each in (b"first", b"second", b"nested"))
    index = layout.put_manifest(forms.build_index([nested.descriptor.as_json()]))
    about = forms.build_manifest(
        config=layout.put(EMPTY_JSON, EMPTY_TYPE),
        layers=[layout.put(b"about", BLOB)],
        artifact_type="x/y",
        subject=index,
    )
    assert layout.add(first.descriptor, "a") == []
    layout.add(second.descriptor, "b")
    layout.add(second.descriptor, "c")
    layout.add(index, "d")
    layout.add(layout.put_manifest(about))
    layout.put(b"of somebody who is just storing it", BLOB)
    before = files(layout)
    replaced = layout.add(second.descriptor, "a")
    assert [each.digest for each in replaced] == [first.descriptor.digest]
    layout.remove_unreferred(replaced)
    gone = {first.descriptor.digest, first.layers[0].digest}  # its configuration others have, too
    assert before - files(layout) == {each.removeprefix("sha256:") for each in gone}
    for name, other in (("b", first), ("d", second)):
        image(layout, b"first")
        layout.remove_unreferred(layout.add(other.descriptor, name))
    assert {each.removeprefix("sha256:") for each in gone} <= files(layout)
    assert before <= files(layout), "an artifact refers to the index, another name to the image"
    layout.remove_unreferred([first.descriptor])
    assert before <= files(layout)


def test_nothing_is_removed_while_it_is_not_known_who_has_it(layout: Layout) -> None:
    first, second = image(layout, b"first"), image(layout, b"second")
    layout.add(first.descriptor, "a")
    layout.add(second.descriptor, "b")
    missing = Descriptor.of(b"was never fetched", forms.OCI_MANIFEST)
    layout.add(layout.put_manifest(forms.build_index([missing.as_json()])), "c")
    replaced = layout.add(second.descriptor, "a")
    layout.blob_path(second.descriptor.digest).write_bytes(b"damaged")
    before = files(layout)
    with pytest.raises(FormatError, match="is not a file of"):
        layout.remove_unreferred(replaced)
    assert files(layout) == before
    layout.blob_path(second.descriptor.digest).write_bytes(second.body)
    layout.remove_unreferred(replaced)
    assert len(files(layout)) == len(before) - 2


def test_artifacts_are_found_by_what_they_refer_to(layout: Layout) -> None:
    subject = image(layout)
    layout.add(subject.descriptor, "app")
    layout.put(EMPTY_JSON, EMPTY_TYPE)
    made = forms.build_manifest(
        config=EMPTY, layers=[], artifact_type="application/x", subject=subject.descriptor
    )
    layout.add(layout.put_manifest(made))
    layout.add(layout.put_manifest(made))
    assert [each.digest for each in layout.entries()] == [
        subject.descriptor.digest,
        made.descriptor.digest,
    ]
    found = layout.referrers(subject.descriptor.digest, "application/x")
    assert [each.digest for each in found] == [made.descriptor.digest]
    assert layout.referrers(subject.descriptor.digest, "application/y") == []
    assert layout.referrers(made.descriptor.digest, "application/x") == []
    assert layout.find(None).digest == subject.descriptor.digest


def test_what_others_wrote_into_the_index_stays(layout: Layout) -> None:
    theirs = {**image(layout, b"2").descriptor.as_json(), "data": "AAAA", "platform": {"os": "x"}}
    body = {"schemaVersion": 2, "manifests": [theirs], "annotations": {"a": "b"}}
    (layout.path / "index.json").write_text(json.dumps(body))
    layout.add(image(layout).descriptor, "app")
    after = json.loads((layout.path / "index.json").read_bytes())
    assert after["manifests"][0] == theirs
    assert after["annotations"] == {"a": "b"}


def test_only_layouts_are_opened_and_nothing_else_is_overwritten(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no OCI image layout: it has no file oci-layout"):
        Layout.open(tmp_path)
    (tmp_path / "oci-layout").write_text('{"imageLayoutVersion":"2.0.0"}')
    with pytest.raises(FormatError, match="of an unknown version"):
        Layout.open(tmp_path)
    (tmp_path / "oci-layout").write_text("[]")
    with pytest.raises(FormatError, match="is no JSON object"):
        Layout.open(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    (other / "file").touch()
    with pytest.raises(UsageError, match="is there already, and is no OCI image layout"):
        Layout.create(other)
    assert [each.name for each in other.iterdir()] == ["file"]


@pytest.mark.parametrize(
    "text", ["", "[]", "{", '{"schemaVersion":2,"manifests":1}', '{"schemaVersion":1}']
)
def test_a_bad_index_is_refused(layout: Layout, text: str) -> None:
    (layout.path / "index.json").write_text(text)
    with pytest.raises(FormatError, match=r"index\.json: "):
        layout.entries()


@pytest.mark.skipif(shutil.which("skopeo") is None, reason="skopeo is not installed")
def test_skopeo_reads_what_is_written(layout: Layout) -> None:
    layout.add(image(layout).descriptor, "app")
    said = subprocess.run(
        ["skopeo", "--insecure-policy", "inspect", "--raw", f"oci:{layout.path}:app"],
        capture_output=True,
        check=True,
    )
    assert forms.parse(said.stdout, None) == layout.manifest(layout.find("app"))
