"""Private files: who else could read them, what is in them, and how they are written."""

from __future__ import annotations

import json
import os
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from cisfs.errors import NoKeyError, UsageError, WrongKeyError
from cisfs.keys.age import AgeIdentity
from cisfs.keys.credentials import RawKey
from cisfs.keys.identity_files import load_identities
from cisfs.keys.jwe import JweIdentity
from cisfs.keys.keypairs import PublicKey
from cisfs.keys.pkcs8 import private_pem
from cisfs.keys.private_files import (
    MAX_SECRET_SIZE,
    read_private,
    read_public,
    write_pair,
)
from tests.unit.test_age import PUBLIC, SECRET
from tests.unit.test_key_encodings import private_jwk

EC = ec.generate_private_key(ec.SECP256R1())
SIGNING = ed25519.Ed25519PrivateKey.generate()


@pytest.fixture(params=[0o077, 0o777, 0o000])
def umask(request: pytest.FixtureRequest) -> Iterator[int]:
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def private_file(path: Path, content: bytes, mode: int = 0o600) -> Path:
    path.write_bytes(content)
    path.chmod(mode)
    return path


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o777])
def test_a_file_that_others_can_touch_is_refused(tmp_path: Path, mode: int) -> None:
    path = private_file(tmp_path / "key", b"k", mode)
    with pytest.raises(UsageError, match=f"^others can read private key {path}; chmod 600 it$"):
        read_private(path)
    linked = tmp_path / "link"
    linked.symlink_to(path)
    with pytest.raises(UsageError, match="chmod 600 it"):
        read_private(linked)
    assert read_public(path) == b"k"


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o700])
def test_a_file_of_ours_alone_is_read(tmp_path: Path, mode: int) -> None:
    assert read_private(private_file(tmp_path / "key", b"k", mode)) == b"k"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a file away")
def test_a_file_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SUDO_UID", raising=False)
    path = private_file(tmp_path / "key", b"k")
    os.chown(path, 12345, -1)
    with pytest.raises(UsageError, match="belongs to another user"):
        read_private(path)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a file away")
def test_root_takes_the_files_of_who_called_sudo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = private_file(tmp_path / "key", b"k")
    os.chown(path, 12345, -1)
    monkeypatch.setenv("SUDO_UID", "12345")
    assert read_private(path) == b"k"
    path.chmod(0o640)
    with pytest.raises(UsageError, match="others can read"):
        read_private(path)
    path.chmod(0o600)
    for other in ("12346", "", "-1", "12345\n", "x"):
        monkeypatch.setenv("SUDO_UID", other)
        with pytest.raises(UsageError, match="belongs to another user"):
            read_private(path)


def test_a_pipe_has_no_others(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path, 0o644)
    writer = threading.Thread(target=path.write_bytes, args=(b"k",))
    writer.start()
    assert read_private(path) == b"k"
    writer.join()


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    for read in (read_private, read_public):
        with pytest.raises(UsageError, match=f"^cannot read it {tmp_path}/x: No such file"):
            read(tmp_path / "x", "it")
        with pytest.raises(UsageError, match="Is a directory"):
            read(tmp_path)
        with pytest.raises(UsageError, match=r"cannot read it 'a.x00b'"):
            read(Path("a\0b"), "it")
    large = private_file(tmp_path / "large", bytes(MAX_SECRET_SIZE + 1))
    for read in (read_private, read_public):
        with pytest.raises(UsageError, match="is too long"):
            read(large)


def test_what_is_in_a_file_is_seen_from_its_content(tmp_path: Path) -> None:
    path = tmp_path / "key"
    der = EC.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    for content in (private_pem(EC), der, json.dumps(private_jwk(EC)).encode()):
        (found,) = load_identities(private_file(path, content))
        assert isinstance(found, JweIdentity)
        assert found.name == str(path)
        assert found.private.public == PublicKey.of(EC.public_key())
    (age,) = load_identities(private_file(path, b"# mine\n" + SECRET + b"\n"))
    assert isinstance(age, AgeIdentity)
    assert age.recipient == PUBLIC
    ssh = SIGNING.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    (shell,) = load_identities(private_file(path, ssh))
    assert isinstance(shell, AgeIdentity)
    assert shell.recipient.startswith("ssh-ed25519 ")
    for raw in (b"\n" * 32, b"0" * 32, b"{" * 32):
        assert load_identities(private_file(path, raw)) == [RawKey(raw)]


def test_several_keys_in_a_file_are_told_apart(tmp_path: Path) -> None:
    other = ec.generate_private_key(ec.SECP384R1())
    path = private_file(tmp_path / "keys", private_pem(EC) + private_pem(other))
    names = [each.name for each in load_identities(path) if isinstance(each, JweIdentity)]
    assert names == [f"{path}, key 1", f"{path}, key 2"]


def test_an_encrypted_key_takes_a_password(tmp_path: Path) -> None:
    path = private_file(tmp_path / "key", private_pem(EC, b"words"))
    (found,) = load_identities(path, lambda: b"words")
    assert isinstance(found, JweIdentity)
    with pytest.raises(WrongKeyError, match=f"^the password does not open {path}$"):
        load_identities(path, lambda: b"other words")
    with pytest.raises(NoKeyError, match=f"^{path} is encrypted"):
        load_identities(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is no private key: neither PEM, DER, a JWK, an age identity nor 32 bytes"),
        (b"k" * 31, "is no private key: neither"),
        (b"age1...", "is no private key: neither"),
        (b"age-encryption.org/v1\n-> scrypt", "is no private key: neither"),
        (b"AGE-PLUGIN-YUBIKEY-1", "has a line that is no X25519 key of age"),
        (private_pem(SIGNING), "it is a signing key, which decrypts nothing"),
        (b"{}", "it is a public key, which encrypts but does not decrypt"),
    ],
)
def test_a_file_that_holds_no_private_key_is_named(
    tmp_path: Path, content: bytes, words: str
) -> None:
    path = private_file(tmp_path / "key", content)
    with pytest.raises(UsageError, match=f"^{path} .*{words}"):
        load_identities(path)


def test_what_is_written_only_we_can_read(tmp_path: Path, umask: int) -> None:
    path, public = tmp_path / "key", tmp_path / "key.pub"
    write_pair(path, b"private", public, b"public")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600, umask
    assert stat.S_IMODE(public.stat().st_mode) == 0o644, umask
    assert (path.read_bytes(), public.read_bytes()) == (b"private", b"public")
    assert read_private(path) == b"private"


def test_nothing_is_replaced(tmp_path: Path) -> None:
    there, dangling = tmp_path / "there", tmp_path / "dangling"
    there.write_bytes(b"before")
    dangling.symlink_to(tmp_path / "elsewhere")
    for path in (there, dangling):
        with pytest.raises(UsageError, match=f"^{path} is there already; it was left alone$"):
            write_pair(path, b"k", tmp_path / "new.pub", b"public")
    with pytest.raises(UsageError, match="there is there already"):
        write_pair(tmp_path / "new", b"private", there, b"public")
    assert there.read_bytes() == b"before"
    assert sorted(tmp_path.iterdir()) == [dangling, there]


def test_what_could_not_be_written_leaves_nothing(tmp_path: Path) -> None:
    """A limit on the size of files is as good as a full disk, and needs no root."""
    import resource
    import signal

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    try:
        for private, public in ((bytes(11), b""), (b"", bytes(11))):
            with pytest.raises(OSError, match="too large"):
                write_pair(tmp_path / "key", private, tmp_path / "key.pub", public)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_is_not_there_is_the_systems_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write_pair(tmp_path / "no" / "key", b"k", tmp_path / "key.pub", b"public")
    assert list(tmp_path.iterdir()) == []
