"""Mounting without root: fusermount3(1) mounts, and hands over the descriptor of /dev/fuse.

The protocol is libfuse's (lib/mount.c): a socket's number in the environment, one message with the
descriptor back.  Does not know what is mounted.  Blocking calls; safe anywhere.
"""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path

from cisfs.errors import MountError, NoFuseError

_VARIABLE = "_FUSE_COMMFD"


def mount(mountpoint: Path, source: Path, *, allow_other: bool) -> int:
    """Mount read-only on `mountpoint`; return the descriptor that the requests come from.

    Raises NoFuseError without fusermount3, MountError with its words.
    """
    options = f"ro,nosuid,nodev,default_permissions,subtype=cisfs,fsname={_escaped(source)}"
    if allow_other:
        options += ",allow_other"
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with ours, theirs:
        command = ["fusermount3", "-o", options, "--", str(mountpoint)]
        try:
            ended = subprocess.run(
                command,
                env={**os.environ, _VARIABLE: str(theirs.fileno())},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                check=False,
            )
        except FileNotFoundError:
            raise NoFuseError(
                "without root, mounting takes fusermount3: install the package fuse3"
            ) from None
        if ended.returncode:
            words = " ".join(ended.stderr.decode(errors="replace").split())
            raise MountError(f"cannot mount on {mountpoint}: {words or 'fusermount3 failed'}")
        _, descriptors, _, _ = socket.recv_fds(ours, 1, 1)
    if not descriptors:
        raise MountError(f"cannot mount on {mountpoint}: fusermount3 sent no descriptor")
    os.set_inheritable(descriptors[0], False)
    return descriptors[0]


def _escaped(source: Path) -> str:
    """A backslash makes the next character, a comma or another backslash, mean itself."""
    return str(source).replace("\\", "\\\\").replace(",", "\\,")
