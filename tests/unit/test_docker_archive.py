"""What `docker save` writes, read as an image; and whatever else may be in a tar."""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cisfs.build.archive import Archive
from cisfs.build.opening import open_content, open_stream
from cisfs.errors import CisfsError, FormatError, UsageError
from cisfs.registry.layout import Layout
from cisfs.runtime.images.docker_archive import Chunks, from_archive
from cisfs.runtime.images.origin import Origin
from tests.unit.image_layers import Stored
from tests.unit.tars import file, link, tar

LAYERS = [tar(file(b"f", b"one")), tar(file(b"g", b"two" * 1000))]


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def config(*layers: bytes) -> bytes:
    return json.dumps({"rootfs": {"diff_ids": [digest(each) for each in layers]}}).encode()


def manifest(**changes: Any) -> bytes:
    entry = {"Config": "c.json", "RepoTags": ["app:1"], "Layers": ["0/layer.tar", "1/layer.tar"]}
    return json.dumps([{**entry, **changes}]).encode()


def saved(listed: bytes | None = None, document: bytes | None = None) -> bytes:
    return tar(
        *(file(b"%d/layer.tar" % n, each) for n, each in enumerate(LAYERS)),
        file(b"c.json", config(*LAYERS) if document is None else document),
        file(b"manifest.json", manifest() if listed is None else listed),
    )


def opened(data: bytes, scratch: Path, name: str | None = None) -> Origin:
    return from_archive(open_content(Stored(data), len(data), 1 << 24, scratch), "it", name)


@pytest.mark.parametrize("how", ["in place", "compressed", "streamed"])
def test_layers_are_found_by_their_order(tmp_path: Path, how: str) -> None:
    data = saved()
    archive: Archive
    if how == "streamed":
        pieces = (data[at : at + 700] for at in range(0, len(data), 700))
        archive = open_stream(Chunks(pieces), 1 << 24, tmp_path)
    else:
        data = gzip.compress(data) if how == "compressed" else data
        archive = open_content(Stored(data), len(data), 1 << 24, tmp_path)
    with from_archive(archive, "it", "app:1") as origin:
        assert origin.diff_ids == tuple(map(digest, LAYERS))
        for layer, wanted in zip(origin.layers, LAYERS, strict=True):
            held = layer.open(1 << 24, tmp_path)
            assert b"".join(held.rest()) == wanted
            layout = Layout.create(tmp_path / "layout")
            assert layout.read(layer.store(layout)) == wanted
            assert layer.store(layout).size == len(wanted)
            held.close()


def test_layers_may_be_links_and_compressed(tmp_path: Path) -> None:
    data = tar(
        file(b"./real/layer.tar", gzip.compress(LAYERS[0])),
        link(b"0/layer.tar", b"../real/layer.tar", b"2"),
        link(b"1/layer.tar", b"real/layer.tar"),
        file(b"c.json", config(LAYERS[0], LAYERS[0])),
        file(b"manifest.json", manifest()),
    )
    with opened(data, tmp_path) as origin:
        layout = Layout.create(tmp_path / "layout")
        assert [layout.read(each.store(layout)) for each in origin.layers] == [LAYERS[0]] * 2


@pytest.mark.parametrize("name", ["app:1", "docker.io/library/app:1"])
@pytest.mark.parametrize("tag", ["app:1", "docker.io/library/app:1"])
def test_docker_s_names_are_one_however_long(tmp_path: Path, name: str, tag: str) -> None:
    opened(saved(manifest(RepoTags=["///", tag])), tmp_path, name).undo.close()


def test_a_layer_of_another_content_is_not_stored(tmp_path: Path) -> None:
    with opened(saved(document=config(*reversed(LAYERS))), tmp_path) as origin:
        layout = Layout.create(tmp_path / "layout")
        with pytest.raises(FormatError, match="has another content than its name says"):
            origin.layers[0].store(layout)
        assert list((layout.path / "blobs/sha256").iterdir()) == []


TWO = json.dumps([{"RepoTags": None}, {"RepoTags": 1}]).encode()
WRONG: dict[str, tuple[bytes, type[CisfsError], str]] = {
    "no manifest": (tar(file(b"f")), FormatError, "it has no file 'manifest.json'"),
    "no JSON": (saved(b"{"), FormatError, "its manifest.json is not JSON"),
    "deep": (saved(b"[" * 100_000), FormatError, "its manifest.json is not JSON"),
    "no list": (saved(b"{}"), FormatError, "its manifest.json is no list of images"),
    "odd list": (saved(b"[1]"), FormatError, "its manifest.json is no list of images"),
    "no image": (saved(b"[]"), UsageError, "it has 0 images: name one"),
    "two images": (saved(TWO), UsageError, "it has 2 images: name one"),
    "no config": (saved(manifest(Config=1)), FormatError, "lists no configuration and layers"),
    "no layers": (saved(manifest(Layers=None)), FormatError, "lists no configuration and layers"),
    "odd layers": (saved(manifest(Layers=[1])), FormatError, "lists layers that are none"),
    "missing": (saved(manifest(Layers=["x"])), FormatError, "it has no file 'x'"),
    "few": (saved(manifest(Layers=["0/layer.tar"])), FormatError, "another number of layers"),
    "many": (
        saved(manifest(Layers=["0/layer.tar", "1/layer.tar", "0/layer.tar"])),
        FormatError,
        "another number of layers",
    ),
    "config": (saved(document=b"[]"), FormatError, "its configuration is no JSON object"),
    "no ids": (saved(document=b"{}"), FormatError, "the image's configuration does not list"),
    "loop": (
        tar(link(b"manifest.json", b"a", b"2"), link(b"a", b"manifest.json", b"2")),
        FormatError,
        "it has no file 'manifest.json'",
    ),
    "large": (saved(bytes(9 << 20)), FormatError, "'manifest.json' has more than"),
    "no tar": (b"x" * 600, FormatError, "not a tar"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_image_is_refused(tmp_path: Path, case: str) -> None:
    data, kind, why = WRONG[case]
    with pytest.raises(kind, match=f"^it: .*{why}"):
        opened(data, tmp_path)


def test_a_name_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"it has no image docker\.io/library/app:2"):
        opened(saved(), tmp_path, "app:2")


@given(st.recursive(st.none() | st.integers() | st.text(max_size=5) | st.just("c.json"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["Config", "Layers", "RepoTags", "rootfs", "diff_ids"]), inner
    )))  # fmt: skip
def test_any_manifest_and_configuration(value: object) -> None:
    said = json.dumps(value).encode()
    for data in (saved(said), saved(json.dumps([value]).encode()), saved(document=said)):
        for name in (None, "app:1"):
            try:
                opened(data, Path("/tmp"), name).undo.close()
            except CisfsError:
                pass


def test_an_error_in_the_midst_of_a_stream_is_said(tmp_path: Path) -> None:
    def failing() -> Iterator[bytes]:
        yield saved()[:3000]
        raise UsageError("the daemon went away")

    with pytest.raises(UsageError, match="the daemon went away"):
        from_archive(open_stream(Chunks(failing()), 1 << 24, tmp_path), "it", None)
