"""Keys in every encoding that people have them in, and what is said of those that will not do."""

from __future__ import annotations

import datetime
import json
import pickle
import subprocess
from base64 import urlsafe_b64encode
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import dsa, ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import NameOID

from cisfs.errors import FormatError, NoKeyError, UsageError, WrongKeyError
from cisfs.keys.encodings import load_private, load_public
from cisfs.keys.keypairs import PrivateKey, PublicKey
from cisfs.keys.pkcs8 import ROUNDS, private_pem

Pair = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
Key = Pair | ed25519.Ed25519PrivateKey | dsa.DSAPrivateKey

RSA = rsa.generate_private_key(65537, 2048)
SMALL_RSA = rsa.generate_private_key(65537, 1024)
EC = ec.generate_private_key(ec.SECP256R1())
SIGNING = ed25519.Ed25519PrivateKey.generate()
KEYS: list[Pair] = [RSA, EC, ec.generate_private_key(ec.SECP521R1())]
EACH = pytest.mark.parametrize("key", KEYS)
PASSWORD = b"correct horse"


def private_jwk(key: Pair) -> dict[str, str]:
    members = PublicKey.of(key.public_key()).members
    if isinstance(key, rsa.RSAPrivateKey):
        numbers = key.private_numbers()
        named = {"d": numbers.d, "p": numbers.p, "q": numbers.q}
        named |= {"dp": numbers.dmp1, "dq": numbers.dmq1, "qi": numbers.iqmp}
    else:
        named = {"d": key.private_numbers().private_value}
    return members | {name: words(value) for name, value in named.items()}


def words(value: int) -> str:
    return (
        urlsafe_b64encode(value.to_bytes((value.bit_length() + 7) // 8, "big"))
        .rstrip(b"=")
        .decode()
    )


def pem(
    key: Key, kind: PrivateFormat = PrivateFormat.PKCS8, password: bytes | None = None
) -> bytes:
    how = BestAvailableEncryption(password) if password else NoEncryption()
    return bytes(key.private_bytes(Encoding.PEM, kind, how))


def certificate(key: Pair | ed25519.Ed25519PrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "somebody")])
    then = datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, then, then)
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return made.sign(key, algorithm)


@EACH
def test_a_public_key_is_the_same_in_every_encoding(key: Pair) -> None:
    public = key.public_key()
    expected = PublicKey.of(public)
    spellings = [
        public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        certificate(key).public_bytes(Encoding.PEM),
        certificate(key).public_bytes(Encoding.DER),
        expected.jwk.encode(),
        json.dumps({**expected.members, "kid": "x", "use": "enc"}, indent=2).encode(),
    ]
    if key is RSA:
        spellings.append(public.public_bytes(Encoding.PEM, PublicFormat.PKCS1))
        spellings.append(public.public_bytes(Encoding.DER, PublicFormat.PKCS1))
    for spelled in spellings:
        assert load_public(spelled, "it") == expected


@EACH
def test_a_private_key_is_the_same_in_every_encoding(key: Pair) -> None:
    spellings = [
        pem(key),
        pem(key, PrivateFormat.TraditionalOpenSSL),  # PKCS #1, SEC1
        key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()),
        key.private_bytes(Encoding.DER, PrivateFormat.TraditionalOpenSSL, NoEncryption()),
        json.dumps(private_jwk(key)).encode(),
        json.dumps({"keys": [private_jwk(key)]}).encode(),
    ]
    if key is RSA:
        short = {name: value for name, value in private_jwk(key).items() if name in "kty n e d"}
        spellings.append(json.dumps(short).encode())
    for spelled in spellings:
        (found,) = load_private(spelled, "it")
        assert found.reveal().private_numbers() == key.private_numbers()
        assert found.public == PublicKey.of(key.public_key())


@EACH
@pytest.mark.parametrize("kind", [PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL])
def test_an_encrypted_private_key_takes_its_password(key: Pair, kind: PrivateFormat) -> None:
    encrypted = pem(key, kind, PASSWORD)
    (found,) = load_private(encrypted, "it", lambda: PASSWORD)
    assert found.public == PublicKey.of(key.public_key())
    with pytest.raises(WrongKeyError, match=r"^the password does not open it$"):
        load_private(encrypted, "it", lambda: b"wrong")
    with pytest.raises(NoKeyError, match=r"^it is encrypted, and there is no password for it$"):
        load_private(encrypted, "it")


def test_what_openssl_makes_is_read() -> None:
    def openssl(*arguments: str, given: bytes = b"") -> bytes:
        return subprocess.run(
            ["openssl", *arguments], input=given, capture_output=True, check=True
        ).stdout

    made = openssl("ecparam", "-name", "secp384r1", "-genkey")  # parameters, then the key
    assert b"EC PARAMETERS" in made
    public = openssl("pkey", "-pubout", given=made)
    assert load_private(made, "it")[0].public == load_public(public, "it")


def test_several_keys_in_a_file_and_a_password_that_is_asked_for_once() -> None:
    asked = []

    def password() -> bytes:
        asked.append(1)
        return PASSWORD

    several = b"".join(
        [
            b"a comment\n",
            certificate(RSA).public_bytes(Encoding.PEM),
            pem(RSA, password=PASSWORD),
            pem(SIGNING),
            pem(EC, password=PASSWORD),
        ]
    )
    found = load_private(several, "it", password)
    expected = [PublicKey.of(each.public_key()) for each in (RSA, EC)]
    assert [each.public for each in found] == expected
    assert asked == [1]
    signing = {"kty": "OKP", "crv": "Ed25519", "x": "AA", "d": "AA"}
    both = {"keys": [signing, private_jwk(EC), {**private_jwk(RSA), "use": "sig"}]}
    assert [each.public for each in load_private(json.dumps(both).encode(), "it")] == expected[1:]


PUBLIC_REFUSALS: list[tuple[Callable[[], bytes], str]] = [
    (lambda: b"", "it is no public key, certificate or JWK"),
    (lambda: b"age1...", "it is no public key, certificate or JWK"),
    (
        lambda: b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
        "it is no public key",
    ),
    (lambda: b"\x30\x00", "it is no public key, certificate or JWK"),
    (lambda: pem(EC), "it is a private key, which is not to be given away"),
    (lambda: pem(EC, password=PASSWORD), "it is a private key, which is not to be given away"),
    (lambda: json.dumps(private_jwk(EC)).encode(), "it is a private key, which is not to be given"),
    (lambda: spki(EC) + spki(RSA), "there is more than one key in it: give each its own file"),
    (lambda: certificate_of(EC) + certificate_of(RSA), "there is more than one key in it"),
    (lambda: certificate_of(EC) + spki(RSA), "there is more than one key in it"),
    (lambda: spki(SIGNING), "it is a signing key, for which nothing can be encrypted"),
    (lambda: spki(SMALL_RSA), "it is an RSA key of 1024 bits, not of 2048 to 16384"),
    (lambda: spki(ec.generate_private_key(ec.SECP256K1())), "its curve secp256k1 is none of P-256"),
    (
        lambda: spki(dsa.generate_private_key(1024)),
        "it is neither an RSA nor an elliptic-curve key",
    ),
    (lambda: certificate(SIGNING).public_bytes(Encoding.PEM), "it is a signing key"),
    (lambda: b"{", "it is not a JSON object"),
    (lambda: b"{}", "its kty is neither RSA nor EC"),
    (lambda: jwk(kty="oct", k="AAAA"), "its kty is neither RSA nor EC"),
    (lambda: jwk(alg="ES256"), "its algorithm 'ES256' is not one that encrypts keys here"),
    (lambda: jwk(alg="ECDH-ES"), "its algorithm 'ECDH-ES' is not one that"),
    (lambda: jwk(alg="RSA-OAEP"), "its algorithm 'RSA-OAEP' is not one that"),
    (lambda: jwk(alg=7), "its alg is not text"),
    (lambda: jwk(use="sig"), "it is for another use than enc"),
    (lambda: jwk(crv="P-999"), "its curve is none of P-256, P-384, P-521"),
    (lambda: jwk(x="AQ"), "will not do"),  # a point that is not on the curve
    (lambda: jwk(x=None), "its x is not base64url"),
    (lambda: jwk(y="%"), "its y is not base64url"),
    (lambda: jwk(y="A"), "its y is not base64url"),
]


def certificate_of(key: Pair) -> bytes:
    return certificate(key).public_bytes(Encoding.PEM)


def spki(key: Key) -> bytes:
    return bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


def jwk(**members: object) -> bytes:
    return json.dumps(PublicKey.of(EC.public_key()).members | members).encode()


@pytest.mark.parametrize(("spelled", "words_"), PUBLIC_REFUSALS)
def test_what_is_no_public_key_is_named(spelled: Callable[[], bytes], words_: str) -> None:
    with pytest.raises(UsageError, match=words_) as caught:
        load_public(spelled(), "file x")
    assert str(caught.value).startswith("file x will not do as a key: ")


PRIVATE_REFUSALS: list[tuple[Callable[[], bytes], str]] = [
    (lambda: spki(EC), "there is no private key in it"),
    (jwk, "it is a public key, which encrypts but does not decrypt"),
    (lambda: pem(SIGNING), "it is a signing key, which decrypts nothing"),
    (lambda: pem(SIGNING) * 2, "it is a signing key, which decrypts nothing"),
    (lambda: pem(SMALL_RSA), "it is an RSA key of 1024 bits, not of 2048 to 16384"),
    (lambda: pem(ec.generate_private_key(ec.SECP256K1())), "its curve secp256k1 is none of P-256"),
    (lambda: pem(dsa.generate_private_key(1024)), "it is neither an RSA nor an elliptic-curve key"),
    (lambda: pem(EC)[:60] + pem(EC)[64:], "a private key in it is damaged, or of a kind unknown"),
    (lambda: pem(EC) + pem(EC)[:60] + pem(EC)[64:], "a private key in it is damaged"),
    (lambda: b'{"keys":{}}', "its keys are not a list of keys"),
    (lambda: b'{"keys":[]}', "its keys are not a list of keys"),
    (lambda: b'{"keys":[1]}', "its keys are not a list of keys"),
    (lambda: json.dumps({**private_jwk(EC), "d": "AQ"}).encode(), "will not do"),  # of another
    (lambda: json.dumps({**private_jwk(EC), "kty": "oct"}).encode(), "neither RSA nor EC"),
    (lambda: json.dumps({**private_jwk(RSA), "p": "AQ"}).encode(), "will not do"),
    (lambda: json.dumps({**private_jwk(RSA), "n": "_" * 171}).encode(), "1024 bits"),
]


@pytest.mark.parametrize(("spelled", "words_"), PRIVATE_REFUSALS)
def test_what_is_no_private_key_is_named(spelled: Callable[[], bytes], words_: str) -> None:
    with pytest.raises(UsageError, match=words_) as caught:
        load_private(spelled(), "file x")
    assert str(caught.value).startswith("file x will not do as a key: ")


@pytest.mark.parametrize("text", [7, "", "{}", "somebody", "\ud800", '{"kty":"EC"}'])
def test_what_a_slot_calls_a_recipient_may_be_anything(text: object) -> None:
    with pytest.raises(FormatError, match="a key slot's recipient is"):
        PublicKey.from_text(text)


def test_a_private_key_is_not_pickled() -> None:
    with pytest.raises(TypeError, match="not pickled"):
        pickle.dumps(PrivateKey(EC))


@pytest.mark.parametrize("key", [RSA, EC, SIGNING])
def test_an_encrypted_key_of_ours_is_dear_to_guess_and_read_by_openssl(
    key: Key, tmp_path: Path
) -> None:
    """The 2048 rounds that libraries write would be a passphrase tried in a millisecond."""
    made = private_pem(key, PASSWORD)
    path = tmp_path / "key"
    path.write_bytes(made)
    said = subprocess.run(
        ["openssl", "asn1parse", "-in", path], capture_output=True, check=True, text=True
    ).stdout
    assert ROUNDS >= 600_000
    assert f":{ROUNDS:06X}" in said
    assert ":hmacWithSHA256" in said
    assert ":aes-256-cbc" in said
    opened = subprocess.run(
        ["openssl", "pkey", "-in", path, "-passin", "stdin"],
        input=PASSWORD,
        capture_output=True,
        check=True,
    ).stdout
    assert opened == pem(key) == private_pem(key)
