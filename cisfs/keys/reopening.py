"""Opening again what an interrupted rotation left, with the keys that are at hand for the old one.

Nobody is asked twice, and what was begun is gone on with only for the very recipients that are
wanted now: one who was dropped since may have kept what was begun.  Does not know where slots are
stored.  One thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from cisfs.crypto.keys import SecretKey
from cisfs.errors import CisfsError
from cisfs.format.config import SlotFields
from cisfs.keys.credentials import (
    Credential,
    Identities,
    MasterKey,
    Opener,
    Passphrase,
    RawKey,
    Recipients,
)
from cisfs.keys.slots import (
    AGE_SCRYPT,
    TYPE_AGE,
    TYPE_KEY_FILE,
    TYPE_PASSPHRASE,
    new_slot,
    open_slots,
)
from cisfs.keys.wrapping import Identity, Recipient


class _Once:
    """Asks for a passphrase at most once; `answer` is what was said."""

    def __init__(self, ask: Callable[[], Passphrase]) -> None:
        self._ask = ask
        self.answer: Passphrase | None = None

    def __call__(self) -> Passphrase:
        if self.answer is None:
            self.answer = self._ask()
        return self.answer


def asking_once(opener: Opener) -> Opener:
    """Return the same opener, which asks at most once however often it is used."""
    if not isinstance(opener, Identities) or opener.ask is None or isinstance(opener.ask, _Once):
        return opener
    return replace(opener, ask=_Once(opener.ask))


def secrets_of(opener: Opener) -> list[Credential]:
    """Return the passphrases and key files among what opens a layer, and what was typed."""
    offered = _offered(opener) if isinstance(opener, Identities) else (opener,)
    return [each for each in offered if isinstance(each, (Passphrase, RawKey))]


def secret_of(recipient: Credential | Recipient) -> Credential | None:
    """Return the secret that opens what is made for a recipient, if it is one that has it."""
    if isinstance(recipient, (Passphrase, RawKey)):
        return recipient
    if recipient.type == TYPE_AGE:
        from cisfs.keys.age import ScryptRecipient

        if isinstance(recipient, ScryptRecipient):
            return recipient.passphrase
    return None


def reopened(
    slots: Sequence[SlotFields], opener: Opener, recipients: Recipients, identifier: bytes
) -> SecretKey | None:
    """Return the master key in slots that an earlier run made, None if nothing opens them.

    Tried are what opened the old layer, and the secrets among the recipients.
    """
    secrets = [secret_of(each) for each in _several(recipients)]
    for each in [*_without_asking(opener), *(each for each in secrets if each is not None)]:
        try:
            return open_slots(slots, each, identifier)
        except CisfsError:
            continue
    return None


def are_for(
    slots: Sequence[SlotFields], recipients: Recipients, master: SecretKey, identifier: bytes
) -> bool:
    """Tell whether slots of `master` are for these recipients, one each, and for nobody else.

    Raises CisfsError when a device or service fails.
    """
    left = list(slots)
    for recipient in _several(recipients):
        found = next((slot for slot in left if _is_for(slot, recipient, master, identifier)), None)
        if found is None:
            return False
        left.remove(found)
    return not left


def _is_for(
    slot: SlotFields, recipient: Credential | Recipient, master: SecretKey, identifier: bytes
) -> bool:
    secret, kind = secret_of(recipient), _slot_type(recipient)
    if slot["type"] != kind:
        return False
    if secret is None:
        told = slot.get("recipient")
        # What is told of a passphrase in age's way is the same for all of them.
        return told != AGE_SCRYPT and told == new_slot(master, recipient, identifier)["recipient"]
    try:
        return open_slots([slot], secret, identifier) == master
    except CisfsError:
        return False


def _slot_type(recipient: Credential | Recipient) -> str:
    if isinstance(recipient, Passphrase):
        return TYPE_PASSPHRASE
    return TYPE_KEY_FILE if isinstance(recipient, RawKey) else recipient.type


def _without_asking(opener: Opener) -> list[Opener]:
    if isinstance(opener, MasterKey):
        return []  # the old one's
    if not isinstance(opener, Identities):
        return [opener]
    return [Identities(_offered(opener))]


def _offered(opener: Identities) -> tuple[Identity | Credential, ...]:
    """Return what is offered, with what was typed."""
    typed = opener.ask.answer if isinstance(opener.ask, _Once) else None
    return opener.offered if typed is None else (*opener.offered, typed)


def _several(recipients: Recipients) -> Sequence[Credential | Recipient]:
    return recipients if isinstance(recipients, Sequence) else (recipients,)
