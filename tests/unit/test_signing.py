"""Signing keys and signers as files, and the commands that use them."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.rsa import generate_private_key
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from cisfs.cli.main import main
from cisfs.crypto.signatures import SigningKey, signer_of
from cisfs.errors import CisfsError, NoKeyError, UsageError, WrongKeyError
from cisfs.format.signatures import spelled_signer
from cisfs.keys import signing
from cisfs.layer import sealed_file
from tests.unit import layers, vaults

KEY = SigningKey.from_private_bytes(bytes(range(32)))
SIGNER = spelled_signer(signer_of(KEY))
IMAGE = layers.image(300 * layers.UNIT)


def private(path: Path, encryption: KeySerializationEncryption | None = None) -> Path:
    path.touch(0o600)
    path.write_bytes(
        KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption())
    )
    return path


def public(path: Path) -> Path:
    form = (Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    path.write_bytes(KEY.public_key().public_bytes(*form))
    return path


def password(path: Path, text: bytes) -> Path:
    path.touch(0o600)
    path.write_bytes(text)
    return path


# -- keys ----------------------------------------------------------------------------------


def test_a_key_is_read(tmp_path: Path) -> None:
    assert signer_of(signing.signing_key(str(private(tmp_path / "key")))) == signer_of(KEY)


@pytest.mark.parametrize("line", [b"secret", b"secret\n", b"secret\r\nmore\n"])
def test_an_encrypted_key_takes_its_password(tmp_path: Path, line: bytes) -> None:
    path = private(tmp_path / "key", BestAvailableEncryption(b"secret"))
    file = password(tmp_path / "password", line)
    assert signer_of(signing.signing_key(f"{path}:file={file}")) == signer_of(KEY)
    with file.open("rb") as opened:
        found = signing.signing_key(f"{path}:fd={opened.fileno()}")
    assert signer_of(found) == signer_of(KEY)


def test_a_wrong_password(tmp_path: Path) -> None:
    path = private(tmp_path / "key", BestAvailableEncryption(b"secret"))
    file = password(tmp_path / "password", b"canary")
    with pytest.raises(WrongKeyError, match=f"wrong password for .*{path}") as caught:
        signing.signing_key(f"{path}:file={file}")
    assert "canary" not in str(caught.value)


def test_without_a_terminal_nobody_types_a_password(tmp_path: Path) -> None:
    path = private(tmp_path / "key", BestAvailableEncryption(b"secret"))
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setsid()  # away from any terminal
            signing.signing_key(str(path))
        except NoKeyError as error:
            code = 0 if f"{path}:file=PATH" in str(error) else 2
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644])
def test_a_key_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = private(tmp_path / "key")
    path.chmod(mode)
    with pytest.raises(UsageError, match="chmod 600"):
        signing.signing_key(str(path))


def test_what_is_no_signing_key(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.touch(0o600)
    rsa = generate_private_key(65537, 2048).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
    )
    for data in (b"", b"canary", public(tmp_path / "public").read_bytes(), rsa):
        path.write_bytes(data)
        with pytest.raises(UsageError) as caught:
            signing.signing_key(str(path))
        assert str(path) in str(caught.value)
        assert "canary" not in str(caught.value)
    with pytest.raises(UsageError, match=re.escape(str(tmp_path / "none"))):
        signing.signing_key(str(tmp_path / "none"))


def test_signers_are_text_or_files(tmp_path: Path) -> None:
    path = public(tmp_path / "key.pub")
    assert signing.signer(SIGNER) == signer_of(KEY)
    assert signing.signer(str(path)) == signer_of(KEY)


def test_what_is_no_signer(tmp_path: Path) -> None:
    path = public(tmp_path / "key.pub")
    one = path.read_bytes()
    rsa = generate_private_key(65537, 2048).public_key()
    form = (Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    for data in (b"", b"x", one + one, private(tmp_path / "k").read_bytes()):
        path.write_bytes(data)
        with pytest.raises(UsageError, match=f"{path} is not one public key in PEM"):
            signing.signer(str(path))
    path.write_bytes(rsa.public_bytes(*form))
    with pytest.raises(UsageError, match="not one of Ed25519"):
        signing.signer(str(path))
    for text in (str(tmp_path / "none"), "ed25519:x", "ed25519:AAAA"):
        with pytest.raises(UsageError, match=text):
            signing.signer(text)


# -- commands ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sign") / "layer.cis"
    layers.seal(path, IMAGE)
    return path


@pytest.fixture
def layer(whole: Path, tmp_path: Path) -> Path:
    (tmp_path / "layer.cis").write_bytes(whole.read_bytes())
    return tmp_path / "layer.cis"


def code(*words: str | Path) -> int:
    return main([str(word) for word in words])


@pytest.mark.parametrize("embed", [True, False])
def test_a_signed_layer_is_verified_without_its_key(
    layer: Path, tmp_path: Path, embed: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    key, signer = private(tmp_path / "key"), public(tmp_path / "key.pub")
    assert code("verify", "--signer", signer, layer) == 21
    assert f"has no valid signature of {signer}" in capsys.readouterr().err
    assert code("sign", layer, "--key", key, *(["--embed"] if embed else [])) == 0
    where = layer if embed else f"{layer}.sig"
    identity = sealed_file.stored(layer)[0].identity
    assert capsys.readouterr().out == f"signed {identity} as {SIGNER}, in {where}\n"
    assert Path(f"{layer}.sig").exists() != embed
    for wanted in (signer, SIGNER):
        assert code("verify", "--signer", wanted, layer) == 0
        said = [f"{layer}: everything is whole", f"{layer}: signed by {wanted}"]
        assert capsys.readouterr().out.splitlines() == said


def test_the_content_is_verified_too(
    layer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key = private(tmp_path / "key")
    assert code("sign", layer, "--key", key) == 0
    vaults.flip(layer, 131072 + 7 * layers.UNIT)
    capsys.readouterr()
    assert code("verify", "--json", "--signer", SIGNER, layer) == 19
    (finding,) = json.loads(capsys.readouterr().out)["findings"]
    assert (finding["unit"], finding["problem"]) == (7, "altered")
    vaults.flip(layer, 48)
    assert code("verify", "--signer", SIGNER, layer) == 21
    assert "has signatures of another layer" in capsys.readouterr().err


def test_signatures_may_lie_anywhere(
    layer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key, there = private(tmp_path / "key"), tmp_path / "there"
    assert code("sign", layer, "--key", key, "-o", there) == 0
    assert code("verify", "--signer", SIGNER, layer) == 21
    assert code("verify", "--signer", SIGNER, "--signature", there, layer) == 0
    there.write_text("{}")
    assert code("verify", "--signer", SIGNER, "--signature", there, layer) == 11
    there.unlink()
    assert code("verify", "--signer", SIGNER, "--signature", there, layer) == 1
    assert code("verify", "--signature", there, layer) == 2
    assert "takes a --signer" in capsys.readouterr().err


def test_all_signers_that_are_asked_for(layer: Path, tmp_path: Path) -> None:
    other = spelled_signer(signer_of(SigningKey.from_private_bytes(b"x" * 32)))
    assert code("sign", layer, "--key", private(tmp_path / "key")) == 0
    assert code("verify", "--signer", SIGNER, "--signer", other, layer) == 21


def test_what_cannot_be_signed_or_verified_so(
    layer: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key, vault = private(tmp_path / "key"), vaults.make(tmp_path / "vault")
    assert code("sign", vault, "--key", key) == 10
    assert code("verify", "--signer", SIGNER, vault) == 2
    assert code("sign", tmp_path / "none", "--key", key) == 10
    assert code("verify", "--signer", SIGNER, tmp_path / "none") == 10
    assert code("verify", "--signer", "ed25519:x", layer) == 2
    assert code("sign", layer, "--key", tmp_path / "none") == 2
    assert "Traceback" not in capsys.readouterr().err


def test_a_layer_is_sealed_and_signed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, layer = tmp_path / "source", tmp_path / "made.cis"
    source.mkdir()
    (source / "file").write_text("content")
    layer_key = password(tmp_path / "layer.key", bytes(range(32)))
    options: list[str | Path] = ["--key-file", layer_key, "-o", layer]
    assert code("seal", source, *options, "--sign", tmp_path / "none") == 2
    assert not layer.exists()
    assert code("seal", source, *options, "--sign", private(tmp_path / "key"), "--quiet") == 0
    assert code("verify", "--signer", SIGNER, layer) == 0
    assert code("verify", "--key-file", layer_key, layer) == 0
    capsys.readouterr()
    assert code("inspect", "--json", layer) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["signatures"] == [{"signer": SIGNER, "valid": True}]
    assert code("inspect", layer) == 0
    assert f"signer {SIGNER}, valid yes" in capsys.readouterr().out


def test_errors_are_ours(layer: Path) -> None:
    with pytest.raises(CisfsError):
        signing.signing_key(f"{layer}:fd=x")
