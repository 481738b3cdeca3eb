"""Key slots: one wrapped copy of a master key each, and what unwraps it (docs/FORMAT.md, 2.1).

Does not know where slots are stored nor where credentials come from.  Pure functions; Argon2id
takes its memory for the time of one call.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterable
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
    WrongKeyError,
)
from cisfs.format.config import SlotFields, b64, from_b64
from cisfs.keys.credentials import Credential, MasterKey, Opener, Passphrase

TYPE_PASSPHRASE = "passphrase"  # noqa: S105 - a type of slot, not a secret
TYPE_KEY_FILE = "key-file"

# RFC 9106, section 4, the second recommended option: 64 MiB, three passes, four lanes.
ITERATIONS = 3
LANES = 4
MEMORY_KIB = 64 * 1024

# A hostile vault.json must not make us allocate or compute without bound.
_MOST = {"iterations": 64, "lanes": 64, "memory_kib": 4 * 1024 * 1024}
_PUBLIC = ("type", "kdf", "iterations", "lanes", "memory_kib")
_SALT_SIZE = 16
_NONCE_SIZE = 12
_AAD_LABEL = b"cisfs v1 key slot"


def new_slot(master: SecretKey, credential: Credential, vault_id: bytes) -> SlotFields:
    """Wrap the master key for a credential; returns the slot's fields."""
    salt = b64(secrets.token_bytes(_SALT_SIZE))
    fields: dict[str, str | int]
    if isinstance(credential, Passphrase):
        fields = {
            "type": TYPE_PASSPHRASE,
            "kdf": "argon2id",
            "iterations": ITERATIONS,
            "lanes": LANES,
            "memory_kib": MEMORY_KIB,
            "salt": salt,
        }
    else:
        fields = {"type": TYPE_KEY_FILE, "salt": salt}
    nonce = secrets.token_bytes(_NONCE_SIZE)
    wrapping_key = _wrapping_key(fields, credential)
    wrapped = AESGCM(wrapping_key).encrypt(nonce, master.reveal(), _aad(fields, vault_id))
    return {**fields, "wrapped": b64(nonce + wrapped)}


def open_slots(slots: Iterable[SlotFields], opener: Opener, vault_id: bytes) -> SecretKey:
    """Return the master key from the first slot that the credential opens, or the one offered.

    The latter is not checked here: see whether it authenticates the header (`unauthentic`).  Raises
    WrongKeyError if no slot opens; the message says what kinds of key would.
    """
    if isinstance(opener, MasterKey):
        return opener.secret
    credential = opener
    wanted = TYPE_PASSPHRASE if isinstance(credential, Passphrase) else TYPE_KEY_FILE
    kinds = []
    for slot in slots:
        kinds.append(ascii(slot["type"])[1:-1])
        if slot["type"] != wanted:
            continue
        try:
            return _unwrap(slot, credential, vault_id)
        except InvalidTag:
            continue
    if wanted in kinds:
        raise WrongKeyError(f"wrong {wanted.replace('-', ' ')}")
    raise WrongKeyError(f"no key slot takes a {wanted}; the slots here take: {', '.join(kinds)}")


def unauthentic(opener: Opener, path: Path, altered: str) -> CisfsError:
    """Return what to raise when what is stored at `path` is not authentic under the master key.

    A master key out of a slot is the right one, so something was `altered`.  One that was kept
    since it was unlocked may be that of an earlier layer with the same id.
    """
    if isinstance(opener, MasterKey):
        return WrongKeyError(
            f"the unlocked key of {path} is stale; unlock it again with: cisfs unlock {path}"
        )
    return IntegrityError(altered)


def describe_slots(slots: Iterable[SlotFields]) -> list[dict[str, str | int]]:
    """Return what the slots say to anyone: what kind of key opens each, and at what cost."""
    return [{key: slot[key] for key in _PUBLIC if key in slot} for slot in slots]


def _unwrap(slot: SlotFields, credential: Credential, vault_id: bytes) -> SecretKey:
    wrapped = from_b64(slot.get("wrapped"), "a key slot's wrapped key")
    if len(wrapped) != _NONCE_SIZE + KEY_SIZE + 16:
        raise FormatError("a key slot's wrapped key has a wrong length")
    nonce, cipher = wrapped[:_NONCE_SIZE], wrapped[_NONCE_SIZE:]
    wrapping_key = _wrapping_key(slot, credential)
    return SecretKey(AESGCM(wrapping_key).decrypt(nonce, cipher, _aad(slot, vault_id)))


def _aad(slot: SlotFields, vault_id: bytes) -> bytes:
    fields = {key: value for key, value in slot.items() if key != "wrapped"}
    spelled = json.dumps(fields, sort_keys=True, separators=(",", ":")).encode("ascii")
    return _AAD_LABEL + vault_id + spelled


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
