"""Images with sealed layers in a file, between two stores; and files that somebody changed."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cisfs.cli.main import main
from cisfs.layer import admission, store
from cisfs.layer.eviction import evict
from cisfs.registry.layout import Layout
from cisfs.registry.manifest import Manifest
from cisfs.registry.source import PartSource
from cisfs.runtime.images import saving, tools
from tests.registry.conftest import Open
from tests.registry.harness.proxy import Proxy
from tests.registry.test_push_pull import CANARY, here, private, push  # noqa: F401 - a fixture

pytestmark = pytest.mark.usefixtures("here")

Files = dict[str, bytes]


@pytest.fixture
def saved(front: Proxy, here: Path, monkeypatch: pytest.MonkeyPatch) -> str:  # noqa: F811
    """An image, saved to app.tar with its base; and from here on another, empty store."""
    reference = f"{front.name}/team/app:1"
    assert push(reference) == 0
    assert main(["save", reference, "-o", "app.tar", "--with-base"]) == 0
    assert main(["save", reference, "-o", "small.tar"]) == 0
    monkeypatch.setattr(store, "local", lambda: here / "other store")
    return reference


def files(name: str = "app.tar") -> Files:
    with tarfile.open(name) as tar:
        return {each.name: tar.extractfile(each).read() for each in tar}  # type: ignore[union-attr]


def write(content: Files, name: str) -> None:
    with tarfile.open(name, "w") as tar:
        for path, data in content.items():
            member = tarfile.TarInfo(path)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def layers_here() -> list[Path]:
    return sorted(store.local().glob("sealed/*/*"))


def test_there_and_back(saved: str, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["load", "app.tar", "--public", "oci:public:app", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["image"], said["with_base"]) == (saved, True)
    (layer,) = said["layers"]
    assert layer["fetched"]
    assert Path(layer["path"]).read_bytes() == Path("private.cis").read_bytes()
    assert {each.name for each in layers_here()} == {"layer.cis", "source.json"}
    assert main(["verify", layer["identity"], "--key-file", "private.key"]) == 0
    layout = Layout.open(Path("public"))
    image = layout.manifest(layout.find("app"))
    assert isinstance(image, Manifest)
    assert f"{saved.rpartition(':')[0]}@{layer['identity']}" in image.annotations.values()
    base = Layout.open(Path("base"))
    before = base.manifest(base.find(None))
    assert isinstance(before, Manifest)
    assert [layout.read(each) for each in image.layers] == [base.read(x) for x in before.layers]
    capsys.readouterr()
    assert main(["load", "app.tar", "--json"]) == 0
    assert not json.loads(capsys.readouterr().out)["layers"][0]["fetched"]


def test_nothing_of_what_is_sealed_is_in_the_file_in_plain(saved: str) -> None:
    assert saved
    assert CANARY not in Path("app.tar").read_bytes()
    assert len(Path("small.tar").read_bytes()) < len(Path("app.tar").read_bytes()) - 500_000


def test_without_the_base_its_name_is_said(saved: str, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert main(["load", "small.tar"]) == 0
    assert f"its public image is not in small.tar: {saved}" in capsys.readouterr().out
    assert main(["load", "small.tar", "--public", "oci:public"]) == 2
    assert "save it again, with --with-base" in capsys.readouterr().err


@pytest.mark.usefixtures("saved")
def test_skopeo_takes_the_public_image_out_of_it() -> None:
    words = ["skopeo", "--insecure-policy", "inspect", "--raw"]
    (name,) = [
        each["annotations"]["org.opencontainers.image.ref.name"]
        for each in json.loads(files()["index.json"])["manifests"]
        if "org.opencontainers.image.ref.name" in each.get("annotations", {})
    ]
    done = subprocess.run([*words, f"oci-archive:app.tar:{name}"], capture_output=True, check=True)
    assert len(json.loads(done.stdout)["layers"]) == 2


@pytest.mark.usefixtures("saved")
def test_every_file_in_it_counts(capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever is altered or missing, nothing of it gets into the store."""
    whole = files()
    held = Layout.open(Path("base"))
    before = held.manifest(held.find(None))
    assert isinstance(before, Manifest)
    public = {f"blobs/{each.digest.replace(':', '/')}" for each in before.layers}
    empty = [name for name, data in whole.items() if data == b"{}"]
    for name in whole.keys() - public - set(empty) - {"oci-layout", "index.json"}:
        middle = len(whole[name]) // 2
        byte = bytes([whole[name][middle] ^ 1])
        for changed in (
            {**whole, name: whole[name][:middle] + byte + whole[name][middle + 1 :]},
            {**whole, name: whole[name][:-1]},
            {key: data for key, data in whole.items() if key != name},
        ):
            write(changed, "bad.tar")
            assert main(["load", "bad.tar"]) in (11, 22), name
            said = capsys.readouterr().err
            assert said.startswith("cisfs: ")
            assert said.count("\n") == 1
            assert not [each for each in layers_here() if each.name == "layer.cis"]


def index_with(whole: Files, change: Callable[[list[Any]], object]) -> Files:
    index = json.loads(whole["index.json"])
    change(index["manifests"])
    return {**whole, "index.json": json.dumps(index).encode()}


def unnamed(entries: list[Any]) -> None:
    for each in entries:
        each.get("annotations", {}).pop("org.opencontainers.image.ref.name", None)


def renamed(entries: list[Any]) -> None:
    for each in entries:
        if "org.opencontainers.image.ref.name" in each.get("annotations", {}):
            each["annotations"]["org.opencontainers.image.ref.name"] = "../../etc"


def other_identity(entries: list[Any]) -> None:
    for each in entries:
        if "dev.cisfs.identity" in each.get("annotations", {}):
            each["annotations"]["dev.cisfs.identity"] = f"sha256:{'0' * 64}"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (unnamed, "it names 0 images and not one"),
        (lambda entries: entries.append(dict(entries[0])), "it names 2 images and not one"),
        (renamed, "its image has no proper name"),
        (other_identity, "it does not hold the sealed layer sha256:"),
    ],
)
@pytest.mark.usefixtures("saved")
def test_an_index_that_says_something_else(
    change: Callable[[list[Any]], object], why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write(index_with(files(), change), "bad.tar")
    capsys.readouterr()
    assert main(["load", "bad.tar"]) == 11
    assert why in capsys.readouterr().err
    assert layers_here() == []


@pytest.mark.usefixtures("saved")
def test_a_file_that_was_cut_short(capsys: pytest.CaptureFixture[str]) -> None:
    data = Path("app.tar").read_bytes()
    for size in (0, 1, 511, 512, 1024, len(data) // 2, len(data) - 1024):
        Path("bad.tar").write_bytes(data[:size])
        assert main(["load", "bad.tar"]) == 11, size
        assert capsys.readouterr().err.count("\n") == 1
    assert layers_here() == []


def test_a_file_is_made_whole_or_not_at_all(front: Proxy) -> None:
    reference = f"{front.name}/team/app:1"
    assert push(reference) == 0
    assert main(["save", f"{front.name}/team/app:2", "-o", "app.tar"]) == 22
    assert not list(Path().glob("*app.tar*"))
    Path("app.tar").touch()
    assert main(["save", reference, "-o", "app.tar"]) == 2
    assert Path("app.tar").read_bytes() == b""


def test_key_slots_that_come_to_belong_elsewhere_meanwhile(
    front: Proxy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A registry answers as it likes each time."""
    reference = f"{front.name}/team/elsewhere:1"
    assert push(reference) == 0
    monkeypatch.setattr(saving, "layers_in", lambda _artifact: [])
    assert main(["save", reference, "-o", "app.tar"]) == 11
    assert "is not the layer that the registry has" in capsys.readouterr().err


def test_a_layer_that_changes_while_it_is_saved(
    front: Proxy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    reference = f"{front.name}/team/changing:1"
    assert push(reference) == 0

    class Changing(PartSource):
        def read(self, offset: int, size: int) -> bytes:
            return bytes(len(super().read(offset, size)))

    monkeypatch.setattr(saving, "PartSource", Changing)
    assert main(["save", reference, "-o", "app.tar"]) == 11
    assert "changed while it was read" in capsys.readouterr().err
    assert not Path("app.tar").exists()


def test_what_was_loaded_stays_within_no_limit(saved: str) -> None:
    """Where it is loaded there may be no network."""
    assert saved
    assert main(["load", "app.tar"]) == 0
    assert evict(store.local(), 0) == 0
    (path,) = store.local().glob("sealed/*/layer.cis")
    assert path.read_bytes() == Path("private.cis").read_bytes()


def test_the_engine_gets_a_tag_and_no_digest(
    saved: str, opened: Open, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    targets: list[str] = []
    monkeypatch.setattr(tools, "deliver", lambda _source, target, **_more: targets.append(target))
    host, _, name = saved.removesuffix(":1").partition("/")
    digest = opened(host, name).digest_at("1")
    assert main(["save", f"{saved}@{digest}", "-o", "both.tar", "--with-base"]) == 0
    assert main(["save", f"{host}/{name}@{digest}", "-o", "digest.tar", "--with-base"]) == 0
    for path in layers_here():
        path.unlink()
    assert main(["load", "both.tar", "--engine", "podman"]) == 0
    assert targets == [f"containers-storage:{saved}"]
    for path in layers_here():
        path.unlink()
    capsys.readouterr()
    assert main(["load", "digest.tar", "--engine", "docker"]) == 2
    assert "has no tag for docker" in capsys.readouterr().err
    assert layers_here() == []


def test_an_older_file_says_so(saved: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert saved
    assert main(["load", "app.tar"]) == 0
    (path,) = store.local().glob("sealed/*/layer.cis")
    assert main(["key", "add", str(path), "-r", "ann.key.pub", "--key-file", "private.key"]) == 0
    capsys.readouterr()
    assert main(["load", "app.tar"]) == 22
    assert "the file has older key slots (revision 0)" in capsys.readouterr().err


@pytest.mark.parametrize("from_environment", [False, True])
def test_the_policy_is_asked_about_the_name_in_the_file(
    saved: str, from_environment: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine runs it under that name, wherever the file came from."""
    host = saved.partition("/")[0]
    private("policy.toml", f'[[rule]]\nregistries = ["{host}/team"]\nallow = false\n'.encode())
    if from_environment:
        monkeypatch.setenv("CISFS_POLICY", "policy.toml")
    else:
        monkeypatch.setattr(admission, "FILE", Path("policy.toml"))
    assert main(["load", "app.tar"]) == 21
    assert layers_here() == []


def test_a_strict_default_lets_in_what_a_rule_allows(
    saved: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = saved.partition("/")[0]
    private("strict.toml", b"[default]\nallow = false\n")
    rule = f'[[rule]]\nregistries = ["{host}/team"]\nallow = true\n'
    private("policy.toml", f"[default]\nallow = false\n{rule}".encode())
    monkeypatch.setenv("CISFS_POLICY", "strict.toml")
    assert main(["load", "app.tar"]) == 21
    assert layers_here() == []
    monkeypatch.setenv("CISFS_POLICY", "policy.toml")
    assert main(["load", "app.tar"]) == 0
    assert layers_here() != []
