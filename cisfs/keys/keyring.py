"""Unlocked master keys, kept in the kernel's keyring for a while: keyrings(7).

They are keys of type "user", named cisfs:ID, in a keyring `cisfs` linked below the user keyring
(@u) of who unlocked them, so that whatever that user starts later finds them, in any session.
Neither swapped out nor written anywhere.  An expired key cannot be read, and is wiped in minutes.

Only who *possesses* them may so much as see them, and a process of the same user possesses what
its keyrings lead to.  Daemons and containers have session keyrings that may not lead to @u, so it
is linked to the thread's own keyring for the time of a call.  That needs no second process and
leaves the caller's session alone, and neither a fork nor an executed program inherits it.

Every process of the user can do the same, root in a container without a user namespace included:
containers must be refused keyctl(2), as `cisfs.runtime.bundle` and engines' own profiles do.

Does not know what a key opens.  Any number of processes and threads at once.
"""

from __future__ import annotations

import errno
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from cisfs.crypto.keys import KEY_SIZE, SecretKey
from cisfs.errors import CisfsError
from cisfs.keys import keyctl
from cisfs.keys.keyctl import LINK, READ, SEARCH, THREAD_KEYRING, USER_KEYRING, VIEW, WRITE

RING = b"cisfs"
PREFIX = b"cisfs:"
_USER = b"user"
_KEYRING = b"keyring"

# No one may set other permissions afterwards, nor other contents.  A link is what puts the key into
# the ring; it tells a possessor nothing that reading does not.
_KEY_PERMISSIONS = VIEW | READ | SEARCH | LINK
_RING_PERMISSIONS = VIEW | READ | WRITE | SEARCH | LINK

# The key; when it expires, in seconds since 1970 (0: never), which the kernel does not tell; and
# whether containers are to end with it.
_PAYLOAD = struct.Struct(f">{KEY_SIZE}sQ?")

_GONE = (errno.ENOKEY, errno.EKEYEXPIRED, errno.EKEYREVOKED)


@dataclass(frozen=True, slots=True)
class Terms:
    """On what terms a key is kept.

    `until` in seconds since 1970, infinity for one that does not expire; `stops`: the containers
    that use its layer are to be stopped then.
    """

    until: float
    stops: bool


def store(name: str, key: SecretKey, seconds: int | None, *, stops: bool = False) -> None:
    """Keep a master key under the hex id `name` for some seconds, or (None) until it is forgotten.

    It takes the place of one of the same name, with its terms.  Raises CisfsError where there are
    no keyrings or the user's quota is used up.
    """
    with _possession():
        _store(_description(name), key, seconds or 0, stops)


def find(name: str) -> SecretKey | None:
    """Return the master key of the hex id `name`, or None if there is none any more."""
    kept = _find(name)
    return kept[0] if kept is not None else None


def terms(name: str) -> Terms | None:
    """Return the terms on which the key of the hex id `name` is kept, None if it is not."""
    kept = _find(name)
    return kept[1] if kept is not None else None


def names() -> list[str]:
    """Return the hex ids of the keys that are kept, sorted."""
    with _possession():
        found = [description for _, description in _kept()]
    listed = sorted(description.removeprefix(PREFIX).decode("ascii") for description in found)
    return [name for name in listed if _find(name) is not None]


def forget(name: str) -> bool:
    """Destroy the key of the hex id `name`; tells whether there was one."""
    wanted = _description(name)
    with _possession():
        return _destroy([key for key, description in _kept() if description == wanted]) > 0


def forget_all() -> int:
    """Destroy all keys; returns how many there were.

    Raises CisfsError, as the others but `find` and `terms` do, where there are no keyrings.
    """
    with _possession():
        return _destroy([key for key, _ in _kept()])


def _description(name: str) -> bytes:
    return PREFIX + name.encode("ascii")


@contextmanager
def _possession() -> Iterator[None]:
    """Possess what is below the user keyring; an OSError becomes a CisfsError."""
    try:
        keyctl.link(USER_KEYRING, THREAD_KEYRING)
        try:
            yield
        finally:
            keyctl.unlink(USER_KEYRING, THREAD_KEYRING)
    except OSError as error:
        if error.errno == errno.EDQUOT:
            full = "the kernel keyring is full (see /proc/key-users); lock what is not needed"
            raise CisfsError(full) from None
        raise CisfsError(f"the kernel keyring cannot be used here: {error.strerror}") from None


def _store(description: bytes, key: SecretKey, seconds: int, stops: bool) -> None:
    """Make the key where only this thread is, and show it when it is as it should be."""
    ring = _ring()
    expiry = int(time.time()) + seconds if seconds else 0
    payload = _PAYLOAD.pack(key.reveal(), expiry, stops)
    made = keyctl.add_key(_USER, description, payload, THREAD_KEYRING)
    try:
        keyctl.set_timeout(made, seconds)
        keyctl.set_permissions(made, _KEY_PERMISSIONS)
        keyctl.move(made, THREAD_KEYRING, ring, displace=True)
    except OSError:
        keyctl.unlink(made, THREAD_KEYRING)
        raise


def _ring() -> int:
    """Return our keyring; made if there is none, by exactly one of several who find none."""
    with suppress(OSError):
        return keyctl.search(USER_KEYRING, _KEYRING, RING)
    ring = keyctl.add_key(_KEYRING, RING, None, THREAD_KEYRING)
    try:
        keyctl.set_permissions(ring, _RING_PERMISSIONS)
        keyctl.move(ring, THREAD_KEYRING, USER_KEYRING, displace=False)
    except FileExistsError:
        keyctl.unlink(ring, THREAD_KEYRING)
        return keyctl.search(USER_KEYRING, _KEYRING, RING)
    except OSError:
        keyctl.unlink(ring, THREAD_KEYRING)
        raise
    return ring


def _find(name: str) -> tuple[SecretKey, Terms] | None:
    """Return a key and its terms; none that the kernel would hold for one more moment."""
    payload = b""
    with suppress(CisfsError), _possession():  # where there are no keyrings, nothing is in them
        ring = keyctl.search(USER_KEYRING, _KEYRING, RING)
        payload = keyctl.read(keyctl.search(ring, _USER, _description(name)))
    if len(payload) != _PAYLOAD.size:
        return None  # not ours
    secret, expiry, stops = _PAYLOAD.unpack(payload)
    terms = Terms(expiry or float("inf"), stops)
    return (SecretKey(secret), terms) if time.time() < terms.until else None


def _kept() -> Iterator[tuple[int, bytes]]:
    """Yield the serial number and description of each key; some may have expired."""
    try:
        ring = keyctl.search(USER_KEYRING, _KEYRING, RING)
    except OSError:
        return
    for key in keyctl.members(ring):
        try:
            kind, description = keyctl.describe(key)
        except OSError:
            continue  # it has gone meanwhile
        if kind == _USER and description.startswith(PREFIX):
            yield key, description


def _destroy(keys: list[int]) -> int:
    """Destroy keys; returns how many there still were."""
    count = 0
    for key in keys:
        try:
            keyctl.invalidate(key)
        except OSError as error:
            if error.errno not in _GONE:
                raise
        else:
            count += 1
    return count
