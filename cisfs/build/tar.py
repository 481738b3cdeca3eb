"""A tar to an index: where each member belongs, and what may not be in a layer.

Nothing is unpacked: names are looked up in the index alone, so that none of them can lead anywhere
on this machine.  Which bytes mean what is for `members` to know.  One thread.
"""

from __future__ import annotations

import logging
import os
import stat
import tarfile
from dataclasses import dataclass
from pathlib import Path

from cisfs.build.archive import Archive
from cisfs.build.attributes import from_records, has_text_acl, proper
from cisfs.build.index import NO_XATTRS, Directory, Entry, Index, quoted, xattrs_size
from cisfs.build.members import Member, Members
from cisfs.build.opening import open_archive
from cisfs.build.sparse import SparseContent
from cisfs.build.whiteouts import REDIRECT_XATTR, Whiteouts, check_path, is_metadata
from cisfs.errors import FormatError, UsageError

# include/uapi/linux/limits.h and kdev_t.h; the longest path has room for its final NUL
_NAME_MAX = 255
_PATH_MAX = 4095
_MAJOR_MAX, _MINOR_MAX = (1 << 12) - 1, (1 << 20) - 1
_ID_MAX = (1 << 32) - 2  # the last one means "none" (chown(2))
_TIME_MAX = (1 << 63) - 1
_ENTRY_SIZE = 512  # in memory, beside names and attributes
_TYPES = {
    tarfile.REGTYPE: stat.S_IFREG,
    tarfile.LNKTYPE: stat.S_IFREG,
    tarfile.SYMTYPE: stat.S_IFLNK,
    tarfile.CHRTYPE: stat.S_IFCHR,
    tarfile.BLKTYPE: stat.S_IFBLK,
    tarfile.DIRTYPE: stat.S_IFDIR,
    tarfile.FIFOTYPE: stat.S_IFIFO,
}
IMPLIED_MODE = stat.S_IFDIR | 0o755

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a tar may hold.

    `max_size` is in bytes of the decompressed archive, and of its files with their holes;
    `max_index` in bytes of memory for names and attributes.  `devices` allows device nodes: they
    are legal in a layer, but a tar from anywhere could have one for the disk of the machine that
    the layer runs on.  Without `content`, files are only passed over.
    """

    max_size: int
    max_index: int = 2 << 30
    devices: bool = False
    content: bool = True


def index_tar(fd: int, label: str, limits: Limits, scratch_directory: Path) -> Index:
    """Read a tar from the descriptor `fd`, compressed or not, and return its index.

    `label` is what messages call it.  What cannot be read again in place goes to an encrypted
    scratch on the file system of `scratch_directory`; the index holds it, so close that.  Raises
    FormatError for what is no whole tar, UsageError for one that may not be sealed, OSError.
    """
    try:
        archive = open_archive(fd, label, limits.max_size, scratch_directory)
        try:
            root = Tree(archive, limits, Spent()).read()
            archive.finish()
        except BaseException:
            archive.close()
            raise
    except (FormatError, UsageError) as error:
        raise type(error)(f"{label}: {error}") from None
    return Index(root, archive.close)


@dataclass(slots=True)
class Spent:
    """What the tars so far have taken of the limits: bytes of memory, and in files."""

    index: int = 0
    content: int = 0


class Tree:
    """The tree as the members of one tar so far make it."""

    def __init__(
        self, archive: Archive, limits: Limits, spent: Spent, below: Directory | None = None
    ) -> None:
        """With `below`, the tar is a layer over what is there, to which its hard links may lead."""
        self._archive = archive
        self._limits = limits
        self._spent = spent
        self._below = below
        self._root = Directory(IMPLIED_MODE, implied=True)
        self._whiteouts = Whiteouts()
        self._stripped = 0

    def read(self) -> Directory:
        """Read all members; returns the root."""
        for member in Members(self._archive):
            try:
                self._add(member)
            except (FormatError, UsageError) as error:
                raise type(error)(f"{quoted(member.name)}: {error}") from None
        self._whiteouts.apply()
        if self._stripped:
            log.warning(
                "%d members lose ACLs in text form, or extended attributes unknown to Linux",
                self._stripped,
            )
        return self._root

    def _add(self, member: Member) -> None:
        path = _components(member.name)
        if any(map(is_metadata, path)):
            return
        entry = self._inode(member)
        if not path:
            if not isinstance(entry, Directory):
                raise UsageError("the root of a layer is a directory")
            describe(self._root, entry)
            return
        *above, name = path
        check_path(above)
        parent = self._directory(above)
        if self._whiteouts.take(parent, name, entry):
            return
        if member.kind == tarfile.LNKTYPE:
            entry = self._linked(member.target)
        elif member.kind == tarfile.REGTYPE:
            self._fill(entry, member)
        before = parent.children.get(name)
        if isinstance(before, Directory) and isinstance(entry, Directory):
            describe(before, entry)
        else:
            parent.children[name] = entry

    def _inode(self, member: Member) -> Entry:
        """Return what a member describes, without its content."""
        mode = _mode(member)
        for number in (member.uid, member.gid):
            if not 0 <= number <= _ID_MAX:
                raise UsageError(f"{number} is no owner or group")
        if abs(member.mtime_ns) > _TIME_MAX:
            raise UsageError("its time of modification is out of range")
        given = from_records(member.records)
        xattrs = proper(mode, given)
        if self._below is not None and REDIRECT_XATTR in xattrs:
            raise UsageError("an overlay's redirect, which means something in a single layer only")
        if len(xattrs) < len(given) or has_text_acl(member.records):
            self._stripped += 1
        self._charge(len(member.name) + len(member.target) + xattrs_size(xattrs))
        kind = Directory if stat.S_ISDIR(mode) else Entry
        return kind(
            mode=mode,
            uid=member.uid,
            gid=member.gid,
            mtime_ns=member.mtime_ns,
            rdev=self._device(member),
            target=_target(member) if stat.S_ISLNK(mode) else b"",
            xattrs=xattrs or NO_XATTRS,
        )

    def _device(self, member: Member) -> int:
        if member.kind not in (tarfile.CHRTYPE, tarfile.BLKTYPE):
            return 0
        major, minor = member.device
        if not (0 <= major <= _MAJOR_MAX and 0 <= minor <= _MINOR_MAX):
            raise UsageError(f"there is no device {major}:{minor}")
        is_whiteout = member.kind == tarfile.CHRTYPE and major == minor == 0
        if not (is_whiteout or self._limits.devices):
            raise UsageError("a device node: allow them with --allow-devices")
        return os.makedev(major, minor)

    def _fill(self, entry: Entry, member: Member) -> None:
        """Give a file its content."""
        self._spent.content += member.size
        self._archive.check_size(self._spent.content)
        entry.size = member.size
        if not (member.size and self._limits.content):
            return
        entry.content = self._archive.keep(member.stored)
        if member.segments is not None:
            self._charge(24 * len(member.segments))
            entry.content = SparseContent(member.segments, entry.content)
            entry.extents = member.segments

    def _directory(self, path: list[bytes]) -> Directory:
        """Return the directory at `path`; what no member has described is made."""
        directory = self._root
        for name in path:
            child = directory.children.get(name)
            if child is None:
                self._charge(len(name))
                child = directory.children[name] = Directory(IMPLIED_MODE, implied=True)
            directory = _as_directory(child, name)
        return directory

    def _linked(self, target: bytes) -> Entry:
        """Return what a hard link is a link to."""
        path = _components(target)
        for root in (self._root, self._below):
            found: Entry | None = root
            for name in path:
                found = found.children.get(name) if isinstance(found, Directory) else None
            if found is not None and not isinstance(found, Directory):
                return found
        raise UsageError(f"a hard link to {quoted(target)}, which is no earlier file")

    def _charge(self, size: int) -> None:
        """Count what an entry takes in memory, and refuse the one that is too much."""
        self._spent.index += _ENTRY_SIZE + size
        if self._spent.index > self._limits.max_index:
            raise UsageError(f"names and attributes take more than {self._limits.max_index} bytes")


def _components(path: bytes) -> list[bytes]:
    """Split the path of a member or of a hard link's target, relative to the root.

    Raises UsageError for what no layer needs to name: anything outside, or not nameable at all.
    """
    if not path:
        raise UsageError("a path is empty")
    if len(path) > _PATH_MAX or b"\0" in path:
        raise UsageError("a path is too long, or has a zero byte in it")
    stripped = path
    while stripped.startswith(b"./"):
        stripped = stripped[2:]
    components = [name for name in path.split(b"/") if name not in (b"", b".")]
    if stripped.startswith(b"/") or b".." in components:
        raise UsageError("a path leads out of the layer")
    if any(len(name) > _NAME_MAX for name in components):
        raise UsageError("a name is too long")
    return components


def _as_directory(entry: Entry, name: bytes) -> Directory:
    if not isinstance(entry, Directory):
        raise UsageError(f"leads through {quoted(name)}, which is no directory")
    return entry


def describe(directory: Directory, entry: Directory) -> None:
    """Let a directory that is described, perhaps again, be as described last."""
    directory.mode, directory.mtime_ns = entry.mode, entry.mtime_ns
    directory.uid, directory.gid = entry.uid, entry.gid
    directory.xattrs = entry.xattrs
    directory.implied = False


def _mode(member: Member) -> int:
    kind = _TYPES.get(member.kind)
    if kind is None:
        raise UsageError(f"a member of the unknown type {quoted(member.kind)}")
    return kind | (0o777 if kind == stat.S_IFLNK else member.mode)


def _target(member: Member) -> bytes:
    """Return a symlink's target.

    One that is absolute or has ".." is ordinary: it is resolved in the container, by the kernel.
    Nothing here follows a symlink.
    """
    if not 0 < len(member.target) <= _PATH_MAX or b"\0" in member.target:
        raise UsageError("the target of a symlink is empty or too long, or has a zero byte in it")
    return member.target
