"""Unlocked keys in the real kernel's keyring: who finds them, who cannot, when they are gone."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from cisfs.crypto.keys import SecretKey
from cisfs.errors import CisfsError
from cisfs.keys import keyctl, keyring
from tests.unit.keyrings import in_another_session, private_ring, serial_of

ONE, OTHER = "11" * 16, "22" * 16
KEY, NEW_KEY = SecretKey(bytes(range(32))), SecretKey(bytes(range(32, 64)))


@pytest.fixture(autouse=True)
def ring() -> Iterator[None]:
    with private_ring():
        yield


def test_a_stored_key_is_found_by_its_name_until_it_is_forgotten() -> None:
    assert keyring.find(ONE) is None
    keyring.store(ONE, KEY, 60)
    keyring.store(OTHER, NEW_KEY, None)
    assert (keyring.find(ONE), keyring.find(OTHER)) == (KEY, NEW_KEY)
    assert keyring.names() == [ONE, OTHER]
    assert keyring.forget(ONE)
    assert not keyring.forget(ONE)
    assert keyring.find(ONE) is None
    assert keyring.names() == [OTHER]
    assert keyring.forget_all() == 1
    assert keyring.names() == []


def test_a_key_takes_the_place_of_an_earlier_one() -> None:
    keyring.store(ONE, KEY, 60)
    before = serial_of(ONE)
    keyring.store(ONE, NEW_KEY, None)
    assert keyring.find(ONE) == NEW_KEY
    assert keyring.names() == [ONE]
    with pytest.raises(OSError, match=r"not available|Permission denied") as caught:
        keyctl.read(before)
    assert caught.value.errno in (errno.ENOKEY, errno.EACCES)  # wiped, or about to be


def test_a_key_expires() -> None:
    keyring.store(ONE, KEY, 1)
    deadline = time.monotonic() + 30
    while keyring.find(ONE) is not None and time.monotonic() < deadline:
        time.sleep(0.05)
    assert keyring.find(ONE) is None
    assert keyring.terms(ONE) is None
    assert keyring.names() == []
    keyring.store(ONE, NEW_KEY, 60)
    assert keyring.find(ONE) == NEW_KEY


def test_the_terms_of_a_key_are_known() -> None:
    assert keyring.terms(ONE) is None
    before = int(time.time())
    keyring.store(ONE, KEY, 1000, stops=True)
    kept = keyring.terms(ONE)
    assert kept is not None
    assert before + 1000 <= kept.until <= time.time() + 1000
    assert kept.stops
    keyring.store(ONE, KEY, None)
    assert keyring.terms(ONE) == keyring.Terms(float("inf"), stops=False)


def test_a_key_is_gone_when_its_terms_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel rounds its time up, and those who wait for the end must not find the key then."""
    keyring.store(ONE, KEY, 1000)
    kept = keyring.terms(ONE)
    assert kept is not None
    monkeypatch.setattr(time, "time", lambda: kept.until)
    assert keyring.find(ONE) is None
    assert keyring.terms(ONE) is None


def test_a_process_that_does_not_possess_a_key_sees_nothing_of_it() -> None:
    keyring.store(ONE, KEY, 60)
    serial = serial_of(ONE)
    refused = f"PermissionError {errno.EACCES}"
    assert in_another_session(partial(keyctl.read, serial)) == refused
    assert in_another_session(partial(keyctl.describe, serial)) == refused
    assert in_another_session(partial(keyctl.invalidate, serial)) == refused
    assert in_another_session(partial(keyctl.set_permissions, serial, 0x3F3F3F3F)) == refused
    assert ONE not in in_another_session(Path("/proc/keys").read_text)
    assert keyring.find(ONE) == KEY


def test_no_one_may_open_a_key_to_others() -> None:
    keyring.store(ONE, KEY, 60)
    keyctl.link(keyctl.USER_KEYRING, keyctl.THREAD_KEYRING)
    try:
        with pytest.raises(PermissionError):
            keyctl.set_permissions(serial_of(ONE), 0x3F3F3F3F)
        with pytest.raises(PermissionError):
            keyctl.set_timeout(serial_of(ONE), 0)
    finally:
        keyctl.unlink(keyctl.USER_KEYRING, keyctl.THREAD_KEYRING)


def test_a_key_is_found_from_another_session_which_stays_as_it_was() -> None:
    keyring.store(ONE, KEY, 60)
    serial = serial_of(ONE)

    def find_and_read() -> str:
        before = Path("/proc/keys").read_text()
        found = keyring.find(ONE)
        assert keyctl.members(keyctl.THREAD_KEYRING) == []
        assert " user " not in before
        try:
            keyctl.read(serial)
        except PermissionError:
            return f"found {found == KEY}, refused as before"
        return "reads it still"

    assert in_another_session(find_and_read) == "found True, refused as before"


def test_an_executed_program_inherits_no_possession() -> None:
    keyring.store(ONE, KEY, 60)
    serial = serial_of(ONE)

    def find_and_execute() -> str:
        assert keyring.find(ONE) == KEY
        with os.popen("cat /proc/keys") as program:  # what it possesses is listed
            return program.read()

    said = in_another_session(find_and_execute)
    assert f"{serial:08x}" not in said
    assert "_ses" in said


def test_a_key_is_complete_and_closed_when_it_appears() -> None:
    keyring.store(ONE, KEY, 60)
    keyctl.link(keyctl.USER_KEYRING, keyctl.THREAD_KEYRING)
    try:
        listed = Path("/proc/keys").read_text().splitlines()
    finally:
        keyctl.unlink(keyctl.USER_KEYRING, keyctl.THREAD_KEYRING)
    (line,) = [each for each in listed if ONE in each]
    words = line.split()
    assert words[3] != "perm", "it has a timeout"
    assert words[4] == "1b000000"
    (line,) = [each for each in listed if keyring.RING.decode() in each]
    assert line.split()[4] == "1f000000"


def test_who_is_late_to_make_the_ring_uses_the_one_that_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    keyring.store(ONE, KEY, 60)
    honest = keyctl.search
    missed: list[bytes] = []

    def search(keyring: int, kind: bytes, description: bytes) -> int:
        if kind == b"keyring" and not missed:
            missed.append(description)
            raise OSError(errno.ENOKEY, os.strerror(errno.ENOKEY))
        return honest(keyring, kind, description)

    monkeypatch.setattr(keyctl, "search", search)
    keyring.store(OTHER, NEW_KEY, 60)
    assert missed == [keyring.RING]
    assert keyring.names() == [ONE, OTHER]


def test_what_others_put_there_is_no_key_of_ours() -> None:
    keyring.store(ONE, KEY, 60)
    keyctl.link(keyctl.USER_KEYRING, keyctl.THREAD_KEYRING)
    try:
        ring = keyctl.search(keyctl.USER_KEYRING, b"keyring", keyring.RING)
        keyctl.add_key(b"user", b"cisfs:" + OTHER.encode(), b"short", ring)
        unrelated = keyctl.add_key(b"user", b"unrelated", b"x" * 40, ring)
    finally:
        keyctl.unlink(keyctl.USER_KEYRING, keyctl.THREAD_KEYRING)
    assert keyring.find(OTHER) is None
    assert keyring.names() == [ONE]
    assert keyring.forget_all() == 2
    keyctl.describe(unrelated)


def test_a_full_keyring_is_said_to_be_full(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_arguments: object) -> int:
        raise OSError(errno.EDQUOT, "Disk quota exceeded")

    monkeypatch.setattr(keyctl, "add_key", full)
    with pytest.raises(CisfsError, match=r"^the kernel keyring is full"):
        keyring.store(ONE, KEY, 60)


def test_where_there_are_no_keyrings_no_key_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keyctl, "_GENERIC", (100_000, 100_000))
    monkeypatch.setattr(keyctl, "_NUMBERS", {})
    assert keyring.find(ONE) is None
    with pytest.raises(CisfsError, match=r"^the kernel keyring cannot be used here: Function not"):
        keyring.store(ONE, KEY, 60)
