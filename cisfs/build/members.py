"""The members of a tar, one after the other: ustar, GNU and pax headers in, values out.

`tarfile` decodes the header blocks.  What may precede a member's own (long names, pax records, maps
of sparse files) is read here: TarFile takes a damaged header for the end of the archive, reads as
much as a header asks it to, and recurses from each to the next.  Does not judge what a member says:
its name may lead anywhere.  One thread; a member is to be used before the next is asked for.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from tarfile import HeaderError, TarInfo

from cisfs.build import sparse
from cisfs.build.archive import Archive
from cisfs.build.index import quoted
from cisfs.build.pax import Records, parse_number, parse_records, parse_time
from cisfs.build.sparse import BLOCK, Segments
from cisfs.errors import FormatError

MAX_HEADERS = 1 << 20  # bytes of headers for one member: the largest attributes fit several times

_END = bytes(BLOCK)
_SECOND = 1_000_000_000
_POSIX_MAGIC = b"ustar\0"
_REGULAR = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE, tarfile.GNUTYPE_SPARSE)
_WITHOUT_CONTENT = (
    tarfile.LNKTYPE,
    tarfile.SYMTYPE,
    tarfile.CHRTYPE,
    tarfile.BLKTYPE,
    tarfile.DIRTYPE,
    tarfile.FIFOTYPE,
)
_GNU_DUMPDIR = b"D"  # a directory whose content is the list of its names
_GNU_VOLUME = b"V"  # the name of the archive
_PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
# What a global header may say; comments, mostly, are all there is in practice.
_GLOBAL = frozenset({b"path", b"linkpath", b"size", b"uid", b"gid", b"mtime"})


@dataclass(slots=True)
class Member:
    """One member.  `kind` is its type flag, with every kind of file a REGTYPE.

    `mode` has no type bits; `mtime_ns` is ns since the epoch; `size` is the file's in bytes and
    `stored` what the archive holds of it, which is `segments` of it if there are any.
    """

    name: bytes
    kind: bytes
    target: bytes
    mode: int
    uid: int
    gid: int
    mtime_ns: int
    device: tuple[int, int]
    size: int
    stored: int
    segments: Segments | None
    records: Records


@dataclass(slots=True)
class _Before:
    """What came before a member's header and is about it."""

    name: bytes | None = None
    target: bytes | None = None
    records: Records = field(default_factory=list)


class Members:
    """Iterates over an archive's members.

    When one is yielded, the archive is at its content; what is not read of that is passed over.
    Raises FormatError for anything that is not a whole tar, and what `Archive` raises.
    """

    def __init__(self, archive: Archive) -> None:
        self._archive = archive
        self._start = 0  # of the headers of the member being read
        self._global: dict[bytes, bytes] = {}

    def __iter__(self) -> Iterator[Member]:
        while (member := self._next()) is not None:
            content = self._archive.position
            yield member
            self._archive.skip(content + _padded(member.stored) - self._archive.position)
        if any(piece.strip(b"\0") for piece in self._archive.rest()):
            raise FormatError("something follows the end of the tar")

    def _next(self) -> Member | None:
        """Read up to the content of the next member; None at the end."""
        self._start = self._archive.position
        before = _Before()
        while True:
            block = self._block()
            if block == _END and before == _Before():
                return None
            try:
                info = TarInfo.frombuf(block, "utf-8", "surrogateescape")
            except HeaderError as error:
                raise FormatError(f"not a tar, or a damaged one: {error}") from None
            if not self._is_before(info, before):
                return self._member(block, info, before)

    def _is_before(self, info: TarInfo, before: _Before) -> bool:
        """Take in what is about the next member; False for a member itself."""
        if info.type == tarfile.GNUTYPE_LONGNAME:
            before.name = _text(self._data(info.size))
        elif info.type == tarfile.GNUTYPE_LONGLINK:
            before.target = _text(self._data(info.size))
        elif info.type in _PAX:
            before.records += parse_records(self._data(info.size))
        elif info.type == tarfile.XGLTYPE:
            records = parse_records(self._data(info.size))
            self._global.update(each for each in records if each[0] in _GLOBAL)
        elif info.type == _GNU_VOLUME:
            self._data(info.size)
        else:
            return False
        return True

    def _member(self, block: bytes, info: TarInfo, before: _Before) -> Member:
        records = [*self._global.items(), *before.records]
        said = {keyword: value for keyword, value in records if value}  # none: as in the header
        name = said.get(b"path", _name(block) if before.name is None else before.name)
        name = said.get(b"GNU.sparse.name", name)
        target = _text(block[157:257]) if before.target is None else before.target
        mtime = said.get(b"mtime")
        size = 0 if info.type in _WITHOUT_CONTENT else _number(said, b"size", info.size)
        if size < 0:
            raise FormatError(f"{quoted(name)} has a negative size")
        member = Member(
            name=name,
            kind=_kind(info.type, name),
            target=said.get(b"linkpath", target),
            mode=info.mode & 0o7777,
            uid=_number(said, b"uid", info.uid),
            gid=_number(said, b"gid", info.gid),
            mtime_ns=int(info.mtime) * _SECOND if mtime is None else parse_time(mtime),
            device=(info.devmajor, info.devminor),
            size=size,
            stored=size,
            segments=None,
            records=records,
        )
        self._find_holes(member, block, info.type, said)
        return member

    def _find_holes(
        self, member: Member, block: bytes, flag: bytes, said: dict[bytes, bytes]
    ) -> None:
        """Read the map of a sparse member, wherever it is."""
        found = sparse.pax_map(member.records)
        if flag == tarfile.GNUTYPE_SPARSE:
            found = sparse.old_map(block, self._block)
        elif b"GNU.sparse.major" in said:
            if (said[b"GNU.sparse.major"], said.get(b"GNU.sparse.minor")) != (b"1", b"0"):
                raise FormatError(f"{quoted(member.name)} is sparse in an unknown format")
            start = self._archive.position
            segments = sparse.leading_map(self._block)
            member.stored -= self._archive.position - start
            found = segments, _number(said, b"GNU.sparse.realsize", member.stored)
        if found is not None:
            member.segments, member.size = found
            sparse.check(member.segments, member.size, member.stored)

    def _block(self) -> bytes:
        return self._data(BLOCK)

    def _data(self, size: int) -> bytes:
        """Read what is part of a member's headers, with its padding."""
        end = self._archive.position + _padded(size)
        if size < 0 or end - self._start > MAX_HEADERS:
            raise FormatError(f"the headers of one member take more than {MAX_HEADERS} bytes")
        return self._archive.read(_padded(size))[:size]


def _padded(size: int) -> int:
    return size + -size % BLOCK


def _text(data: bytes) -> bytes:
    return data.partition(b"\0")[0]


def _name(block: bytes) -> bytes:
    name, prefix = _text(block[:100]), _text(block[345:500])
    # GNU tar keeps times where POSIX has the prefix, which TarInfo does not tell apart.
    return b"%s/%s" % (prefix, name) if prefix and block[257:263] == _POSIX_MAGIC else name


def _kind(flag: bytes, name: bytes) -> bytes:
    if flag == _GNU_DUMPDIR:
        return tarfile.DIRTYPE
    if flag in _REGULAR:  # the first tars had no directories but by their names
        return tarfile.DIRTYPE if name.endswith(b"/") else tarfile.REGTYPE
    return flag


def _number(said: dict[bytes, bytes], keyword: bytes, otherwise: int) -> int:
    if keyword not in said:
        return otherwise
    return parse_number(said[keyword], f"{keyword.decode()} in a pax record")
