"""Key slots: one wrapped copy of a master key each, and what unwraps it (docs/FORMAT.md, 2.1).

Does not know where slots are stored nor where credentials come from.  Pure functions; Argon2id
takes its memory for the time of one call.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.argon2 import Argon2id

from cisfs.crypto.keys import KEY_SIZE, LABEL_KEY_FILE_SLOT, SecretKey, derive
from cisfs.errors import (
    CisfsError,
    FormatError,
    IntegrityError,
    NoMemoryError,
    UsageError,
    WrongKeyError,
)
from cisfs.format.config import MAX_SLOTS, SlotFields, b64, canonical, from_b64
from cisfs.keys.credentials import (
    Credential,
    Identities,
    MasterKey,
    Opener,
    Passphrase,
    RawKey,
    Recipients,
)
from cisfs.keys.wrapping import Identity, Recipient, master_in, packet

TYPE_PASSPHRASE = "passphrase"  # noqa: S105 - a type of slot, not a secret
TYPE_KEY_FILE = "key-file"
TYPE_AGE, AGE_SCRYPT = "age", "scrypt"  # the recipient of age's slots that take a passphrase

Slots = tuple[SlotFields, ...]
# From the master key and the vault's or layer's id to what makes new slots of those that it has.
SlotChange = Callable[[SecretKey, bytes], Callable[[Slots], Slots]]

# RFC 9106, section 4, the second recommended option: 64 MiB, three passes, four lanes.  Where that
# takes less than the time below, passes are added until it does not.
ITERATIONS = 3
LANES = 4
MEMORY_KIB = 64 * 1024
CALIBRATED_SECONDS = 0.5

# A hostile vault.json must not make us allocate or compute without bound.
_MOST = {"iterations": 64, "lanes": 64, "memory_kib": 4 * 1024 * 1024}
_PUBLIC = ("type", "recipient", "kdf", "iterations", "lanes", "memory_kib")
_ID_DIGITS = 12
_SALT_SIZE = 16
_NONCE_SIZE = 12
_AAD_LABEL = b"cisfs v1 key slot"


def new_slot(master: SecretKey, recipient: Credential | Recipient, vault_id: bytes) -> SlotFields:
    """Wrap the master key for a recipient; returns the slot's fields.

    Raises CisfsError when a device or service fails.
    """
    if not isinstance(recipient, (Passphrase, RawKey)):
        return {"type": recipient.type, **recipient.wrap(packet(master, vault_id))}
    credential = recipient
    salt = b64(secrets.token_bytes(_SALT_SIZE))
    fields: dict[str, str | int]
    if isinstance(credential, Passphrase):
        fields, wrapping_key = _calibrated(credential, salt)
    else:
        fields = {"type": TYPE_KEY_FILE, "salt": salt}
        wrapping_key = _wrapping_key(fields, credential)
    nonce = secrets.token_bytes(_NONCE_SIZE)
    wrapped = AESGCM(wrapping_key).encrypt(nonce, master.reveal(), _aad(fields, vault_id))
    return {**fields, "wrapped": b64(nonce + wrapped)}


def new_slots(master: SecretKey, recipients: Recipients, identifier: bytes) -> list[SlotFields]:
    """Return a slot for each of the recipients; `identifier` is the vault's or layer's id.

    Raises ValueError for none, UsageError for more than can be read again, CisfsError when a device
    or service fails.
    """
    several = recipients if isinstance(recipients, Sequence) else (recipients,)
    if not several:
        raise ValueError("no recipient: nothing would open it again")
    if len(several) > MAX_SLOTS:
        raise UsageError(f"{len(several)} recipients; there is room for {MAX_SLOTS}")
    return [new_slot(master, recipient, identifier) for recipient in several]


def open_slots(slots: Iterable[SlotFields], opener: Opener, vault_id: bytes) -> SecretKey:
    """Return the master key from the first slot that `opener` opens, or the one offered.

    The latter is not checked here: see whether it authenticates the header (`unauthentic`).  Raises
    WrongKeyError if no slot opens; the message says what was tried, and what kinds of key would.
    With a credential, what is wrong with a slot of its kind is raised instead: FormatError,
    NoMemoryError, another CisfsError for what is missing here.
    """
    if isinstance(opener, MasterKey):
        return opener.secret
    held = list(slots)
    if isinstance(opener, Identities):
        return _open_with_any(held, opener, vault_id)
    wanted = _secret_type(opener)
    suiting = [slot for slot in held if _suits(opener, slot)]
    failure: CisfsError | None = None
    for slot in suiting:
        try:
            return _opened(slot, opener, vault_id)
        except (InvalidTag, WrongKeyError):
            continue
        except CisfsError as error:  # of this slot; another may do
            failure = error
    if failure is not None:
        raise failure
    if suiting:
        raise WrongKeyError(f"wrong {_in_words(wanted)}")
    raise WrongKeyError(f"no key slot takes a {wanted}; {_kinds(held)}")


def _open_with_any(slots: list[SlotFields], opener: Identities, vault_id: bytes) -> SecretKey:
    tried = []
    for each in opener.offered:
        found = _try(slots, each, vault_id)
        if isinstance(found, SecretKey):
            return found
        tried.append(found)
    if opener.ask is not None and any(_takes_passphrase(slot) for slot in slots):
        return open_slots(slots, opener.ask(), vault_id)
    offered = "; ".join(tried) or "nothing"
    raise WrongKeyError(f"no key slot opens; tried: {offered}; {_kinds(slots)}")


def in_words(slot: SlotFields) -> str:
    """Return for whom a slot is, as far as it says, in a few words."""
    recipient = str(slot.get("recipient", ""))
    if slot["type"] in ("jwe", "pkcs11"):
        from cisfs.keys.keypairs import PublicKey

        try:
            key = PublicKey.from_text(recipient)
        except FormatError:
            return "damaged"
        return f"{key.members.get('crv', key.members['kty'])} key {key.fingerprint}"
    return ascii(recipient)[1:-1]


def _try(
    slots: list[SlotFields], offered: Identity | Credential, vault_id: bytes
) -> SecretKey | str:
    """Return the master key from a slot that `offered` opens, or in words why there is none."""
    why = "no slot for it"
    for slot in slots:
        if not _suits(offered, slot):
            continue
        why = "it opens none of its slots"
        try:
            return _opened(slot, offered, vault_id)
        except (InvalidTag, WrongKeyError):
            continue
        except CisfsError as error:  # of this slot or this device; another may do
            why = str(error)
    return f"{_name(offered)} ({why})"


def _suits(offered: Identity | Credential, slot: SlotFields) -> bool:
    if isinstance(offered, Passphrase):
        return _takes_passphrase(slot)
    if isinstance(offered, RawKey):
        return slot["type"] == TYPE_KEY_FILE
    return offered.suits(slot)


def _takes_passphrase(slot: SlotFields) -> bool:
    is_of_age = slot["type"] == TYPE_AGE and slot.get("recipient") == AGE_SCRYPT
    return slot["type"] == TYPE_PASSPHRASE or is_of_age


def _opened(slot: SlotFields, offered: Identity | Credential, vault_id: bytes) -> SecretKey:
    """Return the master key in a slot that suits; InvalidTag or WrongKeyError if it does not."""
    if isinstance(offered, Passphrase) and slot["type"] == TYPE_AGE:
        from cisfs.keys.age import ScryptIdentity

        offered = ScryptIdentity(offered)
    if isinstance(offered, (Passphrase, RawKey)):
        return _unwrap(slot, offered, vault_id)
    return master_in(offered.unwrap(slot), vault_id)


def _name(offered: Identity | Credential) -> str:
    if isinstance(offered, (Passphrase, RawKey)):
        return _in_words(_secret_type(offered))
    return offered.name


def _secret_type(credential: Credential) -> str:
    return TYPE_PASSPHRASE if isinstance(credential, Passphrase) else TYPE_KEY_FILE


def _in_words(slot_type: str) -> str:
    return slot_type.replace("-", " ")


def _kinds(slots: list[SlotFields]) -> str:
    return "the slots here take: " + ", ".join(ascii(slot["type"])[1:-1] for slot in slots)


def unauthentic(opener: Opener, path: Path | str, altered: str) -> CisfsError:
    """Return what to raise when what is stored at `path` is not authentic under the master key.

    A master key out of a slot is the right one, so something was `altered`.  One that was kept
    since it was unlocked may be that of an earlier layer with the same id.
    """
    if isinstance(opener, MasterKey):
        return WrongKeyError(
            f"the unlocked key of {path} is stale; unlock it again with: cisfs unlock {path}"
        )
    return IntegrityError(altered)


def slot_id(slot: SlotFields) -> str:
    """Return what a slot is told from the others by: 12 hexadecimal digits of its SHA-256."""
    return hashlib.sha256(canonical(dict(slot))).hexdigest()[:_ID_DIGITS]


def describe_slots(slots: Iterable[SlotFields]) -> list[dict[str, str | int]]:
    """Return what the slots say to anyone: what kind of key opens each, and at what cost."""
    return [
        {"id": slot_id(slot), **{key: slot[key] for key in _PUBLIC if key in slot}}
        for slot in slots
    ]


def _unwrap(slot: SlotFields, credential: Credential, vault_id: bytes) -> SecretKey:
    wrapped = from_b64(slot.get("wrapped"), "a key slot's wrapped key")
    if len(wrapped) != _NONCE_SIZE + KEY_SIZE + 16:
        raise FormatError("a key slot's wrapped key has a wrong length")
    nonce, cipher = wrapped[:_NONCE_SIZE], wrapped[_NONCE_SIZE:]
    wrapping_key = _wrapping_key(slot, credential)
    return SecretKey(AESGCM(wrapping_key).decrypt(nonce, cipher, _aad(slot, vault_id)))


def _calibrated(passphrase: Passphrase, salt: str) -> tuple[dict[str, str | int], bytes]:
    """Return a passphrase slot's fields, as costly as this machine makes bearable, and its key."""
    fields: dict[str, str | int] = {
        "type": TYPE_PASSPHRASE,
        "kdf": "argon2id",
        "iterations": ITERATIONS,
        "lanes": LANES,
        "memory_kib": MEMORY_KIB,
        "salt": salt,
    }
    begin = time.perf_counter()
    key = _wrapping_key(fields, passphrase)
    took = time.perf_counter() - begin
    times = min(int(CALIBRATED_SECONDS / took), _MOST["iterations"] // ITERATIONS)
    if times <= 1:
        return fields, key
    fields["iterations"] = ITERATIONS * times
    return fields, _wrapping_key(fields, passphrase)


def _aad(slot: SlotFields, vault_id: bytes) -> bytes:
    fields = {key: value for key, value in slot.items() if key != "wrapped"}
    return _AAD_LABEL + vault_id + canonical(fields)


def _wrapping_key(slot: SlotFields, credential: Credential) -> bytes:
    salt = from_b64(slot.get("salt"), "a key slot's salt")
    if len(salt) != _SALT_SIZE:
        raise FormatError("a key slot's salt has a wrong length")
    if not isinstance(credential, Passphrase):
        return derive(SecretKey(credential.secret), salt, LABEL_KEY_FILE_SLOT, KEY_SIZE)
    if slot.get("kdf") != "argon2id":
        raise FormatError(f"a passphrase slot uses an unknown function, {slot.get('kdf')!r}")
    lanes, memory = _cost(slot, "lanes"), _cost(slot, "memory_kib")
    if memory < 8 * lanes:
        raise FormatError("a passphrase slot's memory_kib is less than 8 for each lane")
    kdf = Argon2id(
        salt=salt,
        length=KEY_SIZE,
        iterations=_cost(slot, "iterations"),
        lanes=lanes,
        memory_cost=memory,
    )
    try:
        return kdf.derive(credential.secret)
    except MemoryError:
        raise NoMemoryError(
            f"this key slot takes {memory // 1024} MiB of memory to try a passphrase, "
            "which is not to be had here"
        ) from None


def _cost(slot: SlotFields, name: str) -> int:
    value = slot.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _MOST[name]:
        raise FormatError(f"a passphrase slot's {name} is not from 1 to {_MOST[name]}")
    return value
