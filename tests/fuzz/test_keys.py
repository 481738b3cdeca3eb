"""Any bytes as a key, a packet or a slot of one give a value or one of our errors, nothing else."""

from __future__ import annotations

import json
from base64 import b64decode, urlsafe_b64encode
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from cisfs.format.config import b64
from cisfs.keys.age import AgeRecipient, ScryptIdentity, identities_in, recipients_in
from cisfs.keys.credentials import Identities, Passphrase
from cisfs.keys.encodings import load_private, load_public
from cisfs.keys.identity_files import identities_in as any_identities_in
from cisfs.keys.jwe import JweIdentity, decrypt, encrypt
from cisfs.keys.keypairs import PrivateKey, PublicKey
from cisfs.keys.slots import open_slots
from tests.fuzz.test_parsers import Parser, value_or_our_error
from tests.unit.age_files import scrypt_file
from tests.unit.test_age import PUBLIC, SECRET
from tests.unit.test_key_encodings import certificate, private_jwk

RSA = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())
SSH = ed25519.Ed25519PrivateKey.generate()
KEYS = [PrivateKey(RSA), PrivateKey(EC)]
RECIPIENTS = [key.public for key in KEYS]
PASSPHRASE = Passphrase(b"words")
ID = bytes(16)
(AGE,) = identities_in(SECRET, "it")


def private(key: Any, encoding: Encoding, kind: PrivateFormat) -> bytes:  # noqa: ANN401 - any kind
    return bytes(key.private_bytes(encoding, kind, NoEncryption()))


def public(data: bytes) -> object:
    return load_public(data, "it")


def identities(data: bytes) -> object:
    return any_identities_in(data, "it", lambda: b"words")


def opened(data: bytes) -> object:
    return decrypt(data, KEYS)


def age(data: bytes) -> object:
    return AGE.unwrap({"type": "age", "wrapped": b64(data)})


def age_of_words(data: bytes) -> object:
    return ScryptIdentity(PASSPHRASE).unwrap({"type": "age", "wrapped": b64(data)})


SPKI = EC.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
DER = RSA.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
PARSERS: dict[str, Parser] = {
    "public PEM": (public, SPKI),
    "public DER": (public, DER),
    "public JWK": (public, RECIPIENTS[1].jwk.encode()),
    "certificate": (public, certificate(EC).public_bytes(Encoding.DER)),
    "private PEM": (identities, private(EC, Encoding.PEM, PrivateFormat.PKCS8)),
    "private DER": (identities, private(EC, Encoding.DER, PrivateFormat.PKCS8)),
    "private SEC1": (identities, private(EC, Encoding.PEM, PrivateFormat.TraditionalOpenSSL)),
    "private SSH": (identities, private(SSH, Encoding.PEM, PrivateFormat.OpenSSH)),
    "private JWK": (identities, json.dumps(private_jwk(EC)).encode()),
    "RSA JWK": (identities, json.dumps(private_jwk(RSA)).encode()),
    "JWK set": (identities, json.dumps({"keys": [private_jwk(EC)]}).encode()),
    "age identities": (identities, b"# mine\n" + SECRET),
    "age recipients": (lambda data: recipients_in(data, "it"), PUBLIC.encode()),
    "JWE for one": (opened, encrypt(b"it", RECIPIENTS[1:])),
    "JWE for several": (opened, encrypt(b"it", RECIPIENTS)),
    "age": (age, b64decode(str(AgeRecipient(PUBLIC).wrap(b"it")["wrapped"]))),
    "age of words": (age_of_words, scrypt_file(b"it", b"words", 1)),
}
MANY = settings(max_examples=100)


WORDS = st.one_of(
    st.text("ABab01-_", max_size=12),
    st.sampled_from(["RSA", "EC", "OKP", "P-256", "enc", "sig", "RSA-OAEP", "ECDH-ES+A256KW"]),
)
JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(st.characters()), WORDS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)
JWK_NAMES = st.sampled_from([*private_jwk(EC), *private_jwk(RSA), "use", "alg", "keys", "kid"])


@MANY
@given(
    changed=st.dictionaries(JWK_NAMES, JSON, max_size=3),
    dropped=st.sets(JWK_NAMES, max_size=1),
    key=st.sampled_from([RSA, EC]),
)
def test_any_structure_of_a_jwk(
    changed: dict[str, Any], dropped: set[str], key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey
) -> None:
    members = {k: v for k, v in (private_jwk(key) | changed).items() if k not in dropped}
    spelled = json.dumps(members).encode()
    value_or_our_error(lambda: load_private(spelled, "it"))
    value_or_our_error(lambda: load_public(spelled, "it"))
    value_or_our_error(lambda: PublicKey.from_text(spelled.decode()))


HEADER = st.dictionaries(
    st.sampled_from(["alg", "enc", "epk", "kid", "apu", "apv", "zip", "crit", "jku", "p2c"]),
    st.one_of(
        JSON, st.sampled_from(["A256GCM", "A128CBC-HS256", "ECDH-ES", RECIPIENTS[1].members])
    ),
    max_size=5,
)
JWE_NAMES = st.sampled_from(["iv", "tag", "ciphertext", "encrypted_key", "aad", "recipients"])


@MANY
@given(
    protected=st.one_of(st.none(), HEADER),
    own=st.one_of(st.none(), HEADER, JSON),
    changed=st.dictionaries(JWE_NAMES, JSON, max_size=2),
)
def test_any_structure_of_a_jwe(protected: Any, own: Any, changed: dict[str, Any]) -> None:  # noqa: ANN401 - JSON
    document = json.loads(encrypt(b"it", RECIPIENTS[1:])) | changed
    if protected is not None:
        spelled = json.dumps({"alg": "ECDH-ES+A256KW", "enc": "A256GCM"} | protected)
        document["protected"] = urlsafe_b64encode(spelled.encode()).rstrip(b"=").decode()
    if own is not None:
        document["header"] = own
    value_or_our_error(lambda: decrypt(json.dumps(document).encode(), KEYS))


SLOTS = st.fixed_dictionaries(
    {"type": st.sampled_from(["jwe", "age"])},
    optional={
        "recipient": st.one_of(st.integers(), WORDS, st.just("scrypt"), st.just(PUBLIC)),
        "wrapped": st.one_of(st.integers(), WORDS, st.binary(max_size=50).map(b64)),
    },
)


@MANY
@given(slots=st.lists(SLOTS, min_size=1, max_size=3))
def test_any_slots(slots: list[dict[str, str | int]]) -> None:
    jwe = [JweIdentity(key, "it") for key in KEYS]
    offered = Identities((*jwe, AGE, ScryptIdentity(PASSPHRASE)))
    value_or_our_error(lambda: open_slots(slots, offered, ID))
