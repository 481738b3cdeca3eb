"""JWE packets made here are opened by skopeo, and skopeo's are opened here, with the same files."""

from __future__ import annotations

import json
import shutil
import subprocess
from base64 import b64decode, b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from cisfs.cli.main import main
from cisfs.errors import WrongKeyError
from cisfs.keys.encodings import load_public
from cisfs.keys.identity_files import load_identities
from cisfs.keys.jwe import JweIdentity, decrypt, encrypt
from cisfs.keys.keypairs import PrivateKey, PublicKey
from cisfs.keys.pkcs8 import private_pem
from cisfs.keys.private_files import read_public, write_pair
from tests.system.ocicrypt import (
    ENCRYPTED,
    KEYS,
    LAYER,
    PUBLIC_OPTIONS,
    Encrypted,
    Layer,
    decrypt_blob,
    encrypt_blob,
    plain_layer,
    read_layout,
    write_layout,
)
from tests.unit.test_key_encodings import private_jwk

pytestmark = pytest.mark.skipif(shutil.which("skopeo") is None, reason="needs skopeo")


@dataclass(frozen=True)
class Pair:
    """A private key in a file, and its public half in another."""

    private: Path
    public: Path

    def identity(self) -> PrivateKey:
        (found,) = load_identities(self.private)
        assert isinstance(found, JweIdentity)
        return found.private

    def recipient(self) -> PublicKey:
        return load_public(read_public(self.public), "it")


def write_keys(directory: Path) -> dict[str, Pair]:
    """Keys as openssl and others make them, and as we do."""
    made = {name: Pair(directory / name, directory / f"{name}.pub") for name in KINDS}
    assert main(["keygen", "-o", str(made["keygen"].private)]) == 0
    known_rsa, p384 = rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP384R1())
    write_pem(made["rsa"], known_rsa)
    write_pem(made["p384"], p384)
    write_pem(made["p521"], ec.generate_private_key(ec.SECP521R1()))
    write_pem(made["stranger"], ec.generate_private_key(ec.SECP256R1()))
    write_jwk(made["jwk-rsa"], known_rsa, None)
    write_jwk(made["jwk-ec"], p384, "ECDH-ES+A192KW")
    return made


def write_jwk(
    pair: Pair, key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey, alg: str | None
) -> None:
    public = PublicKey.of(key.public_key(), alg).jwk.encode()
    write_pair(pair.private, json.dumps(private_jwk(key)).encode(), pair.public, public)


def write_pem(pair: Pair, key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> None:
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    write_pair(pair.private, private_pem(key), pair.public, public)


KINDS = ("keygen", "rsa", "p384", "p521", "jwk-rsa", "jwk-ec", "stranger")
CASES: list[tuple[tuple[str, ...], str]] = [
    (("keygen",), "keygen"),
    (("rsa",), "rsa"),
    (("p384",), "p384"),
    (("p521",), "p521"),
    (("jwk-rsa",), "jwk-rsa"),
    (("p384",), "jwk-ec"),
    (("rsa", "keygen"), "rsa"),
    (("rsa", "keygen"), "keygen"),
    (("keygen", "p521", "rsa"), "p521"),
]
NAMES = ("recipients", "opener")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    return write_keys(tmp_path_factory.mktemp("keys"))


def skopeo(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["skopeo", "copy", "--quiet", *words],
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
    )


def made_by_skopeo(tmp_path: Path, plain: bytes, recipients: Sequence[Pair]) -> Layer:
    write_layout(tmp_path / "plain", plain, Layer(LAYER, plain, {}))
    options = [word for each in recipients for word in ("--encryption-key", f"jwe:{each.public}")]
    done = skopeo(*options, f"oci:{tmp_path}/plain:it", f"oci:{tmp_path}/encrypted:it")
    assert done.returncode == 0, done.stderr
    return read_layout(tmp_path / "encrypted")


def made_here(plain: bytes, recipients: Sequence[Pair]) -> Layer:
    encrypted = encrypt_blob(plain)
    packet = encrypt(encrypted.private, [each.recipient() for each in recipients])
    annotations = {KEYS: packet, PUBLIC_OPTIONS: encrypted.public}
    coded = {name: b64encode(value).decode() for name, value in annotations.items()}
    return Layer(ENCRYPTED, encrypted.blob, coded)


@pytest.mark.parametrize(NAMES, CASES)
def test_what_skopeo_encrypts_is_opened_here(
    tmp_path: Path, keys: dict[str, Pair], recipients: tuple[str, ...], opener: str
) -> None:
    plain = plain_layer()
    layer = made_by_skopeo(tmp_path, plain, [keys[each] for each in recipients])
    assert layer.media_type == ENCRYPTED
    assert layer.blob != plain
    packet, public = (b64decode(layer.annotations[name]) for name in (KEYS, PUBLIC_OPTIONS))
    private = decrypt(packet, [keys[opener].identity()])
    assert decrypt_blob(Encrypted(layer.blob, public, private)) == plain
    with pytest.raises(WrongKeyError):
        decrypt(packet, [keys["stranger"].identity()])


# ocicrypt 1.0.3, skopeo 1.9.3's, opens what is for an elliptic-curve JWK, but encrypts for none.
@pytest.mark.parametrize(NAMES, [*CASES, (("jwk-ec",), "jwk-ec")])
def test_what_is_encrypted_here_is_opened_by_skopeo(
    tmp_path: Path, keys: dict[str, Pair], recipients: tuple[str, ...], opener: str
) -> None:
    plain = plain_layer()
    layer = made_here(plain, [keys[each] for each in recipients])
    write_layout(tmp_path / "encrypted", plain, layer)
    source, opened = f"oci:{tmp_path}/encrypted:it", f"oci:{tmp_path}/opened:it"
    done = skopeo("--decryption-key", keys[opener].private, source, opened)
    assert done.returncode == 0, done.stderr
    found = read_layout(tmp_path / "opened")
    assert (found.media_type, found.blob) == (LAYER, plain)
    refused = skopeo("--decryption-key", keys["stranger"].private, source, f"{opened}-not")
    assert refused.returncode != 0


def test_the_forms_that_skopeo_writes_are_those_written_here(
    tmp_path: Path, keys: dict[str, Pair]
) -> None:
    """But for the copy of a key that has no place there (RFC 7516, section 7.2.1)."""
    plain = plain_layer()
    for number, recipients in enumerate([["rsa"], ["keygen"], ["rsa", "keygen"]]):
        directory = tmp_path / str(number)
        directory.mkdir()
        pairs = [keys[each] for each in recipients]
        theirs, ours = (
            json.loads(b64decode(layer.annotations[KEYS]))
            for layer in (made_by_skopeo(directory, plain, pairs), made_here(plain, pairs))
        )
        if len(recipients) > 1:
            del theirs["encrypted_key"]
        assert outline(theirs) == outline(ours)


def outline(packet: object) -> object:
    """The names in a packet and the algorithms, without the numbers."""
    if isinstance(packet, dict):
        header = packet.get("protected")
        if header is not None:
            packet = packet | {"protected": json.loads(b64decode(header + "==", altchars="-_"))}
        return {name: outline(value) for name, value in packet.items()}
    if isinstance(packet, list):
        return [outline(each) for each in packet]
    return packet if packet in ("A256GCM", "RSA-OAEP", "ECDH-ES+A256KW", "EC", "P-256") else "..."
