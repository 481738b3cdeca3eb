"""Taking cisfs mounts away: politely, lazily, or after their server died.

Only ever touches mounts of type fuse.cisfs, and EROFS mounts that `records` knows.  Does not know
layers beyond the lock that every opened one holds (flock(2)).  Blocking calls; never made by a
process that answers the mount's requests, which the kernel may be waiting for (see `depart`, which
is for a process forked from the server).
"""

from __future__ import annotations

import contextlib
import errno
import os
import subprocess
import time
from pathlib import Path

from cisfs.errors import MountError
from cisfs.format.said import printable
from cisfs.layer.locking import try_lock
from cisfs.layer.writing import sync_file_system
from cisfs.mount import proc, records, syscalls
from cisfs.mount.points import EROFS, FSTYPE, MountEntry, is_dead, mounted_at

_WRITER_PATIENCE = 120.0
_READER_PATIENCE = 2.0
_WORKERS_PATIENCE = 5.0  # they need some milliseconds, if nothing else has the mount
_POLL = 0.01


def unmount(mountpoint: Path, *, lazy: bool = False) -> bool:
    """Unmount the cisfs mount on the resolved `mountpoint` and wait until its server is done.

    Everything written is in the vault then, and the vault can be mounted again.  `lazy` detaches a
    mount that is in use, and does not wait for its users.  Tells whether a sealed layer's servers
    have ended, as far as was waited for: another mount namespace may hold it.  Raises MountError.
    """
    entry = cisfs_mount_at(mountpoint)
    if is_abandoned(entry):
        detach(mountpoint)
        records.forget(entry.device)
        return True
    try:
        _take_away(mountpoint, lazy=lazy)
    except OSError as error:
        if error.errno == errno.EBUSY:
            raise MountError(_in_use(mountpoint)) from None
        raise MountError(f"cannot unmount {mountpoint}: {error.strerror}") from None
    if lazy:
        return True
    if entry.fstype == EROFS:
        return _has_ended(entry)
    _wait_for_release(entry)
    return True


def cisfs_mount_at(mountpoint: Path) -> MountEntry:
    """Return the mount on the resolved `mountpoint`; raises MountError unless it is one of ours."""
    entry = mounted_at(mountpoint)
    if entry is None:
        raise MountError(f"{mountpoint} is not a mount point: nothing to unmount")
    if entry.fstype != FSTYPE and not _is_our_erofs(entry):
        raise MountError(
            f"{mountpoint} is a {entry.fstype} mount, not one of cisfs: use umount(8) for it"
        )
    return entry


def is_abandoned(entry: MountEntry) -> bool:
    """Whether `entry` is a mount of cisfs that nobody serves any more."""
    if _is_our_erofs(entry):
        return not records.is_served(entry.device)
    return entry.fstype == FSTYPE and is_dead(entry.mountpoint)


def _is_our_erofs(entry: MountEntry) -> bool:
    return entry.fstype == EROFS and records.is_ours(entry)


def detach(mountpoint: Path) -> None:
    """Take a mount out of the tree at once, whoever uses it.  Raises MountError."""
    try:
        _take_away(mountpoint, lazy=True)
    except OSError as error:
        raise MountError(f"cannot unmount {mountpoint}: {error.strerror}") from None


def depart(mountpoint: Path, device: str) -> None:
    """Unmount `device` from `mountpoint`; when it is in use, write it back and detach it.

    For a process forked from the server, while the server goes on answering.  Raises OSError.
    """
    entry = mounted_at(mountpoint)
    if entry is not None and entry.device == device:
        leave(mountpoint)


def leave(mountpoint: Path) -> bool:
    """Unmount; when it is in use, detach it and write it back, and return False.

    Raises OSError: EINVAL if nothing is mounted there.
    """
    try:
        _take_away(mountpoint, lazy=False)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
    else:
        return True
    root = os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        _take_away(mountpoint, lazy=True)
        with contextlib.suppress(OSError):  # the kernel's log has it, and nobody is left to tell
            sync_file_system(root)
    finally:
        os.close(root)
    return False


def _take_away(mountpoint: Path, *, lazy: bool) -> None:
    """umount2(2) for root, fusermount3(1) for everyone else.  Raises OSError."""
    if os.geteuid() == 0:
        flags = syscalls.UMOUNT_NOFOLLOW | (syscalls.MNT_DETACH if lazy else 0)
        syscalls.unmount(str(mountpoint), flags)
        return
    command = ["fusermount3", "-u", *(["-z"] if lazy else []), "--", str(mountpoint)]
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    if ended.returncode:
        words = ended.stderr.decode(errors="replace").strip()
        busy = "busy" in words.lower()
        raise OSError(errno.EBUSY if busy else errno.EPERM, words or "fusermount3 failed")


def _has_ended(entry: MountEntry) -> bool:
    """Wait until nobody serves the layer of an EROFS mount; tells whether it came to that."""
    end = time.monotonic() + _WORKERS_PATIENCE
    while records.is_served(entry.device):
        if time.monotonic() > end:
            return False
        time.sleep(_POLL)
    return True


def _wait_for_release(entry: MountEntry) -> None:
    """Wait until no server holds the layer's lock any more.

    A reader shares its lock with other readers, so waiting for it is a courtesy with an end.
    """
    writable = "rw" in entry.options
    try:
        fd = os.open(entry.source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return  # the layer is gone or out of reach: there is nothing to wait on
    try:
        end = time.monotonic() + (_WRITER_PATIENCE if writable else _READER_PATIENCE)
        while time.monotonic() < end:
            if try_lock(fd, shared=writable):
                return
            time.sleep(_POLL)
    finally:
        os.close(fd)
    if writable:
        raise MountError(
            f"{entry.mountpoint} is unmounted, but the server of {entry.source} has not let go of "
            "it yet: wait for it before you mount, copy or move the vault"
        )


def _in_use(mountpoint: Path) -> str:
    users = _users(mountpoint)
    by = f" by {', '.join(users)}" if users else ""
    return (
        f"{mountpoint} is in use{by}: end what uses it, or detach it with: "
        f"cisfs umount --lazy {mountpoint}"
    )


def _users(mountpoint: Path, limit: int = 3) -> list[str]:
    """Name some processes that keep the mount busy, as far as /proc lets us look."""
    found: list[str] = []
    others = (path for path in Path("/proc").glob("[0-9]*") if path.name != str(os.getpid()))
    for process in others:
        if len(found) < limit and _uses(process, mountpoint):
            name = printable(proc.name(int(process.name)))
            if name:  # else it has ended meanwhile
                found.append(f"{name} (process {process.name})")
    return found


def _uses(process: Path, mountpoint: Path) -> bool:
    """Whether a directory or descriptor of `process` lies in the mount; no link is followed."""
    try:
        links = [process / "cwd", process / "root", *(process / "fd").iterdir()]
    except OSError:
        links = [process / "cwd", process / "root"]
    for link in links:
        try:
            if link.readlink().is_relative_to(mountpoint):
                return True
        except OSError:
            continue
    return False
