"""JWE made and opened: who can open it, how it is spelled, and what is said of what is not one."""

from __future__ import annotations

import json
from base64 import b64decode, urlsafe_b64decode, urlsafe_b64encode
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from cisfs.crypto.keys import SecretKey
from cisfs.errors import FormatError, WrongKeyError
from cisfs.format.config import b64
from cisfs.keys.credentials import Identities
from cisfs.keys.jwe import JweIdentity, JweRecipient, decrypt, encrypt
from cisfs.keys.keypairs import PrivateKey, PublicKey
from cisfs.keys.slots import describe_slots, new_slots, open_slots

RSA = PrivateKey(rsa.generate_private_key(65537, 2048))
CURVES = [
    PrivateKey(ec.generate_private_key(c())) for c in (ec.SECP256R1, ec.SECP384R1, ec.SECP521R1)
]
EC, OTHER = CURVES[0], PrivateKey(ec.generate_private_key(ec.SECP256R1()))
EVERY = [RSA, *CURVES]
PAYLOAD = b"what is wrapped"
MASTER, LAYER = SecretKey(b"m" * 32), b"l" * 16


def parts(packet: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(packet)
    return found


def spelled(header: object) -> str:
    return urlsafe_b64encode(json.dumps(header).encode()).rstrip(b"=").decode()


def header(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(urlsafe_b64decode(text + "=="))
    return found


@pytest.mark.parametrize("key", EVERY)
def test_what_is_made_for_a_key_it_alone_opens(key: PrivateKey) -> None:
    packet = encrypt(PAYLOAD, [key.public])
    assert decrypt(packet, [OTHER, key]) == PAYLOAD
    for other in (*EVERY, OTHER):
        if other is not key:
            with pytest.raises(WrongKeyError):
                decrypt(packet, [other])
    assert PAYLOAD not in packet


@pytest.mark.parametrize("key", EVERY)
def test_one_of_many_recipients_opens_it_alone(key: PrivateKey) -> None:
    packet = encrypt(PAYLOAD, [each.public for each in EVERY])
    assert decrypt(packet, [key]) == PAYLOAD
    with pytest.raises(WrongKeyError):
        decrypt(packet, [OTHER])


def test_for_one_recipient_it_is_flattened_and_the_whole_header_is_protected() -> None:
    for key, members in ((RSA, {"alg", "enc"}), (EC, {"alg", "enc", "epk"})):
        made = parts(encrypt(PAYLOAD, [key.public]))
        assert set(made) == {"protected", "encrypted_key", "iv", "ciphertext", "tag"}
        said = header(made["protected"])
        assert set(said) == members
        assert said["enc"] == "A256GCM"
        assert said["alg"] == ("RSA-OAEP" if key is RSA else "ECDH-ES+A256KW")


def test_for_several_recipients_it_is_general() -> None:
    made = parts(encrypt(PAYLOAD, [RSA.public, EC.public]))
    assert set(made) == {"protected", "recipients", "iv", "ciphertext", "tag"}
    assert header(made["protected"]) == {"enc": "A256GCM"}
    assert [set(each["header"]) for each in made["recipients"]] == [{"alg"}, {"alg", "epk"}]
    assert "d" not in made["recipients"][1]["header"]["epk"]


@pytest.mark.parametrize(
    ("key", "algorithm"),
    [
        (RSA, "RSA-OAEP-256"),
        (EC, "ECDH-ES+A128KW"),
        (EC, "ECDH-ES+A192KW"),
        (EC, "ECDH-ES+A256KW"),
    ],
)
def test_a_keys_own_algorithm_is_used(key: PrivateKey, algorithm: str) -> None:
    public = PublicKey.from_members({**key.public.members, "alg": algorithm})
    for recipients in ([public], [public, OTHER.public]):
        packet = encrypt(PAYLOAD, recipients)
        made = parts(packet)
        said = (
            made["recipients"][0]["header"] if "recipients" in made else header(made["protected"])
        )
        assert said["alg"] == algorithm
        assert decrypt(packet, [key]) == PAYLOAD


def test_the_compact_form_is_read_too() -> None:
    made = parts(encrypt(PAYLOAD, [EC.public]))
    names = ("protected", "encrypted_key", "iv", "ciphertext", "tag")
    assert decrypt(".".join(made[name] for name in names).encode() + b"\n", [EC]) == PAYLOAD


def test_the_stray_key_that_ocicrypt_writes_is_overlooked() -> None:
    made = parts(encrypt(PAYLOAD, [RSA.public, EC.public]))
    made["encrypted_key"] = made["recipients"][0]["encrypted_key"]
    for key in (RSA, EC):
        assert decrypt(json.dumps(made).encode(), [key]) == PAYLOAD


@pytest.mark.parametrize("name", ["protected", "encrypted_key", "iv", "ciphertext", "tag"])
def test_every_part_is_authenticated(name: str) -> None:
    for key in (RSA, EC):
        made = parts(encrypt(PAYLOAD, [key.public]))
        if name == "protected":
            said = header(made["protected"]) | {"kid": "x"}
            made["protected"] = spelled(said)
        else:
            made[name] = ("B" if made[name][0] == "A" else "A") + made[name][1:]
        with pytest.raises(WrongKeyError, match="other keys, or was altered"):
            decrypt(json.dumps(made).encode(), [key])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"iv": None}, "a JWE's iv is not base64url"),
        ({"iv": ""}, "a JWE has no iv"),
        ({"tag": "%"}, "a JWE's tag is not base64url"),
        ({"ciphertext": "A"}, "a JWE's ciphertext is not base64url"),
        ({"encrypted_key": ""}, "an algorithm or an extension that is not accepted"),
        ({"encrypted_key": 7}, "a JWE's encrypted_key is not base64url"),
        ({"protected": ""}, "an algorithm or an extension that is not accepted"),
        ({"protected": "AAAA"}, "a JWE's protected header is not a JSON object"),
        ({"protected": spelled([1])}, "a JWE's protected header is not a JSON object"),
        ({"header": []}, "a JWE's header is not an object"),
        ({"header": {"alg": "RSA-OAEP"}}, "a JWE's header says something twice"),
        ({"unprotected": {"enc": "A256GCM"}}, "a JWE's header says something twice"),
        ({"unprotected": {"zip": "DEF"}}, "an algorithm or an extension that is not accepted"),
        ({"header": {"crit": []}}, "an algorithm or an extension that is not accepted"),
        ({"recipients": {}}, "a JWE's recipients are not a list"),
        ({"recipients": [1]}, "a JWE's recipient is not an object"),
        ({"recipients": []}, "an algorithm or an extension that is not accepted"),
        ({"recipients": [{}]}, "an algorithm or an extension that is not accepted"),
    ],
)
def test_what_is_no_acceptable_jwe_is_named(change: dict[str, Any], words: str) -> None:
    made = parts(encrypt(PAYLOAD, [RSA.public])) | change
    with pytest.raises(FormatError, match=words):
        decrypt(json.dumps(made).encode(), [RSA])


@pytest.mark.parametrize(
    "header_",
    [
        {"alg": "RSA1_5", "enc": "A256GCM"},
        {"alg": "dir", "enc": "A256GCM"},
        {"alg": "A256KW", "enc": "A256GCM"},
        {"alg": "PBES2-HS256+A128KW", "enc": "A256GCM", "p2c": 2**31, "p2s": "AAAA"},
        {"alg": "A256GCM", "enc": "A256GCM"},
        {"alg": "RSA-OAEP", "enc": "RSA-OAEP"},
        {"alg": ["RSA-OAEP"], "enc": "A256GCM"},
        {"alg": "RSA-OAEP", "enc": ["A256GCM"]},
        {"alg": "RSA-OAEP"},
        {"enc": "A256GCM"},
    ],
)
def test_other_algorithms_are_refused(header_: dict[str, Any]) -> None:
    made = parts(encrypt(PAYLOAD, [RSA.public])) | {"protected": spelled(header_)}
    with pytest.raises(FormatError, match="an algorithm or an extension that is not accepted"):
        decrypt(json.dumps(made).encode(), [RSA])


@pytest.mark.parametrize(
    "packet", [b"", b"{}", b"[]", b"a.b.c", b"....", b"\xff", b'{"iv":1,"iv":2}']
)
def test_what_is_no_jwe_is_named(packet: bytes) -> None:
    with pytest.raises(FormatError):
        decrypt(packet, [RSA])


def test_without_recipients_or_payload_there_is_nothing_to_make() -> None:
    for payload, recipients in ((PAYLOAD, []), (b"", [RSA.public])):
        with pytest.raises(ValueError, match="a payload and a recipient"):
            encrypt(payload, recipients)


def test_each_identity_opens_its_slot_among_many() -> None:
    slots = new_slots(MASTER, [JweRecipient(each.public) for each in EVERY], LAYER)
    for key, slot in zip(EVERY, slots, strict=True):
        assert set(slot) == {"type", "recipient", "wrapped"}
        assert PublicKey.from_text(slot["recipient"]) == key.public
        assert open_slots(slots, Identities((JweIdentity(key, "it"),)), LAYER) == MASTER
    said = json.dumps(describe_slots(slots))
    assert RSA.public.members["n"] in said
    assert b64(MASTER.reveal())[:-2] not in json.dumps([dict(slot) for slot in slots])


def test_a_slot_for_another_is_not_tried_and_one_that_does_not_say_is() -> None:
    (slot,) = new_slots(MASTER, [JweRecipient(EC.public)], LAYER)
    mine, other = JweIdentity(EC, "mine"), JweIdentity(OTHER, "other")
    assert mine.suits(slot)
    assert not other.suits(slot)
    assert not mine.suits({**slot, "type": "age"})
    for unsaid in ({"type": "jwe"}, {**slot, "recipient": "somebody"}, {**slot, "recipient": 7}):
        assert mine.suits(unsaid)
        assert other.suits(unsaid)
    with pytest.raises(WrongKeyError, match=r"tried: other \(no slot for it\); .* take: jwe$"):
        open_slots([slot], Identities((other,)), LAYER)


def test_a_slot_whose_key_is_written_in_another_way_is_still_the_same_keys() -> None:
    named = PublicKey.from_members({**EC.public.members, "alg": "ECDH-ES+A128KW", "kid": "x"})
    (slot,) = new_slots(MASTER, [JweRecipient(named)], LAYER)
    assert JweIdentity(EC, "mine").suits(slot)
    assert open_slots([slot], Identities((JweIdentity(EC, "mine"),)), LAYER) == MASTER


def test_two_packets_for_one_key_have_nothing_in_common() -> None:
    made = [parts(encrypt(PAYLOAD, [RSA.public])) for _ in range(2)]
    for name in ("encrypted_key", "iv", "ciphertext", "tag"):
        assert made[0][name] != made[1][name]


def test_what_wrapped_holds_is_the_packet_of_ocicrypt() -> None:
    slot = JweRecipient(EC.public).wrap(PAYLOAD)
    assert decrypt(b64decode(str(slot["wrapped"])), [EC]) == PAYLOAD


def test_no_key_shows_itself() -> None:
    for key in EVERY:
        secret = key.reveal().private_numbers()
        number = secret.d if isinstance(secret, rsa.RSAPrivateNumbers) else secret.private_value
        shown = f"{key!r} {key} {JweIdentity(key, 'it')!r}"
        assert key.public.fingerprint in shown
        assert str(number) not in shown
        assert f"{number:x}" not in shown
