"""Images with sealed layers, to a registry and back, as the commands do it."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import random
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest

from cisfs.build.progress import Progress
from cisfs.cli.main import main
from cisfs.errors import NotAVaultError, NotFoundError, UntrustedError
from cisfs.format.sealed import base_of, check_base
from cisfs.keys.slots import slot_id
from cisfs.layer import admission, keyslots, lazy, store
from cisfs.layer.opening import describe, master_key, open_layer
from cisfs.layer.origin import Origin
from cisfs.layer.sealed_file import stored
from cisfs.layer.sealing import StoredImage, seal_image
from cisfs.registry import artifacts, attach
from cisfs.registry import image as images
from cisfs.registry.artifacts import keys_tag
from cisfs.registry.documents import Json
from cisfs.registry.found import find_keys, find_layer
from cisfs.registry.layout import Layout
from cisfs.registry.manifest import Manifest, build_manifest, dump
from cisfs.registry.repository import Repository
from tests.registry.conftest import Open
from tests.registry.harness.debian import DebianRegistry
from tests.registry.harness.faults import Answer, Fault, RandomCuts, Rule
from tests.registry.harness.proxy import Proxy
from tests.unit import layers
from tests.unit.vaults import KEY

MIB = 1 << 20
CANARY = b"the canary sings"
POLICY = Path("policy.toml")
IMAGE = (CANARY + layers.image(8 * MIB))[: 8 * MIB]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with a base image, a sealed layer, keys, and a store of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CISFS_PASSPHRASE_FILE", raising=False)
    monkeypatch.setattr("cisfs.layer.unlocked.find", lambda _path: None)
    monkeypatch.setattr("cisfs.layer.unlocked.ready", lambda: ())
    monkeypatch.setattr(store, "local", lambda: tmp_path / "store")
    make_base(tmp_path / "base", "1")
    layers.seal(tmp_path / "private.cis", IMAGE)
    private("private.key", KEY.secret)
    assert main(["keygen", "-o", "ann.key"]) == 0
    return tmp_path


def private(name: str, content: bytes) -> None:
    path = Path(name)
    path.touch(0o600)
    path.write_bytes(content)


def make_base(directory: Path, name: str, seed: int = 0) -> list[str]:
    """A public image of two layers; returns its diff_ids."""
    layout = Layout.create(directory)
    blobs, ids = [], []
    for number in range(2):
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w") as tar:
            info = tarfile.TarInfo(f"public{number}")
            content = random.Random(number + seed).randbytes(300_000)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        ids.append(f"sha256:{hashlib.sha256(packed.getvalue()).hexdigest()}")
        media_type = "application/vnd.oci.image.layer.v1.tar"
        blobs.append(layout.put(packed.getvalue(), media_type))
    config: dict[str, Json] = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Env": ["PATH=/bin", "CISFS_LAYERS=old"], "Labels": {"a": "b"}},
        "rootfs": {"type": "layers", "diff_ids": [*ids]},
    }
    described = layout.put(dump(config), images.CONFIG_TYPE)
    layout.add(layout.put_manifest(build_manifest(config=described, layers=blobs)), name)
    return ids


def push(reference: str, *words: str) -> int:
    base = ["--base", "oci:base:1", "--layer", "private.cis"]
    return main(["push", reference, *base, *words])


@pytest.mark.usefixtures("here")
def test_there_and_back(front: Proxy, capsys: pytest.CaptureFixture[str], opened: Open) -> None:
    reference = f"{front.name}/team/app:1"
    assert push(reference, "--json") == 0
    said = json.loads(capsys.readouterr().out)
    (identity,) = said["layers"]
    repository = opened(front.name, "team/app")
    config = config_of(repository, "1")
    named = f"{front.name}/team/app@{identity}"
    assert config["config"] == {
        "Env": ["PATH=/bin", f"CISFS_LAYERS={named}"],
        "Labels": {"a": "b", "dev.cisfs.layers": named},
    }
    assert main(["pull", reference, "--json"]) == 0
    (pulled,) = json.loads(capsys.readouterr().out)["layers"]
    assert pulled["fetched"]
    assert Path(pulled["path"]).read_bytes() == Path("private.cis").read_bytes()
    assert store.resolve(named) == Path(pulled["path"])
    assert main(["verify", named, "--key-file", "private.key"]) == 0
    assert main(["pull", reference, "--json"]) == 0
    said = capsys.readouterr().out
    (again,) = json.loads(said[said.index("{") :])["layers"]
    assert not again["fetched"]


def config_of(repository: Repository, tag: str) -> dict[str, object]:
    manifest = repository.manifest(tag)
    assert isinstance(manifest, Manifest)
    config: dict[str, object] = json.loads(repository.read_blob(manifest.config, 1 << 20))
    return config


@pytest.mark.usefixtures("here")
def test_nothing_in_plain_reaches_the_registry(debian: DebianRegistry, front: Proxy) -> None:
    assert push(f"{front.name}/plain/app:1") == 0
    stored = [path for path in debian.storage.rglob("*") if path.is_file()]
    assert any(path.stat().st_size > 8 * MIB for path in stored)
    assert not any(CANARY in path.read_bytes() for path in stored)


@pytest.mark.usefixtures("here")
def test_what_is_there_is_not_sent_again(front: Proxy) -> None:
    assert push(f"{front.name}/again/app:1") == 0
    before = front.received
    assert push(f"{front.name}/again/app:2") == 0
    assert front.received - before < 32_000


@pytest.mark.usefixtures("here")
def test_recipients_come_and_go_without_the_data(
    front: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In as many parts as 1 GiB has, of which the manifest tells."""
    monkeypatch.setattr(artifacts, "PART", MIB // 8)
    reference = f"{front.name}/keys/app:1"
    assert push(reference) == 0
    for words in (
        ["add", f"docker://{reference}", "-r", "ann.key.pub", "--key-file", "private.key"],
        ["remove", f"docker://{reference}", slot_of(0), "-i", "ann.key"],
    ):
        before = front.received + front.sent
        assert main(["key", *words]) == 0
        assert front.received + front.sent - before < 64 * 1024
    assert main(["pull", reference]) == 0
    (path,) = (store.local() / "sealed").glob("*/layer.cis")
    assert main(["verify", str(path), "-i", "ann.key"]) == 0
    assert main(["verify", str(path), "--key-file", "private.key"]) == 12


def slot_of(number: int) -> str:
    return slot_id(keyslots.slots(Path("private.cis"))[number])


@pytest.mark.usefixtures("here")
def test_a_push_does_not_undo_what_became_of_key_slots_there(
    front: Proxy, capsys: pytest.CaptureFixture[str], opened: Open
) -> None:
    reference = f"{front.name}/later/app"
    assert push(f"{reference}:1") == 0
    key = ["--key-file", "private.key"]
    assert main(["key", "add", f"docker://{reference}:1", "-r", "ann.key.pub", *key]) == 0
    assert main(["key", "remove", f"docker://{reference}:1", slot_of(0), "-i", "ann.key"]) == 0
    assert main(["pull", f"{reference}:1"]) == 0
    capsys.readouterr()
    assert push(f"{reference}:2") == 0
    assert "kept the key slots of sha256:" in capsys.readouterr().out
    assert main(["pull", f"{reference}:2"]) == 0
    (path,) = (store.local() / "sealed").glob("*/layer.cis")
    assert main(["verify", str(path), *key]) == 12
    assert main(["keygen", "--signing", "-o", "signer"]) == 0
    assert main(["sign", "private.cis", "--key", "signer", "--embed"]) == 0
    capsys.readouterr()
    assert push(f"{reference}:3", "--json") == 0
    identity = str(describe(path)["identity"])
    text = find_keys(opened(front.name, "later/app"), identity).text
    assert (text.revision, len(text.slots), len(text.signatures)) == (2, 1, 1)
    assert json.loads(capsys.readouterr().out)["kept_key_slots"] == [identity]


@pytest.mark.usefixtures("here")
def test_key_slots_that_were_changed_here_and_there(
    front: Proxy, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which of the two is right, nobody knows but the user, who then changes that once more."""
    reference = f"{front.name}/both/app:1"
    assert push(reference) == 0
    key = ["--key-file", "private.key"]
    for where in (f"docker://{reference}", "private.cis"):
        assert main(["key", "add", where, "-r", "ann.key.pub", *key]) == 0
    capsys.readouterr()
    before = front.received
    assert push(reference) == 2
    assert "each in its own way (revision 1)" in capsys.readouterr().err
    assert front.received - before < 4096
    assert main(["key", "add", "private.cis", "-r", "ann.key.pub", *key]) == 0
    assert push(reference) == 0
    assert main(["pull", reference]) == 0


@pytest.mark.usefixtures("here")
def test_a_base_in_another_registry(front: Proxy, modern_front: Proxy) -> None:
    base = f"{modern_front.name}/base/app:1"
    assert push(base) == 0
    reference = f"{front.name}/elsewhere/app:1"
    assert main(["push", reference, "--base", f"docker://{base}", "--layer", "private.cis"]) == 0
    assert main(["pull", reference]) == 0


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("broken", ["artifact", "keys"])
def test_the_tag_moves_when_all_is_there(front: Proxy, opened: Open, broken: str) -> None:
    reference = f"{front.name}/last{broken}/app:1"
    repository = opened(front.name, f"last{broken}/app")
    identity = str(describe(Path("private.cis"))["identity"])
    place = {"artifact": "sha256-", "keys": keys_tag(identity)}[broken]
    front.rules.append(Rule(f"PUT .*/manifests/{place}", Answer(403)))
    assert push(reference) == 22
    assert repository.digest_at("1") is None
    front.forget()
    assert push(reference) == 0
    assert main(["pull", reference]) == 0


@pytest.mark.usefixtures("here")
def test_a_layer_is_attached_without_its_data_and_completed_by_a_pull(
    front: Proxy,
) -> None:
    reference = f"{front.name}/lazy/app:1"
    assert push(reference) == 0
    named = f"{front.name}/lazy/app@{describe(Path('private.cis'))['identity']}"
    before = front.sent
    path = attach.resolve(named)
    assert front.sent - before < 16_384
    assert path == store.resolve(named) == attach.resolve_from_here(named)
    assert lazy.is_partial(path)
    assert master_key(path, KEY) == master_key(Path("private.cis"), KEY)
    assert main(["pull", reference]) == 0
    assert not lazy.is_partial(path)
    assert path.read_bytes() == Path("private.cis").read_bytes()
    names = sorted(each.name for each in path.parent.iterdir())
    assert main(["pull", reference, "--limit", "1M"]) == 0
    assert lazy.is_partial(path)
    assert path.stat().st_blocks * 512 <= MIB
    assert main(["pull", reference, "--limit", "none"]) == 0
    assert path.read_bytes() == Path("private.cis").read_bytes()
    assert names == ["layer.cis", "source.json"]
    for wrong in (
        f"{front.name}/lazy/app@sha256:{'0' * 64}",
        f"{front.name}/none@sha256:{'0' * 64}",
    ):
        with pytest.raises(NotFoundError, match="has no key slots of the sealed layer"):
            attach.resolve(wrong)
    with pytest.raises(NotAVaultError, match="is not here: pull it"):
        attach.resolve(f"sha256:{'0' * 64}")


@pytest.mark.usefixtures("here")
def test_a_registry_that_sends_whole_blobs_only(front: Proxy) -> None:
    """No more of one is taken than is needed."""
    reference = f"{front.name}/whole/app"
    assert push(f"{reference}:1") == 0
    front.rules.append(Rule("GET .*/blobs/", Fault(ignore_range=True)))
    path = attach.resolve(f"{reference}@{describe(Path('private.cis'))['identity']}")
    assert lazy.is_partial(path)
    assert master_key(path, KEY) == master_key(Path("private.cis"), KEY)
    words = ["key", "add", f"docker://{reference}:1", "-r", "ann.key.pub"]
    assert main([*words, "--key-file", "private.key"]) == 0
    assert main(["pull", f"{reference}:1"]) == 0
    assert main(["verify", str(path), "-i", "ann.key"]) == 0


@pytest.mark.usefixtures("here")
def test_a_layer_that_is_here_in_part_is_not_pushed(
    front: Proxy, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its holes would take the place of what the registry has."""
    reference = f"{front.name}/holes/app"
    assert push(f"{reference}:1") == 0
    named = f"{reference}@{describe(Path('private.cis'))['identity']}"
    attach.resolve(named)
    words = ["push", f"{reference}:2", "--base", "oci:base:1", "--layer", named]
    capsys.readouterr()
    assert main(words) == 2
    assert "here in part only: pull it first" in capsys.readouterr().err
    assert main(["pull", f"{reference}:1"]) == 0
    assert main(words) == 0


@pytest.mark.usefixtures("here")
def test_a_policy_is_asked_before_anything_is_stored(
    front: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = f"{front.name}/policy/app:1"
    assert push(reference) == 0
    private("policy.toml", b"[default]\nallow = false\n")
    monkeypatch.setenv("CISFS_POLICY", "policy.toml")
    assert main(["pull", reference]) == 21
    named = f"{front.name}/policy/app@{describe(Path('private.cis'))['identity']}"
    with pytest.raises(UntrustedError, match="forbids it"):
        attach.resolve_from_here(named)
    with pytest.raises(UntrustedError, match="forbids it"):
        attach.resolve(named, Path("policy.toml"))
    assert not (store.local() / "sealed").exists()


@pytest.mark.usefixtures("here")
def test_a_policy_about_registries_holds_for_what_was_pulled(
    front: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Signed, it is used; by way of a mirror that no rule names, it is not, until it is signed."""
    assert main(["keygen", "--signing", "-o", "release.key"]) == 0
    assert push(f"{front.name}/mirror/app:1") == 0
    assert main(["pull", f"{front.name}/mirror/app:1"]) == 0
    rule = f'[[rule]]\nregistries = ["{front.name}/rule/"]\n'
    signers = f'signers = ["{Path("release.key.pub").absolute()}"]\n'
    private("policy.toml", f"{rule}{signers}".encode())
    monkeypatch.setenv("CISFS_POLICY", "policy.toml")
    identity = describe(Path("private.cis"))["identity"]
    named = f"{front.name}/rule/app@{identity}"
    with pytest.raises(UntrustedError, match="rule 1, asks for a signature"):
        attach.resolve_from_here(named)
    with pytest.raises(UntrustedError, match="rule 1, asks for a signature"):
        attach.resolve(named, POLICY)
    assert main(["sign", "private.cis", "--key", "release.key", "--embed"]) == 0
    shutil.rmtree(store.local())
    assert push(f"{front.name}/rule/app:1") == 0
    private("policy.toml", f"[default]\nallow = false\n{rule}{signers}".encode())
    assert main(["pull", f"{front.name}/rule/app:1"]) == 0
    path = attach.resolve(named, POLICY)
    open_layer(path, KEY, admission=admission.of_host(POLICY)).close()


@pytest.mark.usefixtures("here")
def test_a_layer_is_attached_where_a_pull_broke_off(front: Proxy, opened: Open) -> None:
    reference = f"{front.name}/broken/app:1"
    assert push(reference) == 0
    identity = str(describe(Path("private.cis"))["identity"])
    repository = opened(front.name, "broken/app")
    layer = find_layer(repository, identity, find_keys(repository, identity))
    front.rules.append(Rule(f"GET .*/blobs/{layer.parts[0].digest}", Answer(403)))
    assert main(["pull", reference]) == 22
    assert [each.name for each in store.pulled(identity).parent.iterdir()] == ["part"]
    front.forget()
    path = attach.resolve(f"{front.name}/broken/app@{identity}")
    assert lazy.is_partial(path)
    assert master_key(path, KEY) == master_key(Path("private.cis"), KEY)
    assert main(["pull", reference]) == 0
    assert path.read_bytes() == Path("private.cis").read_bytes()
    assert sorted(each.name for each in path.parent.iterdir()) == ["layer.cis", "source.json"]


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("attached", [False, True])
def test_key_slots_are_renewed_from_where_the_layer_came_from_only(
    front: Proxy, attached: bool
) -> None:
    reference, other = (f"{front.name}/{name}{attached:d}/app:1" for name in ("own", "junk"))
    assert push(reference) == 0
    assert push(other) == 0
    identity = str(describe(Path("private.cis"))["identity"])
    add = ["key", "add", "-r", "ann.key.pub", "--key-file", "private.key"]
    assert main([*add, f"docker://{other}"]) == 0
    path = store.pulled(identity)
    if attached:
        attach.resolve(f"{reference.removesuffix(':1')}@{identity}")
    else:
        assert main(["pull", reference]) == 0
    assert main(["pull", other]) == 0
    assert len(keyslots.slots(path)) == 1
    assert Origin.read(path.parent).repository == f"own{attached:d}/app"
    assert main(["verify", str(path), "--key-file", "private.key"]) == 0


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("attached", [False, True])
def test_older_key_slots_are_refused(front: Proxy, opened: Open, attached: bool) -> None:
    reference = f"{front.name}/old{attached:d}/app:1"
    assert push(reference) == 0
    repository = opened(front.name, f"old{attached:d}/app")
    identity = str(describe(Path("private.cis"))["identity"])
    old = repository.manifest(keys_tag(identity))
    add = ["key", "add", f"docker://{reference}", "-r", "ann.key.pub", "--key-file", "private.key"]
    assert main(add) == 0
    if attached:
        attach.resolve(f"{front.name}/old{attached:d}/app@{identity}")
    else:
        assert main(["pull", reference]) == 0
    repository.put_manifest(old, keys_tag(identity))
    assert main(["pull", reference]) == 22


def test_a_layer_goes_on_its_own_base_only(here: Path, front: Proxy) -> None:
    ids = make_base(here / "other", "1")
    private("image", IMAGE[: 64 * 1024])
    with Path("image").open("rb") as file:
        image = StoredImage(file.fileno(), 64 * 1024)
        seal_image(image, here / "bound.cis", KEY, base=base_of(ids))
        seal_image(image, here / "lost.cis", KEY, base=base_of(ids[:1]))
    words = ["push", f"{front.name}/bound/app:1", "--base", "oci:base:1", "--layer"]
    assert main([*words, "bound.cis"]) == 0
    assert main([*words, "lost.cis"]) == 23
    assert main([*words, "lost.cis", "--rebase", "-i", "ann.key"]) == 12
    assert main([*words, "lost.cis", "--rebase", "--key-file", "private.key"]) == 0
    check_base(stored(here / "lost.cis")[0], ids)


@pytest.mark.usefixtures("here")
@pytest.mark.parametrize("what", ["vault", "plain", "twice"])
def test_what_is_no_sealed_layer_never_leaves(
    what: str, front: Proxy, capsys: pytest.CaptureFixture[str]
) -> None:
    """Not a byte is sent before that is known."""
    assert main(["init", "vault", "--key-file", "private.key"]) == 0
    Path("plain").write_bytes(CANARY * 1000)
    more = "private.cis" if what == "twice" else what
    capsys.readouterr()
    code = push(f"{front.name}/no/app:1", "--layer", more)
    assert code == (2 if what == "twice" else 10)
    assert capsys.readouterr().err.count("\n") == 1
    assert front.received == 0


@pytest.mark.usefixtures("here")
def test_an_image_in_the_dialect_of_ocicrypt_is_opened_by_skopeo(
    debian: DebianRegistry, front: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown: set[str] = set()
    monkeypatch.setattr(Progress, "update", lambda self, _done: shown.add(self._doing))
    reference = f"{front.name}/dialect/app:1"
    make_base(Path("other"), "1", seed=100)  # no test has pushed it in plain
    words = ["push", reference, "--format", "ocicrypt", "--base", "oci:other:1"]
    assert main([*words, "-r", "jwe:ann.key.pub", "--encrypt-layer", "-1"]) == 0
    assert shown == {"encrypting", "pushing"}
    plain = sorted(path.read_bytes() for path in Path("other/blobs/sha256").iterdir())
    top = max(range(len(plain)), key=lambda at: b"public1" in plain[at][:100])
    stored = [path.read_bytes() for path in debian.storage.rglob("data")]
    assert plain[top] not in stored
    copy = ["skopeo", "copy", "--insecure-policy", "--src-tls-verify=false"]
    target = ["--dest-oci-accept-uncompressed-layers", f"docker://{reference}", "oci:copy:1"]
    subprocess.run([*copy, "--decryption-key", "ann.key", *target], check=True, capture_output=True)
    copied = [path.read_bytes() for path in Path("copy/blobs/sha256").iterdir()]
    assert plain[top] in copied or any(plain[top] == gunzipped(each) for each in copied)
    assert main(words) == 2
    assert main([*words, "-r", "jwe:ann.key.pub", "--layer", "private.cis"]) == 2


def gunzipped(data: bytes) -> bytes:
    return gzip.decompress(data) if data.startswith(b"\x1f\x8b") else b""


@pytest.mark.usefixtures("here")
def test_through_a_line_that_breaks_fifty_times(
    front: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Debian's registry forgets an upload that was cut: a part is lost each time, and no more."""
    monkeypatch.setattr(artifacts, "PART", MIB // 8)
    layers.seal(Path("private.cis"), IMAGE * 3, force=True)
    reference = f"{front.name}/cuts/app:1"
    front.cuts = RandomCuts(seed=5, count=25, span=3 * MIB // 4)
    assert push(reference) == 0
    assert front.cuts.left == 0
    size = Path("private.cis").stat().st_size + 700_000  # of the base
    assert size < front.received < size + 25 * MIB // 8
    front.cuts = RandomCuts(seed=6, count=25, span=3 * MIB // 4)
    assert main(["pull", reference]) == 0
    assert front.cuts.left == 0
    assert main(["pull", reference]) == 0
    (path,) = (store.local() / "sealed").glob("*/layer.cis")
    assert path.read_bytes() == Path("private.cis").read_bytes()
