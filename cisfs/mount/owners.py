"""Owners as a vault's server shows them to a container with a user namespace: moved by a number.

The kernel moves those of every other file system of a container by itself (`cisfs.mount.idmap`); a
FUSE server would have to tell it that it may, which pyfuse3 has no way to say.

Pure functions over ids and extended attributes; does not know requests.  Safe anywhere.
"""

from __future__ import annotations

import struct

from cisfs.mount.idmap import SIZE

NOBODY = 65_534  # of the host, where the kernel shows what has no id; and in the container, too

_ACL_NAMES = frozenset((b"system.posix_acl_access", b"system.posix_acl_default"))
# <linux/posix_acl_xattr.h>: a version, then of each entry its tag, permissions and id.
_ACL_HEADER = struct.Struct("<I")
_ACL_ENTRY = struct.Struct("<HHI")
_ACL_NAMED = frozenset((0x02, 0x08))  # a user's and a group's: the others have no id


def moved(number: int, first: int) -> int:
    """Return the id of the host for an id of the container, whose 0 is `first`."""
    return first + number if number < SIZE else NOBODY


def moved_attribute(name: bytes, value: bytes, first: int) -> bytes:
    """Return an extended attribute with the ids in it moved, if it is an ACL."""
    body = value[_ACL_HEADER.size :]
    if name not in _ACL_NAMES or len(body) % _ACL_ENTRY.size:
        return value
    entries = (
        _ACL_ENTRY.pack(tag, rights, moved(number, first) if tag in _ACL_NAMED else number)
        for tag, rights, number in _ACL_ENTRY.iter_unpack(body)
    )
    return value[: _ACL_HEADER.size] + b"".join(entries)
