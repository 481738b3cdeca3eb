"""Memory with keys in it: no core file of it, no look into it by others, nothing of it in swap.

For commands and servers, before they read the first key: Python cannot erase what it has read.
Does not know the keys.  A fork inherits the first two and not the third; a program that is executed
inherits the limit on core files, and none of the rest.  About the whole process, whichever thread
calls.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import resource

# linux/prctl.h
_PR_SET_DUMPABLE = 4
# linux/mman.h: what is mapped, what will be, each page when it is first used
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4
_NO_CORE = 1  # bytes

_libc = ctypes.CDLL(None, use_errno=True)


def keep_private() -> None:
    """Let nobody but root see this process's memory; neither it nor what it runs leaves a core."""
    forbid_cores(0)
    make_undumpable()


def make_undumpable() -> None:
    """Let neither a core dump nor a process of the same user show this one's memory, prctl(2)."""
    if _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0):
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))


def forbid_cores(pid: int) -> None:
    """Have a process, 0 being this one, and what it starts leave no core.

    A limit of one byte, unlike one of none, also keeps the kernel from piping it to a handler that
    would store it (fs/coredump.c, do_coredump).  Only root could raise the other limit, so where
    that is none it stays.
    """
    with contextlib.suppress(OSError):  # gone, or not ours
        _, hard = resource.prlimit(pid, resource.RLIMIT_CORE)
        if hard:
            resource.prlimit(pid, resource.RLIMIT_CORE, (_NO_CORE, hard))


def lock() -> None:
    """Keep out of swap what is in memory by now, where that is allowed.

    What is allocated later is locked too if there is no limit on it: under one, a process that had
    used it up would get no more memory at all.  The limit stays as it is: containers inherit it.
    """
    _libc.mlockall(_MCL_CURRENT | _MCL_ONFAULT | _MCL_FUTURE)
    if not _is_unlimited():
        _libc.mlockall(_MCL_CURRENT | _MCL_ONFAULT)


def lock_for_good() -> None:
    """Do the same in a process that is about to drop its privileges, and starts no container."""
    flags = _MCL_CURRENT | _MCL_ONFAULT
    with contextlib.suppress(OSError, ValueError):
        unlimited = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
        resource.setrlimit(resource.RLIMIT_MEMLOCK, unlimited)
        flags |= _MCL_FUTURE
    _libc.mlockall(flags)


def _is_unlimited() -> bool:
    """Tell whether this process, which locks what it allocates, may allocate more than its limit.

    Root may, but not the root of a user namespace: tried out, because nothing says so.
    """
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if limit == resource.RLIM_INFINITY:
        return True
    try:
        mmap.mmap(-1, limit + 1).close()  # costs nothing while it is not used
    except OSError:
        return False
    return True
