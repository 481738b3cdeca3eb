"""How encrypted names, symlink targets and xattrs are spelled on disk: docs/FORMAT.md, section 5.

Base64url (RFC 4648, section 5) without padding.  It has no ".", so every name with a dot is
reserved for cisfs's own files.  Knows no keys and no I/O.  Pure functions; safe anywhere.
"""

from __future__ import annotations

import binascii
import hashlib
from base64 import urlsafe_b64decode, urlsafe_b64encode

from cisfs.errors import FormatError

VAULT_FILE = b"vault.json"
NEW_VAULT_FILE = b"vault.json.new"  # on its way to that name
JOURNAL_FILE = b"cisfs.journal"
DIRECTORY_FILE = b"cisfs.dir"
LONG_PREFIX = b"cisfs.long."
LONG_NAME_PREFIX = b"cisfs.name."
XATTR_PREFIX = "user.cisfs."
ROOT_XATTR_PREFIX = "trusted.cisfs."

NAME_MAX = 255  # bytes in a name, on either side
TARGET_NONCE_SIZE = 16
TARGET_OVERHEAD = TARGET_NONCE_SIZE + 16
TARGET_MAX = 4095 * 3 // 4 - TARGET_OVERHEAD  # 3039: what fits in a backing symlink


def encode(cipher: bytes) -> bytes:
    """Spell ciphertext as base64url without padding."""
    return urlsafe_b64encode(cipher).rstrip(b"=")


def decode(text: bytes) -> bytes:
    """Read base64url back; FormatError for anything that `encode` does not write."""
    try:
        cipher = urlsafe_b64decode(text + b"=" * (-len(text) % 4))
    except (binascii.Error, ValueError):
        raise FormatError("an encrypted name is not base64url") from None
    if encode(cipher) != text:
        raise FormatError("an encrypted name is not in its one right spelling")
    return cipher


def is_reserved(stored: bytes) -> bool:
    """Tell whether a stored name is one of cisfs's own, or no encrypted name at all."""
    return b"." in stored and not stored.startswith(LONG_PREFIX)


def is_helper(stored: bytes) -> bool:
    """Tell whether a stored name is that of a file which only serves other entries."""
    return stored == DIRECTORY_FILE or stored.startswith(LONG_NAME_PREFIX)


def is_long(stored: bytes) -> bool:
    """Tell whether a stored name only points to the file that holds the encrypted name."""
    return stored.startswith(LONG_PREFIX)


def long_name(spelled: bytes) -> bytes:
    """The stored name that stands for a spelled name of more than 255 bytes."""
    return LONG_PREFIX + encode(hashlib.sha256(spelled).digest())


def sidecar(stored: bytes) -> bytes:
    """The name of the file that holds what the long stored name stands for."""
    return LONG_NAME_PREFIX + stored.removeprefix(LONG_PREFIX)


def target_size(stored_size: int) -> int:
    """Bytes in a symlink's target, from the size of the stored one; 0 if that is damaged."""
    return max(0, stored_size * 3 // 4 - TARGET_OVERHEAD)


def pack_xattr(name: bytes, value: bytes) -> bytes:
    """Join an xattr's name (1 to 255 bytes) and value into the plaintext that is stored."""
    return bytes([len(name)]) + name + value


def parse_xattr(content: bytes) -> tuple[bytes, bytes]:
    """Split what `pack_xattr` joined; FormatError if it cannot be split."""
    length = content[0] if content else 0
    if length == 0 or len(content) < 1 + length:
        raise FormatError("a stored extended attribute is damaged")
    return content[1 : 1 + length], content[1 + length :]
