"""Mounts with other owners: the ids 0 to 65535 of a file system shown as a range of the host's.

What is stored stays as it is, and so does what is written through such a mount: only who looks
through it sees the ids moved, mount_setattr(2), "ID-mapped mounts".  Linux 5.12; 6.3 for a tmpfs.

Does not know containers.  Forks, and changes this process's credentials for a while, so it is for
processes with one thread.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from cisfs.mount import newmount, syscalls

SIZE = 65_536  # ids in a range: those of a system's own accounts and users, "nobody" included

# <linux/prctl.h>, <linux/securebits.h>
_PR_GET_SECUREBITS, _PR_SET_SECUREBITS = 27, 28
_NO_SETUID_FIXUP = 1 << 2

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Owners:
    """The ids `first` to `first` + 65535 of the host in the place of 0 to 65535.

    `namespace` is the descriptor of a user namespace that says so.
    """

    first: int
    namespace: int

    def clone(self, path: str | os.PathLike[str], *, recursive: bool = False) -> int:
        """Return the descriptor of a mount of `path`, without a place, with its owners moved.

        Raises OSError: EINVAL for a file system that cannot be mounted so, or, if `recursive`, has
        one mounted in it that cannot.
        """
        found = newmount.clone(path, recursive=recursive)
        try:
            newmount.map_owners(found, self.namespace, recursive=recursive)
        except BaseException:
            os.close(found)
            raise
        return found

    def mount(self, path: str | os.PathLike[str], at: Path, *, recursive: bool = False) -> None:
        """Mount what shows `path` once more, with its owners moved, on `at`; raises as `clone`."""
        mounted = self.clone(path, recursive=recursive)
        try:
            newmount.place(mounted, at)
        finally:
            os.close(mounted)

    @contextlib.contextmanager
    def acting(self) -> Iterator[None]:
        """Make files as the first id of the range meanwhile, with all capabilities kept.

        For overlayfs, which does what it does to its upper directory as who mounted it: on a mount
        with moved owners id 0 is nobody, for whom the kernel makes nothing (EOVERFLOW), and the
        overlay would be read-only.  Raises OSError.
        """
        bits = _prctl(_PR_GET_SECUREBITS)
        _prctl(_PR_SET_SECUREBITS, bits | _NO_SETUID_FIXUP)
        try:
            _libc.setfsgid(self.first)
            _libc.setfsuid(self.first)
            yield
        finally:
            _libc.setfsuid(os.geteuid())
            _libc.setfsgid(os.getegid())
            _prctl(_PR_SET_SECUREBITS, bits)


@contextlib.contextmanager
def moved(first: int) -> Iterator[Owners]:
    """Make a user namespace that has the ids from `first` on.

    Raises OSError: ENOSPC where user.max_user_namespaces allows no more.
    """
    receive, send = os.pipe()
    pid = os.fork()
    if pid == 0:
        _be_in_a_namespace(send)
    os.close(send)
    try:
        number = int(os.read(receive, 16) or b"0")
        if number:
            raise OSError(number, os.strerror(number))
        for kind in ("uid_map", "gid_map"):
            with open(f"/proc/{pid}/{kind}", "w", encoding="ascii") as file:
                file.write(f"0 {first} {SIZE}\n")
        namespace = os.open(f"/proc/{pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(receive)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    try:
        yield Owners(first, namespace)
    finally:
        os.close(namespace)


def _be_in_a_namespace(send: int) -> NoReturn:
    """Be a process that only keeps a user namespace; it says 0, or the errno why there is none."""
    number = 0
    try:
        syscalls.unshare(syscalls.CLONE_NEWUSER)
    except OSError as error:
        number = error.errno or 0
    try:
        os.write(send, b"%d" % number)
        signal.pause()
    finally:
        os._exit(0)


def _prctl(option: int, value: int = 0) -> int:
    result = int(_libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0))
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
