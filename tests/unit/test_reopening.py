"""What an interrupted rotation left: who opens it, and whom it is for."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from cisfs.crypto.keys import SecretKey
from cisfs.keys import slots as slots_of_cisfs
from cisfs.keys.age import AgeIdentity, AgeRecipient, ScryptRecipient
from cisfs.keys.credentials import (
    Credential,
    Identities,
    MasterKey,
    Opener,
    Passphrase,
    RawKey,
    Recipients,
)
from cisfs.keys.jwe import JweIdentity, JweRecipient
from cisfs.keys.keypairs import PrivateKey
from cisfs.keys.reopening import are_for, asking_once, reopened
from cisfs.keys.slots import new_slots, open_slots
from cisfs.keys.wrapping import Recipient

pyrage = pytest.importorskip("pyrage")

MASTER, ID = SecretKey(b"m" * 32), b"i" * 16
WORDS, OTHER_WORDS = Passphrase(b"correct horse"), Passphrase(b"battery staple")
FILE, OTHER_FILE = RawKey(b"f" * 32), RawKey(b"o" * 32)
EC, OTHER_EC = (PrivateKey(ec.generate_private_key(ec.SECP256R1())) for _ in range(2))
AGE = pyrage.x25519.Identity.generate()
OTHER_AGE = pyrage.x25519.Identity.generate()
EVERYBODY: list[tuple[Credential | Recipient, Credential | Recipient]] = [
    (WORDS, OTHER_WORDS),
    (FILE, OTHER_FILE),
    (JweRecipient(EC.public), JweRecipient(OTHER_EC.public)),
    (AgeRecipient(str(AGE.to_public())), AgeRecipient(str(OTHER_AGE.to_public()))),
]


@pytest.fixture(autouse=True)
def cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots_of_cisfs, "MEMORY_KIB", 64)
    monkeypatch.setattr(slots_of_cisfs, "CALIBRATED_SECONDS", 0)


@pytest.mark.parametrize(("who", "other"), EVERYBODY)
def test_each_is_told_from_another_of_its_kind(
    who: Credential | Recipient, other: Credential | Recipient
) -> None:
    slots = new_slots(MASTER, [who], ID)
    assert are_for(slots, [who], MASTER, ID)
    assert are_for(slots, who, MASTER, ID)
    assert not are_for(slots, [other], MASTER, ID)
    assert not are_for(slots, [who, other], MASTER, ID)
    assert not are_for(new_slots(MASTER, [who, other], ID), [who], MASTER, ID)
    assert not are_for(new_slots(SecretKey(bytes(32)), FILE, ID), FILE, MASTER, ID)


def test_all_of_them_in_any_order() -> None:
    all_of_them = [who for who, _ in EVERYBODY]
    slots = new_slots(MASTER, all_of_them, ID)
    assert are_for(slots[::-1], all_of_them, MASTER, ID)
    assert not are_for(slots, all_of_them[1:], MASTER, ID)
    assert not are_for(slots[1:], all_of_them, MASTER, ID)


@pytest.mark.usefixtures("cheap_age")
def test_passphrases_in_ages_way_are_told_apart_too() -> None:
    slots = new_slots(MASTER, ScryptRecipient(WORDS), ID)
    assert are_for(slots, ScryptRecipient(WORDS), MASTER, ID)
    assert not are_for(slots, ScryptRecipient(OTHER_WORDS), MASTER, ID)
    assert not are_for(slots, WORDS, MASTER, ID)


def test_one_slot_is_not_for_two() -> None:
    assert not are_for(new_slots(MASTER, [FILE, OTHER_FILE], ID), [FILE, FILE], MASTER, ID)


@pytest.mark.parametrize(
    ("opener", "recipients"),
    [
        (FILE, [FILE, WORDS]),
        (Identities((OTHER_FILE, FILE)), [FILE]),
        (Identities((JweIdentity(EC, "it"),)), [JweRecipient(EC.public)]),
        (Identities((AgeIdentity(AGE, str(AGE.to_public()), "it"),)), [EVERYBODY[3][0]]),
        (OTHER_FILE, [FILE]),
        (MasterKey(SecretKey(bytes(32))), [WORDS]),
    ],
)
def test_what_opened_the_old_one_or_is_given_opens_it(
    opener: Opener, recipients: list[Credential | Recipient]
) -> None:
    slots = new_slots(MASTER, recipients, ID)
    assert reopened(slots, opener, recipients, ID) == MASTER


@pytest.mark.parametrize("opener", [OTHER_FILE, MasterKey(MASTER), Identities((OTHER_WORDS,))])
def test_nothing_else_does(opener: Opener) -> None:
    recipients: Recipients = JweRecipient(EC.public)
    assert reopened(new_slots(MASTER, recipients, ID), opener, recipients, ID) is None


def test_nobody_is_asked_for_it() -> None:
    def ask() -> Passphrase:
        asked.append(True)
        return WORDS

    asked: list[bool] = []
    slots, opener = new_slots(MASTER, WORDS, ID), asking_once(Identities((), ask))
    assert reopened(slots, opener, FILE, ID) is None
    assert not asked
    assert open_slots(slots, opener, ID) == MASTER
    assert reopened(slots, opener, FILE, ID) == MASTER
    assert open_slots(slots, opener, ID) == MASTER
    assert len(asked) == 1
