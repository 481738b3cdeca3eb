"""Who is let in: signatures, embedded and beside, against policies, under every name of a layer."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from cisfs.cli.main import main
from cisfs.crypto.signatures import SigningKey, signer_of
from cisfs.errors import BusyError, CisfsError, FormatError, RegistryError, UntrustedError
from cisfs.format.signatures import Signature, SignatureFile, spelled_signer
from cisfs.keys.credentials import Opener
from cisfs.keys.signing import signature_of
from cisfs.layer import admission, detached, opening, origin, sealed_file, store
from cisfs.layer.origin import Origin
from cisfs.layer.sealed import describe
from cisfs.registry import attach, repository
from cisfs.registry.reference import Reference
from tests.unit import layers, vaults
from tests.unit.vaults import KEY

ALICE, BOB, EVE = (SigningKey.from_private_bytes(bytes([number]) * 32) for number in (1, 2, 3))
IMAGE = layers.image(2 * layers.UNIT)
ANOTHER = f"sha256:{'0b' * 32}"


def text(key: SigningKey) -> str:
    return spelled_signer(signer_of(key))


A, B = text(ALICE), text(BOB)


@pytest.fixture
def layer(tmp_path: Path) -> Path:
    path = tmp_path / "layers/layer.cis"
    path.parent.mkdir(mode=0o755)
    layers.seal(path, IMAGE)
    return path


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The host's layers, and a host without a policy."""
    path = tmp_path / "store"
    path.mkdir()
    monkeypatch.setattr(store, "DIRECTORY", path)
    monkeypatch.setattr(admission, "FILE", tmp_path / "etc/policy.toml")
    monkeypatch.delenv(admission.VARIABLE, raising=False)
    return path


@pytest.fixture
def has(tmp_path: Path) -> Callable[[str], Path]:
    """Writes the host's policy."""

    def write(policy: str) -> Path:
        path = tmp_path / "etc/policy.toml"
        path.parent.mkdir(exist_ok=True, mode=0o755)
        path.touch(0o644)
        path.write_text(policy)
        return path

    return write


def asks(*signers: str, more: str = "") -> str:
    return f"[default]\nsigners = {list(signers)}\n{more}"


def identity(path: Path) -> str:
    return sealed_file.stored(path)[0].identity


def sign(path: Path, *keys: SigningKey, embed: bool = False) -> None:
    for key in keys:
        made = signature_of(key, identity(path))
        if embed:
            sealed_file.embed(path, identity(path), made)
        else:
            detached.add(detached.beside(path), identity(path), made)


def never() -> Opener:
    pytest.fail("a key was asked for")


def enter(path: Path) -> None:
    """Open with the key that fits, as far as the policy lets."""
    opening.open_layer(path, lambda: KEY, admission=admission.from_environment()).close()


def refused(path: Path, words: str) -> str:
    """The policy does not let it in, before a key is asked for."""
    with pytest.raises(UntrustedError, match=re.escape(words)) as caught:
        opening.open_layer(path, never, admission=admission.from_environment())
    return str(caught.value)


# -- policies ------------------------------------------------------------------------------


def test_without_a_policy_anything_may_be_used(layer: Path, tmp_path: Path) -> None:
    enter(layer)
    enter(vaults.make(tmp_path / "vault"))


def test_a_signature_that_is_asked_for(layer: Path, has: Callable[[str], Path]) -> None:
    policy = has(asks(A))
    said = refused(layer, f"asks for a signature; missing: {A}")
    assert said.startswith(f"{layer} may not be used: the policy {policy}, [default], asks")
    sign(layer, BOB, EVE)
    refused(layer, f"missing: {A}")
    sign(layer, ALICE)
    enter(layer)


@pytest.mark.parametrize("embed", [True, False])
def test_embedded_or_beside(layer: Path, has: Callable[[str], Path], embed: bool) -> None:
    has(asks(A, B))
    sign(layer, ALICE, embed=embed)
    refused(layer, f"asks for 2 of 2 signatures; missing: {B}")
    sign(layer, BOB, embed=not embed)
    enter(layer)


def test_a_threshold_is_of_those_who_are_named(layer: Path, has: Callable[[str], Path]) -> None:
    has(asks(A, B, text(EVE), more="threshold = 2\n"))
    sign(layer, ALICE)
    refused(layer, "asks for 2 of 3 signatures; missing: ")
    sign(layer, SigningKey.from_private_bytes(b"x" * 32))
    refused(layer, "asks for 2 of 3 signatures; missing: ")
    sign(layer, EVE)
    enter(layer)


def test_all_rules_hold(layer: Path, has: Callable[[str], Path]) -> None:
    rule = f'[[rule]]\nlayers = ["{layer.parent}/*"]\n'
    has(f'{rule}signers = ["{A}"]\n{rule}signers = ["{B}"]\n{rule}allow = true\n')
    sign(layer, ALICE)
    refused(layer, f"rule 2, asks for a signature; missing: {B}")
    sign(layer, BOB)
    enter(layer)
    has(f'{rule}signers = ["{A}"]\n{rule}allow = false\n')
    refused(layer, "rule 2, forbids it")


def test_vaults_cannot_be_signed(tmp_path: Path, has: Callable[[str], Path]) -> None:
    vault = vaults.make(tmp_path / "vault")
    has(asks(A))
    refused(vault, "vaults cannot be signed; make a layer of it with: cisfs seal")
    has("[default]\nallow = true\n")
    enter(vault)
    has("[default]\nallow = false\n")
    refused(vault, "forbids it")


def test_signers_may_be_files(layer: Path, tmp_path: Path, has: Callable[[str], Path]) -> None:
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    path = tmp_path / "alice.pub"
    path.touch(0o644)
    form = (Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    path.write_bytes(ALICE.public_key().public_bytes(*form))
    policy = has(asks(str(path)))
    refused(layer, f"missing: {path}")
    sign(layer, ALICE)
    enter(layer)
    has(asks(str(path), A))
    refused(layer, f"policy {policy}: [default]: two of the signers have the same key")
    has(asks(str(path)))
    path.chmod(0o666)
    refused(layer, f"policy {policy}: {path} decides whom to trust, and others can write it")
    path.unlink()
    refused(layer, f"policy {policy}: there is no signer {path}")
    has(asks("alice.pub"))
    refused(layer, "signer 'alice.pub' is neither ed25519:BASE64 nor an absolute path")
    has(asks("ed25519:AAAA"))
    refused(layer, "'ed25519:AAAA' is no signer: ")


def test_a_policy_that_cannot_be_read_refuses(
    layer: Path, has: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    policy = has("nonsense")
    refused(layer, f"policy {policy}: it is not valid TOML")
    policy.chmod(0o666)
    refused(layer, f"{policy} decides whom to trust, and others can write it")
    monkeypatch.setenv(admission.VARIABLE, str(tmp_path / "none"))
    refused(layer, f"there is no policy {tmp_path / 'none'}")


def test_the_variable_is_for_commands_and_not_for_the_runtime(
    layer: Path, has: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    has(asks(A))
    own = tmp_path / "own.toml"
    own.touch(0o600)
    monkeypatch.setenv(admission.VARIABLE, str(own))
    enter(layer)
    with pytest.raises(UntrustedError, match="asks for a signature"):
        opening.open_layer(layer, never, admission=admission.of_host())
    opening.open_layer(layer, KEY, admission=admission.of_host(own)).close()
    monkeypatch.setenv(admission.VARIABLE, "")
    refused(layer, "asks for a signature")


# -- names ---------------------------------------------------------------------------------


def test_a_layer_is_judged_under_each_of_its_names(
    layer: Path, tmp_path: Path, has: Callable[[str], Path]
) -> None:
    links = tmp_path / "links"
    links.mkdir()
    (links / "x").symlink_to(layer)
    has(f'[[rule]]\nlayers = ["{layer.parent}/*"]\nsigners = ["{A}"]\n')
    refused(links / "x", "rule 1, asks")
    refused(Path(f"/{layer}"), "rule 1, asks")  # "//" is "/"
    refused(Path(os.path.relpath(layer)), "rule 1, asks")
    refused(links / "../layers/layer.cis", "rule 1, asks")
    with layer.open("rb") as file:
        refused(Path(f"/proc/self/fd/{file.fileno()}"), "rule 1, asks")
    has(f'[[rule]]\nlayers = ["{links}/*"]\nsigners = ["{A}"]\n')
    refused(links / "x", "rule 1, asks")
    refused(Path(f"/{links}/x"), "rule 1, asks")
    enter(layer)


def test_an_allowed_link_does_not_lead_out_of_the_policy(
    layer: Path, tmp_path: Path, has: Callable[[str], Path]
) -> None:
    links = tmp_path / "links"
    links.mkdir()
    (links / "x").symlink_to(layer)
    has(f'[default]\nallow = false\n[[rule]]\nlayers = ["{links}/*"]\nallow = true\n')
    refused(links / "x", "[default], forbids it")


def test_names_are_those_of_the_hosts_layers(
    layer: Path, directory: Path, tmp_path: Path, has: Callable[[str], Path]
) -> None:
    layer.rename(directory / "payroll.cis")
    has(f'[[rule]]\nlayers = ["payroll"]\nsigners = ["{A}"]\n')
    refused(directory / "payroll.cis", "rule 1, asks")
    (directory / "payroll").symlink_to(tmp_path / "payroll.cis")
    (tmp_path / "link").symlink_to(directory)
    refused(tmp_path / "link/payroll.cis", "rule 1, asks")
    (directory / "payroll.cis").rename(tmp_path / "payroll.cis")
    enter(tmp_path / "payroll.cis")
    refused(directory / "payroll", "rule 1, asks")
    refused(Path(f"/{directory}/payroll"), "rule 1, asks")


def test_the_hosts_directory_may_be_a_link(
    layer: Path, directory: Path, has: Callable[[str], Path]
) -> None:
    directory.rmdir()
    directory.symlink_to(layer.parent)
    has(f'[default]\nallow = false\n[[rule]]\nlayers = ["layer"]\nsigners = ["{A}"]\n')
    refused(directory / "layer.cis", "rule 1, asks")
    sign(directory / "layer.cis", ALICE)
    enter(directory / "layer.cis")


def test_what_is_judged_is_what_is_opened(
    layer: Path, tmp_path: Path, has: Callable[[str], Path]
) -> None:
    """The path leads elsewhere by the time that its names are looked for."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "way").symlink_to(layer.parent)
    path = tmp_path / "way/layer.cis"
    has(f'[[rule]]\nlayers = ["{layer.parent}/*.cis"]\nsigners = ["{A}"]\n')
    judge = admission.load()
    with sealed_file.carried(path) as found:
        (tmp_path / "way").unlink()
        (tmp_path / "way").symlink_to(elsewhere)
        with pytest.raises(UntrustedError, match="rule 1, asks"):
            judge.admit(found.candidate)
        layer.unlink()
        with pytest.raises(UntrustedError, match="rule 1, asks"):
            judge.admit(found.candidate)


# -- signatures ----------------------------------------------------------------------------


def beside(layer: Path, data: bytes) -> None:
    detached.beside(layer).write_bytes(data)


def test_a_forged_signature_does_not_count(layer: Path, has: Callable[[str], Path]) -> None:
    has(asks(A))
    forged = Signature(signer_of(ALICE), signature_of(EVE, identity(layer)).signature)
    beside(layer, SignatureFile(identity(layer), (forged,)).pack())
    refused(layer, f"missing: {A}")
    sealed_file.embed(layer, identity(layer), forged)
    refused(layer, f"missing: {A}")
    sign(layer, ALICE)  # takes the place of the forged one
    enter(layer)


def test_a_signature_of_another_layer_does_not_count(
    layer: Path, has: Callable[[str], Path]
) -> None:
    has(asks(A))
    other = SignatureFile(ANOTHER, (signature_of(ALICE, ANOTHER),))
    beside(layer, other.pack())
    refused(layer, f"missing: {A} ({detached.beside(layer)} has signatures of another layer)")
    beside(layer, SignatureFile(identity(layer), other.signatures).pack())
    refused(layer, f"missing: {A}")
    sealed_file.embed(layer, identity(layer), other.signatures[0])
    refused(layer, f"missing: {A}")


def test_what_lies_beside_and_is_no_signature(layer: Path, has: Callable[[str], Path]) -> None:
    has(asks(A))
    beside(layer, b"nonsense")
    refused(layer, f"missing: {A} ({detached.beside(layer)} is no file of signatures, or damaged:")
    sign(layer, ALICE, embed=True)
    enter(layer)
    detached.beside(layer).unlink()
    os.mkfifo(detached.beside(layer))
    enter(layer)


def test_signatures_lie_beside_the_file_or_beside_the_link(
    layer: Path, tmp_path: Path, has: Callable[[str], Path]
) -> None:
    has(asks(A, B))
    (tmp_path / "link.cis").symlink_to(layer)
    sign(layer, ALICE)
    refused(tmp_path / "link.cis", f"missing: {B}")
    made = signature_of(BOB, identity(layer))
    detached.add(tmp_path / "link.cis.sig", identity(layer), made)
    enter(tmp_path / "link.cis")


def test_a_signature_does_not_help_what_was_altered(
    layer: Path, has: Callable[[str], Path]
) -> None:
    has(asks(A))
    sign(layer, ALICE)
    vaults.flip(layer, 48)  # the root of the hash tree
    refused(layer, f"missing: {A}")


def test_signing_leaves_data_and_identity(layer: Path) -> None:
    before, size = identity(layer), layer.stat().st_size
    tail = layer.read_bytes()[131072:]
    sign(layer, ALICE, BOB, ALICE, embed=True)
    assert (identity(layer), layer.stat().st_size) == (before, size)
    assert layer.read_bytes()[131072:] == tail
    assert describe(layer)["signatures"] == [
        {"signer": B, "valid": True},
        {"signer": A, "valid": True},
    ]
    with pytest.raises(BusyError, match=f"^{layer} was replaced by another layer just now"):
        sealed_file.embed(layer, ANOTHER, signature_of(EVE, ANOTHER))
    with layers.opened(layer) as opened:
        assert vaults.same(opened.reader().read(0, len(IMAGE)), IMAGE)
        sign(layer, EVE, embed=True)  # while it is in use


# -- registries, and whom a user asks for --------------------------------------------------


def test_what_is_pulled_is_judged_by_its_reference(has: Callable[[str], Path]) -> None:
    has(f'[[rule]]\nregistries = ["registry.example/team"]\nsigners = ["{A}"]\n')
    judge, name = admission.load(), "registry.example/team/app:1"
    judge.check(ANOTHER, [], "registry.example/other:1")
    judge.check(ANOTHER, [signature_of(ALICE, ANOTHER)], name)
    for signatures in ([], [signature_of(EVE, ANOTHER)], [signature_of(ALICE, ANOTHER[:-1] + "c")]):
        with pytest.raises(UntrustedError, match=f"^{name} may not be used: .*rule 1, asks"):
            judge.check(ANOTHER, signatures, name)


@pytest.fixture
def pulled(layer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The layer in the caller's store, from registry.example/team/app."""
    monkeypatch.setattr(store, "local", lambda: tmp_path / "data")
    path = store.pulled(identity(layer))
    path.parent.mkdir(parents=True)
    layer.rename(path)
    came_from(path, "team/app")
    return path


def came_from(path: Path, repository: str) -> None:
    source = Origin("registry.example", repository, (("sha256:0", 1),))
    (path.parent / origin.NAME).write_bytes(source.pack())


TEAM = '[[rule]]\nregistries = ["registry.example/team"]\n'


def test_what_was_pulled_is_judged_by_where_it_came_from(
    pulled: Path, has: Callable[[str], Path]
) -> None:
    has(f'{TEAM}signers = ["{A}"]\n')
    refused(pulled, f"rule 1, asks for a signature; missing: {A}")
    came_from(pulled, "other/app")
    enter(pulled)
    has(f'[default]\nallow = false\n{TEAM}signers = ["{A}"]\n')
    refused(pulled, "[default], forbids it")
    came_from(pulled, "team/app")
    refused(pulled, "rule 1, asks")
    sign(pulled, ALICE, embed=True)
    enter(pulled)


def test_rules_about_its_path_hold_as_well(pulled: Path, has: Callable[[str], Path]) -> None:
    paths = f'[[rule]]\nlayers = ["{store.local()}/**"]\n'
    has(f'[default]\nallow = false\n{TEAM}allow = true\n{paths}signers = ["{A}"]\n')
    refused(pulled, "rule 2, asks")
    has(f'{TEAM}signers = ["{A}"]\n{paths}allow = true\n')
    refused(pulled, "rule 1, asks")


def test_a_store_may_be_a_link(
    pulled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has: Callable[[str], Path]
) -> None:
    (tmp_path / "link").symlink_to(store.local())
    monkeypatch.setattr(store, "local", lambda: tmp_path / "link")
    has(f"[default]\nallow = false\n{TEAM}allow = true\n")
    enter(store.pulled(identity(pulled)))
    enter(pulled)


def test_where_it_came_from_is_no_name_of_a_link(
    pulled: Path, tmp_path: Path, has: Callable[[str], Path]
) -> None:
    (tmp_path / "x.cis").symlink_to(pulled)
    has(f"[default]\nallow = false\n{TEAM}allow = true\n")
    refused(tmp_path / "x.cis", "[default], forbids it")


def test_another_directory_does_not_say_where_a_layer_came_from(
    pulled: Path, tmp_path: Path, has: Callable[[str], Path]
) -> None:
    has(f"[default]\nallow = false\n{TEAM}allow = true\n")
    store.local().rename(tmp_path / "elsewhere")
    refused(tmp_path / "elsewhere" / pulled.relative_to(store.local()), "[default], forbids it")


@pytest.mark.parametrize("left", [None, b"nonsense"])
def test_what_does_not_say_where_it_came_from(
    pulled: Path, has: Callable[[str], Path], left: bytes | None
) -> None:
    (pulled.parent / origin.NAME).unlink()
    if left is not None:
        (pulled.parent / origin.NAME).write_bytes(left)
    has(f'{TEAM}signers = ["{A}"]\n')
    refused(pulled, "does not say where it came from; remove both, and pull it again")
    has("[default]\nallow = true\n")
    enter(pulled)


def test_what_is_here_is_judged_by_the_name_that_it_has_now(
    pulled: Path, has: Callable[[str], Path]
) -> None:
    came_from(pulled, "mirror/app")
    has(f'{TEAM}signers = ["{A}"]\n')
    named = f"registry.example/team/app@{identity(pulled)}"
    for resolve in (attach.resolve, attach.resolve_from_here):
        assert resolve(named.replace("team", "other")) == pulled
        assert resolve(identity(pulled)) == pulled
        with pytest.raises(UntrustedError, match=r"^registry\.example/team/app may not .*rule 1"):
            resolve(named)
    sign(pulled, ALICE)
    assert attach.resolve(named) == attach.resolve_from_here(named) == pulled


def test_a_registry_that_nothing_may_come_from_is_not_asked(
    has: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who names a layer, an image's author say, would choose whom root talks to."""

    def ask(found: Reference, _: object) -> NoReturn:
        raise RegistryError(f"{found.name} was asked")

    monkeypatch.setattr(repository, "open_repository", ask)
    has(f'[default]\nallow = false\n{TEAM}signers = ["{A}"]\n')
    missing = f"sha256:{'0' * 64}"
    with pytest.raises(UntrustedError, match=r"^other\.example/app may not .*forbids it"):
        attach.resolve(f"other.example/app@{missing}")
    with pytest.raises(RegistryError, match=r"^registry\.example/team/app was asked"):
        attach.resolve(f"registry.example/team/app@{missing}")


def test_mount_judges_by_that_name_too(
    pulled: Path, has: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    came_from(pulled, "mirror/app")
    has(f'{TEAM}signers = ["{A}"]\n')
    assert main(["mount", f"registry.example/team/app@{identity(pulled)}", "nowhere"]) == 21
    assert "registry.example/team/app may not be used" in capsys.readouterr().err


@pytest.fixture
def found(layer: Path) -> Iterator[sealed_file.CarriedLayer]:
    with sealed_file.carried(layer) as found:
        yield found


def test_a_user_asks_for_signers(
    found: sealed_file.CarriedLayer, layer: Path, tmp_path: Path
) -> None:
    from cisfs.layer.policy import Signer

    wanted = [Signer(signer_of(key), text(key)) for key in (ALICE, BOB)]
    sign(layer, ALICE)
    with pytest.raises(UntrustedError, match=re.escape(f"has no valid signature of {B}")):
        admission.require(found.candidate, wanted, [])
    more = tmp_path / "more.sig"
    detached.add(more, identity(layer), signature_of(BOB, identity(layer)))
    admission.require(found.candidate, wanted, [more])
    more.write_bytes(SignatureFile(ANOTHER, (signature_of(BOB, ANOTHER),)).pack())
    with pytest.raises(UntrustedError, match=f"{more} has signatures of another layer, {ANOTHER}"):
        admission.require(found.candidate, wanted, [more])
    more.write_bytes(b"nonsense")
    with pytest.raises(FormatError, match=str(more)):
        admission.require(found.candidate, wanted, [more])


def test_two_sign_at_once(layer: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both would read the same, and the later one put the earlier one's signature out again."""
    path, name = detached.beside(layer), identity(layer)
    detached.add(path, name, signature_of(EVE, name))
    both, plainly = threading.Barrier(2), detached.read

    def read(path: Path) -> SignatureFile:
        held = plainly(path)
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait(0.1)
        return held

    monkeypatch.setattr(detached, "read", read)
    threads = [
        threading.Thread(target=detached.add, args=(path, name, signature_of(key, name)))
        for key in (ALICE, BOB)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {each.signer for each in plainly(path).signatures} == {
        *map(signer_of, (ALICE, BOB, EVE))
    }


def test_signatures_that_do_not_fit_leave_those_that_are_there(layer: Path) -> None:
    """A limit on the size of files is as good as a full disk, and needs no root."""
    sign(layer, ALICE)
    path = detached.beside(layer)
    before = path.read_bytes()
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.getsignal(signal.SIGXFSZ)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before), limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            sign(layer, BOB)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == before
    assert sorted(path.parent.iterdir()) == [layer, path]


def test_a_file_of_signatures_is_of_one_layer(layer: Path) -> None:
    sign(layer, ALICE)
    with pytest.raises(CisfsError, match="has signatures of another layer"):
        detached.add(detached.beside(layer), ANOTHER, signature_of(BOB, ANOTHER))
    assert len(detached.read(detached.beside(layer)).signatures) == 1
