"""The recipients of existing key slots, so that another key can be wrapped for the same ones.

What a slot says of its recipient is the caller's to authenticate first.  A passphrase or key file
cannot be told from its slot: it has to be given again.  One thread.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from cisfs.errors import UsageError, WrongKeyError
from cisfs.format.config import SlotFields
from cisfs.format.said import repeatable
from cisfs.keys.credentials import Credential, Passphrase
from cisfs.keys.slots import AGE_SCRYPT, TYPE_AGE, open_slots, slot_id
from cisfs.keys.wrapping import Recipient

_PROVIDER = "provider:"


def recipients_of(
    slots: Iterable[SlotFields],
    secrets: Sequence[Credential],
    identifier: bytes,
    dropped: Collection[str] = (),
) -> list[Credential | Recipient]:
    """Return one recipient for each slot whose id is not among the `dropped`.

    `secrets` are tried on the slots that take one, and may open several.  Raises UsageError that
    names the slots for which there is none; FormatError, CisfsError for what a slot says.
    """
    found: list[Credential | Recipient] = []
    lost = []
    for slot in slots:
        if slot_id(slot) in dropped:
            continue
        recipient = _recipient(slot) or _secret(slot, secrets, identifier)
        if recipient is None:
            lost.append(f"{slot_id(slot)} ({repeatable(str(slot['type']))})")
        elif recipient not in found:
            found.append(recipient)
    if lost:
        raise UsageError(
            f"these key slots can only be made again by who knows their secret: {', '.join(lost)}; "
            "give it, or drop them with --drop ID"
        )
    return found


def _secret(
    slot: SlotFields, secrets: Sequence[Credential], identifier: bytes
) -> Credential | Recipient | None:
    for secret in secrets:
        try:
            open_slots([slot], secret, identifier)
        except WrongKeyError:
            continue
        if isinstance(secret, Passphrase) and slot["type"] == TYPE_AGE:
            from cisfs.keys.age import ScryptRecipient

            return ScryptRecipient(secret)
        return secret
    return None


def _recipient(slot: SlotFields) -> Recipient | None:
    kind, told = str(slot["type"]), slot.get("recipient")
    if told is None:  # nobody with the key vouches for it (docs/FORMAT.md, section 10)
        return None
    if kind == "jwe":
        from cisfs.keys.jwe import JweRecipient
        from cisfs.keys.keypairs import PublicKey

        return JweRecipient(PublicKey.from_text(told))
    if kind == TYPE_AGE and told != AGE_SCRYPT:
        from cisfs.keys.age import AgeRecipient

        return AgeRecipient.parse(str(told))
    if kind == "pkcs11":
        from cisfs.keys.pkcs11 import Pkcs11Recipient

        return Pkcs11Recipient.from_stored(told)
    if kind.startswith(_PROVIDER):
        from cisfs.keys.provider import ProviderRecipient

        return ProviderRecipient(kind.removeprefix(_PROVIDER), str(told))
    return None
