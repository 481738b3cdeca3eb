"""pyfuse3 on one side, a vault's tree on the other: arguments in, one call, the result out.

The only module that imports pyfuse3.  Does not know names, units, keys or processes.  One thread,
one request after the other; no handler ever suspends, so each is atomic, and the reply objects are
kept and filled anew for every request (pyfuse3 copies them before the next one).

The vault is locked, so nobody changes it behind the kernel's back: entries, their absence and
attributes may be cached for a day, and file content from one open to the next.  On a read-only
mount `flush` answers ENOSYS, and the kernel stops asking at every close(2).  Where there is
something to write back it must ask, though there is nothing to do: after the death of the server,
the answer that does not come is how close(2) learns that the content was lost.  opendir and open
cannot be saved the same way: pyfuse3 passes readdir and read no node number.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar

import pyfuse3
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, ReaddirToken, RequestContext

from cisfs.errors import CisfsError
from cisfs.layer.tree import Caller, Change
from cisfs.mount import owners
from cisfs.mount.libfuse import complaining_to

if TYPE_CHECKING:
    from cisfs.layer.tree import Attr, VaultTree
    from cisfs.mount.loop import DirectLoop

_P = ParamSpec("_P")
_R = TypeVar("_R")
_DAY = 86_400.0
_STATFS_FIELDS = (
    "bsize",
    "frsize",
    "blocks",
    "bfree",
    "bavail",
    "files",
    "ffree",
    "favail",
    "namemax",
)

log = logging.getLogger(__name__)


def _handler(
    call: Callable[Concatenate[VaultOperations, _P], _R],
) -> Callable[Concatenate[VaultOperations, _P], Coroutine[Any, Any, _R]]:
    """Make a pyfuse3 handler of a synchronous method, and every exception an errno.

    The one boundary: pyfuse3 ends the whole mount on any exception but FUSEError.
    """

    @functools.wraps(call)
    async def handler(self: VaultOperations, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return call(self, *args, **kwargs)
        except OSError as error:
            raise FUSEError(error.errno or errno.EIO) from None
        except CisfsError as error:
            log.error("%s", error)
            raise FUSEError(errno.EIO) from None
        except Exception:
            log.exception("unexpected error in %s%r", call.__name__, args[:1])
            raise FUSEError(errno.EIO) from None

    return handler


class VaultOperations(pyfuse3.Operations):
    """The handlers.  pyfuse3.Operations describes each; the tree's methods say what they do."""

    # NFS export would need lookups of "." in directories the kernel has long forgotten.
    supports_dot_lookup = False
    # The kernel then asks for ACLs and enforces them with the modes.
    enable_acl = True

    def __init__(self, tree: VaultTree, *, read_only: bool, first_owner: int = 0) -> None:
        """`first_owner`, on a read-only mount, is shown as what is stored as id 0."""
        self.enable_writeback_cache = not read_only
        self._first_owner = first_owner
        self._read_only = read_only
        self._tree = tree
        self._entry = EntryAttributes()
        self._entry.entry_timeout = self._entry.attr_timeout = _DAY
        self._absent = EntryAttributes()
        self._absent.st_ino = 0  # a reply without a node: the kernel remembers that there is none
        self._absent.entry_timeout = _DAY
        self._file = FileInfo(keep_cache=True)

    def _filled(self, attr: Attr) -> EntryAttributes:
        entry = self._entry
        (
            entry.st_ino,
            entry.st_mode,
            entry.st_nlink,
            entry.st_uid,
            entry.st_gid,
            entry.st_rdev,
            entry.st_size,
            entry.st_blksize,
            entry.st_blocks,
            entry.st_atime_ns,
            entry.st_mtime_ns,
            entry.st_ctime_ns,
        ) = attr
        if self._first_owner:
            entry.st_uid = owners.moved(entry.st_uid, self._first_owner)
            entry.st_gid = owners.moved(entry.st_gid, self._first_owner)
        return entry

    def _opened(self, handle: int) -> FileInfo:
        self._file.fh = handle
        return self._file

    # --- names

    @_handler
    def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        try:
            return self._filled(self._tree.lookup(parent_inode, name))
        except FileNotFoundError:
            return self._absent

    @_handler
    def _forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        for node, count in inode_list:
            self._tree.forget(node, count)

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        try:
            await self._forget(inode_list)
        except FUSEError as error:  # nobody waits for an answer, so nobody can be told
            log.error("forget failed: %s", error)

    @_handler
    def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        caller = Caller(ctx.uid, ctx.gid)
        return self._filled(self._tree.mknod(parent_inode, name, mode, rdev, caller))

    @_handler
    def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext
    ) -> EntryAttributes:
        caller = Caller(ctx.uid, ctx.gid)
        return self._filled(self._tree.mkdir(parent_inode, name, mode, caller))

    @_handler
    def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        caller = Caller(ctx.uid, ctx.gid)
        return self._filled(self._tree.symlink(parent_inode, name, target, caller))

    @_handler
    def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        return self._filled(self._tree.link(inode, new_parent_inode, new_name))

    @_handler
    def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        self._tree.unlink(parent_inode, name)

    @_handler
    def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        self._tree.rmdir(parent_inode, name)

    @_handler
    def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        self._tree.rename(parent_inode_old, name_old, parent_inode_new, name_new, flags)

    @_handler
    def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        return self._tree.readlink(inode)

    # --- attributes

    @_handler
    def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        return self._filled(self._tree.getattr(inode))

    @_handler
    def setattr(
        self,
        inode: int,
        attr: EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        change = Change(
            mode=attr.st_mode if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            size=attr.st_size if fields.update_size else None,
            atime_ns=attr.st_atime_ns if fields.update_atime else None,
            mtime_ns=attr.st_mtime_ns if fields.update_mtime else None,
        )
        return self._filled(self._tree.setattr(inode, change))

    @_handler
    def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        self._tree.setxattr(inode, name, value)

    @_handler
    def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        value = self._tree.getxattr(inode, name)
        if self._first_owner:
            return owners.moved_attribute(name, value, self._first_owner)
        return value

    @_handler
    def listxattr(self, inode: int, ctx: RequestContext) -> Sequence[bytes]:
        names = self._tree.listxattr(inode)
        if ctx.uid == 0:
            return names
        return [name for name in names if not name.startswith(b"trusted.")]  # see xattr(7)

    @_handler
    def removexattr(self, inode: int, name: bytes, ctx: RequestContext) -> None:
        self._tree.removexattr(inode, name)

    @_handler
    def statfs(self, ctx: RequestContext) -> pyfuse3.StatvfsData:
        of_tree = self._tree.statfs()
        reply = pyfuse3.StatvfsData()
        for name in _STATFS_FIELDS:
            setattr(reply, f"f_{name}", getattr(of_tree, f"f_{name}"))
        return reply

    # --- files

    @_handler
    def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        caller = Caller(ctx.uid, ctx.gid)
        handle, attr = self._tree.create(parent_inode, name, mode, flags, caller)
        return self._opened(handle), self._filled(attr)

    @_handler
    def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        return self._opened(self._tree.open(inode, flags))

    @_handler
    def read(self, fh: int, off: int, size: int) -> Any:  # noqa: ANN401 - any buffer (handlers.pxi)
        return self._tree.read(fh, off, size)

    @_handler
    def write(self, fh: int, off: int, buf: bytes) -> int:
        return self._tree.write(fh, off, buf)

    @_handler
    def flush(self, fh: int) -> None:
        if self._read_only:
            raise OSError(errno.ENOSYS, "never asked again")

    @_handler
    def release(self, fh: int) -> None:
        self._tree.release(fh)

    @_handler
    def fsync(self, fh: int, datasync: bool) -> None:
        self._tree.fsync(fh, datasync)

    # --- directories

    @_handler
    def opendir(self, inode: int, ctx: RequestContext) -> int:
        return self._tree.opendir(inode)

    @_handler
    def readdir(self, fh: int, start_id: int, token: ReaddirToken) -> None:
        hold = self._tree.hold
        for name, attr, following in self._tree.readdir(fh, start_id):
            if not pyfuse3.readdir_reply(token, name, self._filled(attr), following):
                return
            hold(attr.node)

    @_handler
    def releasedir(self, fh: int) -> None:
        self._tree.releasedir(fh)

    @_handler
    def fsyncdir(self, fh: int, datasync: bool) -> None:
        self._tree.fsyncdir(fh)


class Session:
    """One mounted tree.  pyfuse3 keeps its state in globals, so there is one a process."""

    def __init__(
        self,
        tree: VaultTree,
        mountpoint: str,
        options: set[str],
        loop: DirectLoop,
        first_owner: int = 0,
    ) -> None:
        """Mount `tree`; raises MountError with what libfuse had to say."""
        vars(pyfuse3)["trio"] = loop
        self._loop = loop
        operations = VaultOperations(tree, read_only="ro" in options, first_owner=first_owner)
        with complaining_to(mountpoint):
            pyfuse3.init(operations, mountpoint, options)

    def serve(self) -> None:
        """Answer requests until the kernel ends the session or the loop is told to stop."""
        # The kernel's end of a connection is ENODEV, which libfuse knows; but ECONNABORTED to who
        # had a request in hand at that instant (fs/fuse/dev.c, fuse_dev_do_read).
        with contextlib.suppress(ConnectionAbortedError):
            self._loop.run(pyfuse3.main(min_tasks=1, max_tasks=1))

    def close(self) -> None:
        """Close the connection; a mount that still stands is dead from here on."""
        pyfuse3.close(unmount=False)
