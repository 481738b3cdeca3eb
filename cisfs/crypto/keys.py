"""Key material and its derivation: one master key, and everything HKDF-SHA-256 makes of it.

Does not know where a master key comes from (`cisfs.keys`) nor what the derived keys are used on.
Immutable values and pure functions; safe anywhere.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from dataclasses import dataclass, field

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

KEY_SIZE = 32
ID_SIZE = 16

# The labels separate the derived keys from each other.  Changing one makes every existing vault or
# sealed layer unreadable; tests/unit/test_keys.py pins them.
LABEL_HEADER = b"cisfs v1 vault header"
LABEL_NAMES = b"cisfs v1 names"
LABEL_SYMLINKS = b"cisfs v1 symlinks"
LABEL_XATTR_NAMES = b"cisfs v1 xattr names"
LABEL_XATTR_VALUES = b"cisfs v1 xattr values"
LABEL_JOURNAL = b"cisfs v1 journal"
LABEL_FILE = b"cisfs v1 file"
LABEL_KEY_FILE_SLOT = b"cisfs v1 key-file slot"
LABEL_LAYER_HEADER = b"cisfs v1 layer header"
LABEL_LAYER_UNITS = b"cisfs v1 layer units"
LABEL_LAYER_SLOTS = b"cisfs v1 layer slots"
LABEL_SCRATCH = b"cisfs v1 scratch"
LABEL_ROTATION = b"cisfs v1 rotation"


class SecretKey:
    """Key bytes that show only a fingerprint of themselves in repr, str and tracebacks."""

    __slots__ = ("_secret",)

    def __init__(self, secret: bytes) -> None:
        """Wrap `secret` (any length; the caller has checked it)."""
        self._secret = bytes(secret)

    @classmethod
    def generate(cls) -> SecretKey:
        """Draw a fresh 32-byte key from the operating system."""
        return cls(secrets.token_bytes(KEY_SIZE))

    def reveal(self) -> bytes:
        """Return the key bytes, for a cipher or a key derivation and nothing else."""
        return self._secret

    def __repr__(self) -> str:
        digest = hashlib.sha256(b"cisfs fingerprint" + self._secret).hexdigest()
        return f"<SecretKey {digest[:8]}>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, SecretKey):
            return NotImplemented
        return hmac.compare_digest(self._secret, other._secret)

    def __hash__(self) -> int:
        return hash((SecretKey, self._secret))

    def __reduce__(self) -> str:
        raise TypeError("a SecretKey is not pickled")


def derive(master: SecretKey, salt: bytes, info: bytes, length: int) -> bytes:
    """HKDF-SHA-256 (RFC 5869) of the master key: `length` bytes for `salt` and `info`."""
    return HKDF(hashes.SHA256(), length, salt, info).derive(master.reveal())


@dataclass(frozen=True, slots=True)
class VaultKeys:
    """The keys of one vault, all derived from its master key and its 16-byte vault id."""

    master: SecretKey
    header_mac: bytes = field(repr=False)  # 32 bytes, HMAC-SHA-256
    names: bytes = field(repr=False)  # 64 bytes, AES-256-SIV
    symlinks: bytes = field(repr=False)  # 64 bytes, AES-256-SIV
    xattr_names: bytes = field(repr=False)  # 32 bytes, keyed BLAKE3
    xattr_values: bytes = field(repr=False)  # 64 bytes, AES-256-SIV
    journal: bytes = field(repr=False)  # 32 bytes, keyed BLAKE3

    @classmethod
    def derive(cls, master: SecretKey, vault_id: bytes) -> VaultKeys:
        """Derive every vault-wide key; per-file keys come from `file_keys`."""
        return cls(
            master=master,
            header_mac=derive(master, vault_id, LABEL_HEADER, 32),
            names=derive(master, vault_id, LABEL_NAMES, 64),
            symlinks=derive(master, vault_id, LABEL_SYMLINKS, 64),
            xattr_names=derive(master, vault_id, LABEL_XATTR_NAMES, 32),
            xattr_values=derive(master, vault_id, LABEL_XATTR_VALUES, 64),
            journal=derive(master, vault_id, LABEL_JOURNAL, 32),
        )


def file_keys(master: SecretKey, file_id: bytes, header_fields: bytes) -> tuple[bytes, bytes]:
    """Return the (64-byte AES-256-XTS key, 32-byte tag key) of one file.

    `header_fields` is the file header without the id: a header altered in any bit gives other
    keys, and then no tag of the file verifies.
    """
    okm = derive(master, file_id, LABEL_FILE + header_fields, 96)
    return okm[:64], okm[64:]


def scratch_key(master: SecretKey, owner_id: bytes) -> SecretKey:
    """Return the key-file key of scratches that belong to the vault or layer `owner_id`."""
    return SecretKey(derive(master, owner_id, LABEL_SCRATCH, KEY_SIZE))


def rotation_key(new: SecretKey, old: SecretKey, new_id: bytes) -> bytes:
    """Return the 32-byte HMAC-SHA-256 key of what an unfinished rotation says of itself.

    It takes both master keys: who knows a recipient's public key can wrap a new one of their own
    for it, and must not have the content encrypted under that.
    """
    return derive(SecretKey(new.reveal() + old.reveal()), new_id, LABEL_ROTATION, KEY_SIZE)


def rotated_key(new: SecretKey, new_id: bytes) -> bytes:
    """Return the 32-byte HMAC-SHA-256 key of what a rotation that is over leaves to be removed."""
    return derive(new, new_id, LABEL_ROTATION, KEY_SIZE)


@dataclass(frozen=True, slots=True)
class LayerKeys:
    """The keys of one sealed layer, derived from its layer key and its 16-byte layer id."""

    scratch: SecretKey  # opens persistent scratches made for the layer's containers
    header_mac: bytes = field(repr=False)  # 32 bytes, HMAC-SHA-256
    slots_mac: bytes = field(repr=False)  # 32 bytes, HMAC-SHA-256
    units: bytes = field(repr=False)  # 64 bytes, AES-256-XTS

    @classmethod
    def derive(cls, master: SecretKey, layer_id: bytes) -> LayerKeys:
        """Derive them; `master` is the layer key, drawn afresh for each layer."""
        return cls(
            scratch=scratch_key(master, layer_id),
            header_mac=derive(master, layer_id, LABEL_LAYER_HEADER, 32),
            slots_mac=derive(master, layer_id, LABEL_LAYER_SLOTS, 32),
            units=derive(master, layer_id, LABEL_LAYER_UNITS, 64),
        )
