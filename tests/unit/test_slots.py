"""Key slots: which key opens which, and what a hostile slot may cost."""

from __future__ import annotations

import resource
import sys
import time
from pathlib import Path

import pytest

from cisfs.crypto.keys import SecretKey
from cisfs.errors import (
    CisfsError,
    FormatError,
    NoKeyError,
    NoMemoryError,
    UsageError,
    WrongKeyError,
)
from cisfs.format.config import SlotFields, b64, from_b64
from cisfs.keys import slots
from cisfs.keys.credentials import Identities, Passphrase, RawKey
from cisfs.keys.slots import new_slot, new_slots, open_slots
from cisfs.keys.wrapping import master_in, packet

MASTER = SecretKey(b"m" * 32)
VAULT = b"v" * 16
WORDS, OTHER_WORDS = Passphrase(b"correct horse"), Passphrase(b"battery staple")
FILE, OTHER_FILE = RawKey(b"f" * 32), RawKey(b"g" * 32)

DEFAULT_COST = (slots.ITERATIONS, slots.LANES, slots.MEMORY_KIB)


@pytest.fixture(autouse=True)
def cheap_argon2(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "ITERATIONS", 1)
    monkeypatch.setattr(slots, "LANES", 1)
    monkeypatch.setattr(slots, "MEMORY_KIB", 8)


def test_new_slots_say_what_they_were_made_with() -> None:
    slot = new_slot(MASTER, WORDS, VAULT)
    assert set(slot) == {"type", "kdf", "iterations", "lanes", "memory_kib", "salt", "wrapped"}
    assert (slot["type"], slot["kdf"]) == ("passphrase", "argon2id")
    assert set(new_slot(MASTER, FILE, VAULT)) == {"type", "salt", "wrapped"}
    assert b64(MASTER.reveal())[:-2] not in str(slot)


def test_the_default_cost_is_the_second_recommendation_of_rfc_9106() -> None:
    """Less would be a quieter downgrade than any other change here."""
    assert DEFAULT_COST == (3, 4, 64 * 1024)


def test_each_credential_opens_its_own_slot_among_many() -> None:
    made = [new_slot(MASTER, each, VAULT) for each in (OTHER_WORDS, OTHER_FILE, WORDS, FILE)]
    for credential in (WORDS, OTHER_WORDS, FILE, OTHER_FILE):
        assert open_slots(made, credential, VAULT) == MASTER


def test_a_wrong_credential_opens_nothing() -> None:
    made = [new_slot(MASTER, WORDS, VAULT), new_slot(MASTER, FILE, VAULT)]
    with pytest.raises(WrongKeyError, match=r"^wrong passphrase$"):
        open_slots(made, OTHER_WORDS, VAULT)
    with pytest.raises(WrongKeyError, match=r"^wrong key file$"):
        open_slots(made, OTHER_FILE, VAULT)
    with pytest.raises(WrongKeyError, match=r"^no key slot takes a key-file; .* take: passphrase$"):
        open_slots(made[:1], FILE, VAULT)
    with pytest.raises(WrongKeyError, match=r"^no key slot takes a passphrase; .* take: key-file$"):
        open_slots(made[1:], WORDS, VAULT)


def test_a_passphrase_is_no_key_file_and_the_other_way_round() -> None:
    same = b"s" * 32
    with pytest.raises(WrongKeyError):
        open_slots([new_slot(MASTER, Passphrase(same), VAULT)], RawKey(same), VAULT)
    with pytest.raises(WrongKeyError):
        open_slots([new_slot(MASTER, RawKey(same), VAULT)], Passphrase(same), VAULT)


def test_a_slot_of_a_kind_to_come_is_passed_over() -> None:
    unknown: SlotFields = {"type": "tpm2", "blob": "x"}
    assert open_slots([unknown, new_slot(MASTER, FILE, VAULT)], FILE, VAULT) == MASTER
    with pytest.raises(WrongKeyError, match="the slots here take: tpm2"):
        open_slots([unknown], FILE, VAULT)


def test_a_slot_is_bound_to_its_vault_and_to_its_own_fields() -> None:
    for credential in (WORDS, FILE):
        slot = dict(new_slot(MASTER, credential, VAULT))
        with pytest.raises(WrongKeyError):
            open_slots([slot], credential, b"w" * 16)
        with pytest.raises(WrongKeyError):
            open_slots([{**slot, "comment": "weaker"}], credential, VAULT)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("wrapped", None, "a key slot's wrapped key is not text"),
        ("wrapped", "%", "a key slot's wrapped key is not base64"),
        ("wrapped", b64(bytes(59)), "a key slot's wrapped key has a wrong length"),
        ("salt", None, "a key slot's salt is not text"),
        ("salt", "%", "a key slot's salt is not base64"),
        ("salt", b64(bytes(15)), "a key slot's salt has a wrong length"),
        ("kdf", "md5", "a passphrase slot uses an unknown function, 'md5'"),
        ("kdf", None, "a passphrase slot uses an unknown function, None"),
        ("iterations", 0, "a passphrase slot's iterations is not from 1 to 64"),
        ("iterations", 65, "a passphrase slot's iterations is not from 1 to 64"),
        ("iterations", True, "a passphrase slot's iterations is not from 1 to 64"),
        ("iterations", "3", "a passphrase slot's iterations is not from 1 to 64"),
        ("iterations", None, "a passphrase slot's iterations is not from 1 to 64"),
        ("lanes", 65, "a passphrase slot's lanes is not from 1 to 64"),
        ("lanes", -1, "a passphrase slot's lanes is not from 1 to 64"),
        ("memory_kib", 2**32, "a passphrase slot's memory_kib is not from 1 to 4194304"),
        ("memory_kib", 7, "a passphrase slot's memory_kib is less than 8 for each lane"),
    ],
)
def test_a_damaged_slot_is_named_before_anything_is_computed(
    field: str, value: str | int | None, words: str
) -> None:
    slot = dict(new_slot(MASTER, WORDS, VAULT))
    if value is None:
        del slot[field]
    else:
        slot[field] = value
    with pytest.raises(FormatError, match=f"^{words}$"):
        open_slots([slot], WORDS, VAULT)


def test_a_slot_that_takes_more_memory_than_there_is_says_so() -> None:
    slot = {**new_slot(MASTER, WORDS, VAULT), "memory_kib": 4 * 1024 * 1024}
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30), before[1]))
    try:
        with pytest.raises(NoMemoryError, match="takes 4096 MiB of memory"):
            open_slots([slot], WORDS, VAULT)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def test_two_slots_for_one_key_have_nothing_in_common() -> None:
    one, other = (new_slot(MASTER, WORDS, VAULT) for _ in range(2))
    assert one["salt"] != other["salt"]
    assert one["wrapped"] != other["wrapped"]


@pytest.mark.parametrize(("took", "iterations"), [(0.6, 1), (0.3, 1), (0.1, 5), (1e-6, 64)])
def test_a_fast_machine_makes_more_passes(
    monkeypatch: pytest.MonkeyPatch, took: float, iterations: int
) -> None:
    clock = iter([100.0, 100.0 + took])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    slot = new_slot(MASTER, WORDS, VAULT)
    assert slot["iterations"] == iterations
    assert open_slots([slot], WORDS, VAULT) == MASTER


@pytest.mark.parametrize("where", [0, 1])
def test_a_slot_that_fails_hides_none_that_opens(where: int) -> None:
    """A damaged one, or one for which something is missing here; said only if nothing opens."""
    damaged = {**new_slot(MASTER, WORDS, VAULT), "lanes": 0}
    made = [new_slot(MASTER, WORDS, VAULT)]
    made.insert(where, damaged)
    assert open_slots(made, WORDS, VAULT) == MASTER
    with pytest.raises(FormatError, match="a passphrase slot's lanes"):
        open_slots(made, OTHER_WORDS, VAULT)


def test_a_slot_of_age_hides_none_that_opens_where_there_is_no_age(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "pyrage", None)
    of_age: SlotFields = {"type": "age", "recipient": "scrypt", "wrapped": "AAAA"}
    assert open_slots([of_age, new_slot(MASTER, WORDS, VAULT)], WORDS, VAULT) == MASTER
    with pytest.raises(CisfsError, match=r"cisfs\[age\]"):
        open_slots([of_age], WORDS, VAULT)


# -- several identities ---------------------------------------------------------------------------


class Device:
    """A recipient and its identity, which fails when told to."""

    type = "device"
    name = "the device"

    def __init__(self, fault: CisfsError | None = None) -> None:
        self.fault = fault
        self.asked = 0

    def wrap(self, packet: bytes) -> dict[str, str | int]:
        return {"recipient": "me", "wrapped": b64(packet)}

    def suits(self, slot: SlotFields) -> bool:
        return slot["type"] == self.type

    def unwrap(self, slot: SlotFields) -> bytes:
        self.asked += 1
        if self.fault is not None:
            raise self.fault
        return from_b64(slot["wrapped"], "packet")


def test_the_first_that_opens_is_enough() -> None:
    first, second = Device(), Device()
    made = new_slots(MASTER, [FILE, first], VAULT)
    assert open_slots(made, Identities((OTHER_FILE, first, second)), VAULT) == MASTER
    assert (first.asked, second.asked) == (1, 0)


def test_nobody_is_asked_for_a_passphrase_that_opens_nothing() -> None:
    def never() -> Passphrase:
        pytest.fail("asked")

    device = Device()
    made = new_slots(MASTER, [WORDS, device], VAULT)
    assert open_slots(made, Identities((device,), never), VAULT) == MASTER
    with pytest.raises(WrongKeyError):
        open_slots(new_slots(MASTER, device, VAULT), Identities((), never), VAULT)
    asked = Identities((OTHER_FILE,), lambda: WORDS)
    assert open_slots(new_slots(MASTER, [FILE, WORDS], VAULT), asked, VAULT) == MASTER


def test_a_failure_says_what_was_tried_and_what_is_wanted() -> None:
    broken = Device(NoKeyError("no answer in 30 s"))
    stranger = Device(WrongKeyError("for another"))
    made = new_slots(MASTER, [WORDS, Device()], VAULT)
    with pytest.raises(WrongKeyError) as caught:
        open_slots(made, Identities((FILE, OTHER_WORDS, broken, stranger)), VAULT)
    assert str(caught.value) == (
        "no key slot opens; tried: key file (no slot for it); passphrase (it opens none of its "
        "slots); the device (no answer in 30 s); the device (it opens none of its slots); the "
        "slots here take: passphrase, device"
    )
    with pytest.raises(WrongKeyError, match=r"^no key slot opens; tried: nothing; "):
        open_slots(made, Identities(()), VAULT)


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"[]",
        b"{}",
        b'{"id":"","key":"","more":1}',
        b'{"id":1,"key":2}',
        b'{"id":"AA==","key":"AA=="}',
        b'{"id":"","key":"' + b64(MASTER.reveal()).encode() + b'!"}',
    ],
)
def test_a_packet_that_is_none_opens_nothing_and_is_not_quoted(damaged: bytes) -> None:
    with pytest.raises(FormatError) as caught:
        master_in(damaged, VAULT)
    assert b64(MASTER.reveal()) not in str(caught.value)


def test_a_packet_of_another_vault_opens_nothing() -> None:
    assert master_in(packet(MASTER, VAULT), VAULT) == MASTER
    with pytest.raises(WrongKeyError, match="made for another"):
        master_in(packet(MASTER, b"w" * 16), VAULT)
    moved = new_slots(MASTER, Device(), b"w" * 16)
    with pytest.raises(WrongKeyError):
        open_slots(moved, Identities((Device(),)), VAULT)


def test_there_are_no_more_slots_than_can_be_read_again() -> None:
    """And nothing is computed or asked for before that is said."""
    device = Device(NoKeyError("not there"))
    assert len(new_slots(MASTER, [device] * 256, VAULT)) == 256
    with pytest.raises(UsageError, match=r"^257 recipients; there is room for 256$"):
        new_slots(MASTER, [WORDS] * 257, VAULT)


def test_there_is_always_a_slot() -> None:
    with pytest.raises(ValueError, match="no recipient"):
        new_slots(MASTER, [], VAULT)
