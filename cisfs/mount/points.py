"""The mount table, and what makes a directory fit to mount a vault on.

Does not know FUSE requests or vaults' content, and changes nothing.  Stateless: every call reads
/proc/self/mountinfo anew (proc(5)); safe from any thread.
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import NamedTuple

from cisfs.errors import MountError, NoFuseError

FSTYPE = "fuse.cisfs"
EROFS = "erofs"  # what a sealed layer shows as
FUSE_DEVICE = Path("/dev/fuse")
_MOUNTINFO = Path("/proc/self/mountinfo")
_OCTAL = re.compile(r"\\([0-3][0-7]{2})")
# stat(2) of a FUSE mount whose server is gone; ECONNABORTED is what requests under way got.
_DEAD = frozenset({errno.ENOTCONN, errno.ECONNABORTED})


class MountEntry(NamedTuple):
    """One line of mountinfo: `device` is "major:minor", `options` the per-mount ones.

    `super_options` are those of the file system, wherever it is mounted.
    """

    device: str
    mountpoint: Path
    options: frozenset[str]
    fstype: str
    source: str
    super_options: frozenset[str] = frozenset()


def parse_mountinfo(text: str) -> list[MountEntry]:
    """Return the entries of a mountinfo file, in its order; lines of another shape are skipped."""
    entries = []
    for line in text.split("\n"):  # the kernel escapes no other end of a line
        before, separator, after = line.partition(" - ")
        fields, rest = before.split(" "), after.split(" ")
        if separator and len(fields) >= 6 and len(rest) >= 2:
            entries.append(
                MountEntry(
                    device=fields[2],
                    mountpoint=Path(_unescaped(fields[4])),
                    options=frozenset(fields[5].split(",")),
                    fstype=_unescaped(rest[0]),
                    source=_unescaped(rest[1]),
                    super_options=frozenset(rest[2].split(",") if len(rest) > 2 else ()),
                )
            )
    return entries


def _unescaped(field: str) -> str:
    """Undo the kernel's escapes (seq_file.c, mangle_path): backslash and three octal digits."""
    return _OCTAL.sub(lambda match: chr(int(match[1], 8)), field)


def mounts() -> list[MountEntry]:
    """Return this process's mount table; bytes that are not UTF-8 come as os.fsdecode has them."""
    return parse_mountinfo(os.fsdecode(_MOUNTINFO.read_bytes()))


def mounted_at(mountpoint: Path) -> MountEntry | None:
    """Return the topmost mount on exactly `mountpoint` (see `resolved`), or None."""
    found = [entry for entry in mounts() if entry.mountpoint == mountpoint]
    return found[-1] if found else None


def resolved(path: str | os.PathLike[str]) -> Path:
    """Return `path` absolute and free of symbolic links, also when it leads to a dead mount."""
    return Path(os.path.realpath(path))


def is_dead(mountpoint: Path) -> bool:
    """Return whether `mountpoint` is a FUSE mount whose server is gone."""
    try:
        # Not stat: the kernel answers that from its cache for as long as attributes are valid.
        os.statvfs(mountpoint)
    except OSError as error:
        return error.errno in _DEAD
    return False


def require_fuse() -> None:
    """Raise NoFuseError, with the next step, unless FUSE can be used here."""
    try:
        os.close(os.open(FUSE_DEVICE, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        raise NoFuseError(
            f"{FUSE_DEVICE} does not exist: load the kernel module (modprobe fuse), or give the "
            f"container the device (docker run --device {FUSE_DEVICE})"
        ) from None
    except PermissionError:
        raise NoFuseError(
            f"no permission to open {FUSE_DEVICE}: have root make it accessible "
            f"(chmod 666 {FUSE_DEVICE}), or run cisfs as root"
        ) from None
    except OSError as error:
        raise NoFuseError(
            f"{FUSE_DEVICE} is not usable ({error.strerror}): load the kernel module with "
            "modprobe fuse"
        ) from None


def check_mountpoint(mountpoint: Path, vault: Path) -> None:
    """Raise MountError unless `mountpoint` will do for `vault`; both are resolved."""
    entry = mounted_at(mountpoint)
    if entry is not None:
        raise MountError(
            f"{mountpoint} already has a {entry.fstype} mounted on it: "
            "unmount that first, or choose another directory"
        )
    try:
        with os.scandir(mountpoint) as entries:
            empty = next(entries, None) is None
    except FileNotFoundError:
        raise MountError(f"mount point {mountpoint} does not exist: create it with mkdir") from None
    except NotADirectoryError:
        raise MountError(f"mount point {mountpoint} is not a directory") from None
    except PermissionError:
        raise MountError(f"no permission to read the mount point {mountpoint}") from None
    # The server would wait for itself when it reached its own mount on the way to the vault.
    if _contains(mountpoint, vault):
        raise MountError(
            f"the vault {vault} lies inside {mountpoint}, so it cannot be mounted there"
        )
    if _contains(vault, mountpoint):
        raise MountError(f"{mountpoint} lies inside the vault {vault}: choose one outside it")
    if not empty:
        raise MountError(f"mount point {mountpoint} is not empty: a mount would hide what is in it")


def _contains(outer: Path, inner: Path) -> bool:
    """Whether `inner` is `outer` or below it, by inode: bind mounts have more than one path."""
    try:
        outer_stat = outer.stat()
        return any(os.path.samestat(outer_stat, path.stat()) for path in (inner, *inner.parents))
    except FileNotFoundError:
        return False  # a vault that is not there is somebody else's error to report
