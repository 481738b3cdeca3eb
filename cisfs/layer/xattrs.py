"""Extended attributes of backing objects, name and value encrypted: docs/FORMAT.md, section 6.

POSIX ACLs are permissions, like the mode, and stay the backing file system's own.  Objects are
named by path here because Linux has no *at() calls for xattrs; the paths start at a descriptor.
Knows neither nodes nor FUSE.  One thread at a time.
"""

from __future__ import annotations

import errno
import os
import stat

from cisfs.crypto.names import NameCipher
from cisfs.errors import IntegrityError
from cisfs.format.names import (
    NAME_MAX,
    ROOT_XATTR_PREFIX,
    XATTR_PREFIX,
    encode,
    pack_xattr,
    parse_xattr,
)

Target = bytes | int

ACL_NAMES = frozenset({b"system.posix_acl_access", b"system.posix_acl_default"})


class Xattrs:
    """Reads and writes the extended attributes of one vault's objects.

    `target` is the backing object, a path (whose last component is not followed) or a descriptor,
    `owner_id` the 16 bytes that its attributes are bound to.
    """

    __slots__ = ("_cipher",)

    def __init__(self, cipher: NameCipher) -> None:
        self._cipher = cipher

    def get(self, target: Target, mode: int, owner_id: bytes, name: bytes) -> bytes:
        """Return a value.  Raises OSError (ENODATA if absent), IntegrityError, FormatError."""
        if name in ACL_NAMES:
            return os.getxattr(target, name, follow_symlinks=_follow(target))
        stored = self._stored(mode, owner_id, name)
        content = os.getxattr(target, stored, follow_symlinks=_follow(target))
        return self._open(owner_id, name, content)

    def set(self, target: Target, mode: int, owner_id: bytes, name: bytes, value: bytes) -> None:
        """Set a value.  Raises OSError."""
        if name in ACL_NAMES:
            os.setxattr(target, name, value, follow_symlinks=_follow(target))
            return
        stored = self._stored(mode, owner_id, name)
        sealed = self._cipher.encrypt_xattr(owner_id, pack_xattr(name, value))
        os.setxattr(target, stored, sealed, follow_symlinks=_follow(target))

    def remove(self, target: Target, mode: int, owner_id: bytes, name: bytes) -> None:
        """Remove an attribute.  Raises OSError (ENODATA if absent)."""
        stored = name if name in ACL_NAMES else self._stored(mode, owner_id, name)
        os.removexattr(target, stored, follow_symlinks=_follow(target))

    def names(self, target: Target, mode: int, owner_id: bytes) -> list[bytes]:
        """Return the names of all attributes.  Raises OSError, IntegrityError, FormatError."""
        names = []
        for stored in os.listxattr(target, follow_symlinks=_follow(target)):
            if stored.startswith(_prefix(mode)):
                content = os.getxattr(target, stored, follow_symlinks=_follow(target))
                names.append(parse_xattr(self._cipher.decrypt_xattr(owner_id, content))[0])
            elif os.fsencode(stored) in ACL_NAMES:
                names.append(os.fsencode(stored))
        return names

    def _stored(self, mode: int, owner_id: bytes, name: bytes) -> str:
        if not 0 < len(name) <= NAME_MAX:
            raise OSError(errno.ERANGE, os.strerror(errno.ERANGE))
        return _prefix(mode) + encode(self._cipher.xattr_id(owner_id, name)).decode("ascii")

    def _open(self, owner_id: bytes, name: bytes, content: bytes) -> bytes:
        found, value = parse_xattr(self._cipher.decrypt_xattr(owner_id, content))
        if found != name:
            raise IntegrityError("an extended attribute was exchanged with another")
        return value


def has_own(target: Target) -> bool:
    """Tell whether a backing object has any attribute of ours.  Raises OSError."""
    stored = os.listxattr(target, follow_symlinks=_follow(target))
    return any(name.startswith((XATTR_PREFIX, ROOT_XATTR_PREFIX)) for name in stored)


def _follow(target: Target) -> bool:
    """A path is not followed; for a descriptor Python takes no such wish."""
    return isinstance(target, int)


def _prefix(mode: int) -> str:
    """Linux keeps user.* attributes on files and directories only; root has trusted.* anywhere."""
    ordinary = stat.S_ISREG(mode) or stat.S_ISDIR(mode)
    return XATTR_PREFIX if ordinary else ROOT_XATTR_PREFIX
