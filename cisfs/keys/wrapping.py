"""Recipients and identities: whom a master key is wrapped for, and what unwraps it.

What every kind of public key, device or key service has to offer so that `cisfs.keys.slots` can
use it, and the packet of 100 bytes that they wrap (docs/FORMAT.md, 2.1).  Does not know any of
them.  Pure; safe anywhere.
"""

from __future__ import annotations

from typing import Protocol

from cisfs.crypto.keys import KEY_SIZE, SecretKey
from cisfs.errors import FormatError, WrongKeyError
from cisfs.format.config import SlotFields, b64, canonical, from_b64, load

_FIELDS = {"id", "key"}


class Recipient(Protocol):
    """Somebody with the public half of a key, or a name by which a service knows the key."""

    @property
    def type(self) -> str:
        """The type of the slots made for it."""

    def wrap(self, packet: bytes) -> dict[str, str | int]:
        """Return a slot's other fields: `recipient`, to wrap for it again, and `wrapped`, base64.

        Raises CisfsError when a device or service fails.
        """


class Identity(Protocol):
    """What unwraps packets: a private key, or the way to a device or service that has it."""

    @property
    def name(self) -> str:
        """What it is and where it is from, for messages; nothing secret."""

    def suits(self, slot: SlotFields) -> bool:
        """Tell whether it is worth trying on a slot, which is not yet known to be well-formed."""

    def unwrap(self, slot: SlotFields) -> bytes:
        """Return the packet in a slot that suits.

        Raises WrongKeyError if it was made for another, FormatError, any CisfsError that says why
        a device or service failed.
        """


def packet(master: SecretKey, identifier: bytes) -> bytes:
    """Return what is wrapped: the master key, and the id of the vault or layer that it is of."""
    return canonical({"id": b64(identifier), "key": b64(master.reveal())})


def master_in(packet: bytes, identifier: bytes) -> SecretKey:
    """Return the master key in a packet.

    Raises FormatError; WrongKeyError if it is of another vault or layer than `identifier`.
    """
    try:
        document = load(packet)
    except FormatError:  # whose words may quote what is in it
        raise FormatError("a key slot's packet is not JSON") from None
    if set(document) != _FIELDS:
        raise FormatError("a key slot's packet has other fields than id and key")
    key = from_b64(document["key"], "the key in a key slot's packet")
    if len(key) != KEY_SIZE:
        raise FormatError("the key in a key slot's packet has a wrong length")
    if from_b64(document["id"], "the id in a key slot's packet") != identifier:
        raise WrongKeyError("its key slot was made for another vault or layer")
    return SecretKey(key)
