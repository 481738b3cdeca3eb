"""`cisfs keygen`: what it makes, what it says, and what it never does."""

from __future__ import annotations

import os
import pty
import stat
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import (
    load_pem_private_key,
    load_pem_public_key,
)

from cisfs.cli.main import main
from cisfs.errors import UsageError
from cisfs.keys.encodings import load_public
from cisfs.keys.identity_files import load_identities
from cisfs.keys.jwe import JweIdentity, JweRecipient


def test_a_pair_is_made_that_fits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, public = tmp_path / "me.key", tmp_path / "me.key.pub"
    assert main(["keygen", "-o", str(path)]) == 0
    said = capsys.readouterr()
    assert said.out.startswith(f"made {path} and {public}; next: cisfs seal -r {public} ")
    assert said.out.count("\n") == 1
    assert said.err == ""
    assert [stat.S_IMODE(each.stat().st_mode) for each in (path, public)] == [0o600, 0o644]
    assert sorted(tmp_path.iterdir()) == [path, public]
    assert public.read_bytes().startswith(b"-----BEGIN PUBLIC KEY-----\n")
    assert path.read_bytes().startswith(b"-----BEGIN PRIVATE KEY-----\n")
    (identity,) = load_identities(path)
    recipient = JweRecipient(load_public(public.read_bytes(), "it"))
    assert isinstance(identity, JweIdentity)
    assert recipient.public.members["crv"] == "P-256"
    assert identity.unwrap({"type": "jwe", **recipient.wrap(b"packet")}) == b"packet"


def test_a_signing_key_is_for_signing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, public = tmp_path / "release", tmp_path / "release.pub"
    assert main(["keygen", "--signing", "-o", str(path)]) == 0
    assert "next: cisfs sign" in capsys.readouterr().out
    key = load_pem_private_key(path.read_bytes(), None)
    known = load_pem_public_key(public.read_bytes())
    assert isinstance(key, ed25519.Ed25519PrivateKey)
    assert isinstance(known, ed25519.Ed25519PublicKey)
    known.verify(key.sign(b"it"), b"it")
    with pytest.raises(UsageError, match="signing key"):
        load_identities(path)


@pytest.mark.parametrize("signing", [[], ["--signing"]])
def test_a_passphrase_encrypts_it(
    tmp_path: Path, signing: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    words = tmp_path / "words"
    words.write_bytes(b"correct horse\nmore")
    words.chmod(0o600)
    for number, source in enumerate(
        (["--passphrase-file", str(words)], ["--passphrase-command", "echo correct horse"])
    ):
        path = tmp_path / f"key{number}"
        assert main(["keygen", "-o", str(path), *source, *signing]) == 0
        assert path.read_bytes().startswith(b"-----BEGIN ENCRYPTED PRIVATE KEY-----\n")
        load_pem_private_key(path.read_bytes(), b"correct horse")
    assert "horse" not in capsys.readouterr().out


def test_without_a_file_each_half_has_its_stream(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["keygen"]) == 0
    said = capsys.readouterr()
    key = load_pem_private_key(said.out.encode(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert load_pem_public_key(said.err.encode()) == key.public_key()
    assert "PRIVATE" not in said.err


@pytest.mark.parametrize("name", ["key", "key.pub"])
def test_no_file_is_replaced_and_no_half_is_left(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for make in (Path.touch, Path.mkdir, lambda path: path.symlink_to("nowhere")):
        directory = tmp_path / str(make)
        directory.mkdir()
        make(directory / name)
        assert main(["keygen", "-o", str(directory / "key"), "--passphrase-command", "false"]) == 2
        said = capsys.readouterr().err
        assert said == f"cisfs: {directory / name} is there already; it was left alone\n"
        assert [each.name for each in directory.iterdir()] == [name]


def test_a_place_that_will_not_do_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "no" / "key"
    assert main(["keygen", "-o", str(missing)]) == 1
    assert capsys.readouterr().err == f"cisfs: {missing}: No such file or directory\n"
    assert main(["keygen", "-o", "/"]) == 2
    assert capsys.readouterr().err == "cisfs: / is a directory; name the file to make\n"
    assert list(tmp_path.iterdir()) == []


def test_a_passphrase_that_cannot_be_had_makes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "key"
    assert main(["keygen", "-o", str(path), "--passphrase-command", "false"]) == 2
    assert "the passphrase command failed" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["keygen", "-o", str(path), "--encrypt", "--passphrase-command", "echo x"])
    assert ended.value.code == 2
    assert list(tmp_path.iterdir()) == []


def test_a_passphrase_is_asked_for_twice_at_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "key"
    pid, terminal = pty.fork()
    if pid == 0:
        os.execv(
            sys.executable, [sys.executable, "-m", "cisfs", "keygen", "--encrypt", "-o", str(path)]
        )
    said = b""
    try:
        while True:
            said += os.read(terminal, 1000)
            if said.endswith(b": "):
                os.write(terminal, b"correct horse\n")
    except OSError:
        pass  # the other end was closed: it is done
    os.close(terminal)
    assert os.waitpid(pid, 0)[1] == 0
    assert said.startswith(b"passphrase for the new private key: \r\nthe same again: \r\nmade ")
    load_pem_private_key(path.read_bytes(), b"correct horse")
