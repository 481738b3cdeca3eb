"""How libfuse is spoken to: its option strings, and what it says when it cannot mount.

Does not import it, nor know what is mounted.  One thread: descriptor 2 is redirected for a while.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator

from cisfs.errors import MountError

_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._-+@")


def mount_options(source: os.PathLike[str], *, read_only: bool, allow_other: bool) -> set[str]:
    """Return the mount options for a vault at `source`.

    The kernel checks permissions, so that access never costs a request.  Only root may have device
    nodes and set-user-id programs obeyed, which a container's layer needs (fuse(8)).
    """
    options = {"default_permissions", "subtype=cisfs", f"fsname={_escaped(os.fsencode(source))}"}
    options.add("ro" if read_only else "rw")
    if allow_other:
        options.add("allow_other")
    if os.geteuid() == 0:
        options |= {"suid", "dev"}
    return options


def _escaped(value: bytes) -> str:
    """Escape for libfuse's option parser (lib/fuse_opt.c): backslash and three octal digits."""
    return "".join(chr(byte) if byte in _PLAIN else f"\\{byte:03o}" for byte in value)


@contextlib.contextmanager
def complaining_to(mountpoint: str) -> Iterator[None]:
    """Make a failure to mount a MountError with the words that libfuse or fusermount3 wrote.

    They go to descriptor 2, and all that pyfuse3 raises is RuntimeError.
    """
    kept = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            yield
        except RuntimeError as error:
            said.seek(0)
            words = " ".join(said.read().decode(errors="replace").split()) or str(error)
            raise MountError(f"cannot mount on {mountpoint}: {words}") from None
        finally:
            os.dup2(kept, 2)
            os.close(kept)
