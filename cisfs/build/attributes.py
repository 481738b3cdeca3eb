"""Extended attributes of a source: read from pax records, and those that an image can have.

Knows of the values only what the kernel interprets whenever it reads them.  Pure functions; safe
anywhere.
"""

from __future__ import annotations

import binascii
import stat
import struct
from collections.abc import Mapping
from urllib.parse import unquote_to_bytes

from cisfs.build.index import quoted
from cisfs.build.pax import Records
from cisfs.errors import FormatError

# include/uapi/linux/limits.h; a value's size is a 16-bit field in EROFS
_NAME_MAX = 255
_VALUE_MAX = 65535
_NAMES_MAX = 65536

_SCHILY = b"SCHILY.xattr."
_LIBARCHIVE = b"LIBARCHIVE.xattr."
_TEXT_ACL = b"SCHILY.acl."

_ACCESS_ACL, _DEFAULT_ACL = b"system.posix_acl_access", b"system.posix_acl_default"
# Of overlayfs's own, those by which a layer says something of the ones below it; the others are
# about the very upper directory that they are found in.
_OVERLAY = b"trusted.overlay."
_OF_LAYERS = frozenset({b"trusted.overlay.opaque", b"trusted.overlay.redirect"})
_METADATA_ONLY = b"trusted.overlay.metacopy"
_CAPABILITY = b"security.capability"
# include/uapi/linux/capability.h: (VFS_CAP_REVISION_2 or _3, size); the flags are the low byte
_CAPABILITIES = {(2, 20), (3, 24)}
# include/uapi/linux/posix_acl_xattr.h: version 2, and entries of (tag, permissions, id)
_ACL_HEADER, _ACL_ENTRY = struct.Struct("<I"), struct.Struct("<HHI")
_ACL_VERSION = 2
_ACL_TAGS = {0x01, 0x02, 0x04, 0x08, 0x10, 0x20}
_ACL_SIZE_MAX = 4096  # what the kernel reads of one through FUSE (fs/fuse/acl.c)


def from_records(records: Records) -> dict[bytes, bytes]:
    """Return the attributes in pax records.  Raises FormatError.

    GNU tar, star and Go write SCHILY.xattr; libarchive writes both, with the same values.  GNU tar
    spells "=" and "%" in names as URLs do, which a keyword could not hold otherwise.
    """
    found = {}
    for keyword, value in records:
        if keyword.startswith(_SCHILY):
            name = keyword.removeprefix(_SCHILY)
            found[name.replace(b"%3D", b"=").replace(b"%25", b"%")] = value
        elif keyword.startswith(_LIBARCHIVE):
            name = unquote_to_bytes(keyword.removeprefix(_LIBARCHIVE))
            found[name] = _decoded(name, value)
    return found


def has_text_acl(records: Records) -> bool:
    """Whether there are ACLs as text, whose names mean something on their own machine only."""
    return any(keyword.startswith(_TEXT_ACL) for keyword, _ in records)


def proper(mode: int, xattrs: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
    """Return those that Linux lets a file of this kind have.

    Raises FormatError for what it could not read back: too much, or capabilities and ACLs that are
    none, which would end the making of the image without a word of the file.
    """
    if _METADATA_ONLY in xattrs:
        raise FormatError("is an overlay's copy of attributes, without the content of the file")
    kept = {name: value for name, value in xattrs.items() if _may_have(mode, name)}
    for name, value in kept.items():
        if len(name) > _NAME_MAX or len(value) > _VALUE_MAX or b"\0" in name:
            raise FormatError(f"has the extended attribute {quoted(name)}, which is too long")
        if not _is_readable(name, value):
            raise FormatError(f"has a malformed extended attribute {quoted(name)}")
    if sum(len(name) + 1 for name in kept) > _NAMES_MAX:
        raise FormatError("has too many extended attributes")
    return kept


def _may_have(mode: int, name: bytes) -> bool:
    """See xattr(7) and acl(5)."""
    if name.startswith(b"user."):
        return stat.S_ISREG(mode) or stat.S_ISDIR(mode)
    if name == _ACCESS_ACL:
        return not stat.S_ISLNK(mode)
    if name == _DEFAULT_ACL:
        return stat.S_ISDIR(mode)
    if name.startswith(_OVERLAY):
        return name in _OF_LAYERS
    return name.startswith((b"trusted.", b"security."))


def _is_readable(name: bytes, value: bytes) -> bool:
    if name == _CAPABILITY:
        return (value[3] if len(value) > 3 else 0, len(value)) in _CAPABILITIES
    if name in (_ACCESS_ACL, _DEFAULT_ACL):
        return _is_acl(value)
    return not name.endswith(b".")


def _is_acl(value: bytes) -> bool:
    header, entries = value[: _ACL_HEADER.size], value[_ACL_HEADER.size :]
    whole = entries and len(value) <= _ACL_SIZE_MAX and not len(entries) % _ACL_ENTRY.size
    if not whole or _ACL_HEADER.unpack(header) != (_ACL_VERSION,):
        return False
    return all(tag in _ACL_TAGS for tag, _, _ in _ACL_ENTRY.iter_unpack(entries))


def _decoded(name: bytes, value: bytes) -> bytes:
    try:
        return binascii.a2b_base64(value + b"==")
    except binascii.Error:
        raise FormatError(f"has a malformed extended attribute {quoted(name)}") from None
