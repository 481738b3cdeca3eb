"""The Linux calls that Python 3.11 does not offer: mounts, namespaces, openat2.

Thin: each function is one call, or a loop around one, and a failure is an OSError that names the
path.  Does not know what is mounted or why.  Namespaces belong to the calling process; call
`unshare` before there are threads.
"""

from __future__ import annotations

import ctypes
import os
import stat

# <sys/mount.h>
MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_BIND = 0x1000
MS_REC = 0x4000
MS_SLAVE = 0x80000
MNT_DETACH = 0x2
UMOUNT_NOFOLLOW = 0x8
# <sched.h>
CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
# <linux/openat2.h>; the number is the same on every architecture (the 2019 table and later)
_SYS_OPENAT2 = 437
_RESOLVE_NO_MAGICLINKS = 0x02
_RESOLVE_IN_ROOT = 0x10

_libc = ctypes.CDLL(None, use_errno=True)


class _OpenHow(ctypes.Structure):
    """struct open_how, openat2(2)."""

    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


def _check(result: int, path: str | None = None) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), path)
    return result


def unshare(flags: int) -> None:
    """Leave the namespaces named by `flags` for new ones, unshare(2)."""
    _check(_libc.unshare(ctypes.c_int(flags)))


def leave_mounts() -> None:
    """Go on in a mount namespace of our own: what is mounted there the host does not see.

    What the host mounts and unmounts shows there, too: a file system that it unmounts must not stay
    busy because of us.
    """
    unshare(CLONE_NEWNS)
    mount("none", "/", flags=MS_SLAVE | MS_REC)


def enter_namespace(namespace: int, kind: int) -> None:
    """Go on in the namespace of a descriptor, of the `kind` CLONE_NEW..., setns(2)."""
    _check(_libc.setns(ctypes.c_int(namespace), ctypes.c_int(kind)))


def mount(
    source: str, target: str, kind: str | None = None, flags: int = 0, options: str | None = None
) -> None:
    """Mount `source` on `target`, mount(2); `options` is the filesystem's own string."""
    _check(
        _libc.mount(
            os.fsencode(source),
            os.fsencode(target),
            None if kind is None else kind.encode(),
            ctypes.c_ulong(flags),
            None if options is None else os.fsencode(options),
        ),
        target,
    )


def unmount(target: str, flags: int = 0) -> None:
    """Unmount what lies on top at `target`, umount2(2)."""
    _check(_libc.umount2(os.fsencode(target), ctypes.c_int(flags)), target)


def open_in_root(root: int, path: str, flags: int) -> int:
    """Open `path` as a process would whose "/" is the directory `root`; return a descriptor.

    Neither ".." nor a symbolic link leads out of `root`.  Needs Linux 5.6 (openat2(2)).
    """
    how = _OpenHow(flags | os.O_CLOEXEC, 0, _RESOLVE_IN_ROOT | _RESOLVE_NO_MAGICLINKS)
    return _check(
        _libc.syscall(
            ctypes.c_long(_SYS_OPENAT2),
            ctypes.c_int(root),
            os.fsencode(path),
            ctypes.byref(how),
            ctypes.c_size_t(ctypes.sizeof(how)),
        ),
        path,
    )


def read_in_root(root: int, path: str, limit: int) -> bytes | None:
    """Return the start of a regular file as `open_in_root` finds it; None for anything else.

    What is no regular file is never opened: to open a device, or to read one, can have effects, and
    who made the tree may have put one there.
    """
    try:
        found = open_in_root(root, path, os.O_PATH)
    except OSError:
        return None
    try:
        if not stat.S_ISREG(os.fstat(found).st_mode):
            return None
        with open(f"/proc/self/fd/{found}", "rb", buffering=0) as file:
            return file.read(limit)
    except OSError:
        return None
    finally:
        os.close(found)
