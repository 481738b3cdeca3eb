"""JWE as published in RFC 7520, and what of it is refused; the thumbprint of RFC 7638."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from cisfs.errors import FormatError, WrongKeyError
from cisfs.keys.jwe import decrypt
from cisfs.keys.keypairs import PrivateKey, PublicKey

PUBLISHED: dict[str, Any] = json.loads(Path(__file__).with_name("rfc7520.json").read_text())

# RFC 7638, section 3.1
KEY = {
    "kty": "RSA",
    "n": "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1"
    "L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4"
    "QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbO"
    "pbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csF"
    "Cur-kEgU8awapJzKnqDKgw",
    "e": "AQAB",
    "alg": "RS256",
    "kid": "2011-04-29",
}
THUMBPRINT = "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"

# RFC 7517, appendix A.1
EC = {
    "kty": "EC",
    "crv": "P-256",
    "x": "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4",
    "y": "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM",
}


def spellings(section: str) -> list[bytes]:
    output = PUBLISHED[section]["output"]
    return [
        (text if isinstance(text, str) else json.dumps(text)).encode() for text in output.values()
    ]


def keys(section: str) -> list[PrivateKey]:
    return [
        PrivateKey.from_members({**members, "alg": None})
        for members in PUBLISHED[section]["keys"]
        if members["kty"] != "oct"
    ]


@pytest.mark.parametrize(
    ("section", "forms"),
    [
        ("5.2", 3),  # RSA-OAEP, A256GCM
        ("5.4", 3),  # ECDH-ES+A128KW, A128GCM, P-384
        ("5.13", 1),  # several recipients, of whom only ECDH-ES+A256KW is acceptable here
    ],
)
def test_every_form_of_a_published_jwe_is_opened(section: str, forms: int) -> None:
    plaintext, mine = PUBLISHED[section]["plaintext"].encode(), keys(section)
    assert len(spellings(section)) == forms
    for spelled in spellings(section):
        assert decrypt(spelled, mine) == plaintext


@pytest.mark.parametrize(
    "section",
    [
        "5.1",  # RSA1_5
        "5.5",  # ECDH-ES without key wrapping
    ],
)
def test_algorithms_that_ocicrypt_does_not_use_are_refused(section: str) -> None:
    for spelled in spellings(section):
        with pytest.raises(FormatError, match="algorithm or an extension that is not accepted"):
            decrypt(spelled, keys(section))


def test_rsa1_5_beside_an_accepted_algorithm_is_not_tried() -> None:
    """The key of RFC 7520, 5.13's first recipient is the right one; the algorithm is not."""
    rsa = keys("5.13")[:1]
    with pytest.raises(WrongKeyError):
        decrypt(spellings("5.13")[0], rsa)


def test_the_thumbprint_is_that_of_rfc_7638() -> None:
    public = PublicKey.from_members({**KEY, "alg": None})
    assert public.fingerprint == THUMBPRINT
    assert PublicKey.from_members({**KEY, "alg": "RSA-OAEP-256"}).fingerprint == THUMBPRINT


def test_a_published_key_is_spelled_as_it_was() -> None:
    for members in (EC, {name: KEY[name] for name in ("kty", "n", "e")}):
        assert PublicKey.from_members(members).members == members


def test_coordinates_have_their_full_size() -> None:
    """RFC 7518, section 6.2.1.2: also those that begin with zeros, as 1 in 256 does."""
    for curve, characters in ((ec.SECP256R1(), 43), (ec.SECP384R1(), 64), (ec.SECP521R1(), 88)):
        for secret in range(1, 300):
            members = PublicKey.of(ec.derive_private_key(secret, curve).public_key()).members
            assert {len(members["x"]), len(members["y"])} == {characters}
