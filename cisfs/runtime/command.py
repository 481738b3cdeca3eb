"""Finding a container's command in its root filesystem before an engine is asked to run it.

An engine can only say "no such file or directory" when it is already half way into the container;
asked before, the filesystem says what is wrong and which of 126 and 127 it is.  Looks at the tree
and runs nothing; does not know overlays or engines.  Not for several threads at a time.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from cisfs.mount.syscalls import open_in_root
from cisfs.runtime.account import Account

NOT_EXECUTABLE = 126
NOT_FOUND = 127

_HEAD_SIZE = 256  # BINPRM_BUF_SIZE: the kernel reads no more of a script's first line
# Filesystems that are mounted only inside the container: what is there cannot be judged from here.
_UNSEEN = ("/proc/", "/sys/", "/dev/")


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a command cannot run, as docker's exit code and a line to print."""

    exit_code: int
    message: str


def refusal(
    root: int,
    name: str,
    search_path: str,
    working_directory: str,
    account: Account,
    first_owner: int = 0,
) -> Refusal | None:
    """Return why `name` cannot be run in the tree below the descriptor `root`, None if it can.

    `search_path` is the container's PATH; a name with a "/" is taken from the working directory.
    `first_owner` is what the tree shows as the container's id 0.
    """
    denied: Refusal | None = None
    for path in _candidates(name, search_path, working_directory):
        if path.startswith(_UNSEEN):
            return None
        try:
            descriptor = open_in_root(root, path, os.O_PATH)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.ELOOP):
                denied = Refusal(NOT_EXECUTABLE, f"cannot run {path}: {error.strerror}")
            continue
        try:
            found = _judge(root, descriptor, path, account, first_owner)
        finally:
            os.close(descriptor)
        if found is None:
            return None
        # As execvp(3) and Go's LookPath do: what cannot be run does not end the search.
        denied = denied or found
    return denied or _missing(name, search_path)


def _candidates(name: str, search_path: str, working_directory: str) -> Iterator[str]:
    if "/" in name:
        yield str(PurePosixPath(working_directory, name))
        return
    for directory in search_path.split(":"):
        if name and directory.startswith("/"):
            yield f"{directory.rstrip('/')}/{name}"


def _missing(name: str, search_path: str) -> Refusal:
    where = "" if "/" in name else f" on its PATH ({search_path})"
    return Refusal(NOT_FOUND, f"command not found: {name!r} is not in the container{where}")


def _judge(
    root: int, descriptor: int, path: str, account: Account, first_owner: int
) -> Refusal | None:
    status = os.fstat(descriptor)
    owner = status.st_uid - first_owner, status.st_gid - first_owner
    if stat.S_ISDIR(status.st_mode):
        return Refusal(NOT_EXECUTABLE, f"cannot run {path}: it is a directory")
    if not stat.S_ISREG(status.st_mode):
        return Refusal(NOT_EXECUTABLE, f"cannot run {path}: it is not a regular file")
    if not _may_execute(status.st_mode, *owner, account):
        return Refusal(
            NOT_EXECUTABLE,
            f"cannot run {path}: permission denied (mode {stat.S_IMODE(status.st_mode):04o}, "
            f"owner {owner[0]}:{owner[1]}, running as {account.uid}:{account.gid})",
        )
    return _judge_content(root, path)


def _may_execute(mode: int, uid: int, gid: int, account: Account) -> bool:
    if account.uid == 0:  # CAP_DAC_OVERRIDE: any of the three bits will do
        return bool(mode & 0o111)
    if uid == account.uid:
        return bool(mode & stat.S_IXUSR)
    if gid in (account.gid, *account.groups):
        return bool(mode & stat.S_IXGRP)
    return bool(mode & stat.S_IXOTH)


def _judge_content(root: int, path: str) -> Refusal | None:
    descriptor = open_in_root(root, path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        head = os.read(descriptor, _HEAD_SIZE)
    finally:
        os.close(descriptor)
    if head.startswith(b"\x7fELF"):
        return None
    if not head.startswith(b"#!"):
        return Refusal(
            NOT_EXECUTABLE, f'cannot run {path}: neither a program nor a script with "#!"'
        )
    interpreter = (head[2:].split(b"\n", 1)[0].split() or [b""])[0].decode(errors="replace")
    if not interpreter.startswith("/") or interpreter.startswith(_UNSEEN):
        return None  # the kernel's to judge
    try:
        os.close(open_in_root(root, interpreter, os.O_PATH))
    except OSError:
        return Refusal(
            NOT_FOUND, f"cannot run {path}: its interpreter {interpreter} is not in the container"
        )
    return None
