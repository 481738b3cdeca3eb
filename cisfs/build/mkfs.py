"""mkfs.erofs (erofs-utils): finding it, running it, and what it complains of.

Does not know where the source comes from or what becomes of the image.  One thread: it sets the
limits of the child between fork and exec.

No option is ever given that makes it write to a temporary file, as --chunksize, --all-fragments
and tars do: that would be plaintext on a disk (lib/blobchunk.c, lib/fragments.c, lib/diskbuf.c).
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import signal
import subprocess
from collections.abc import Callable
from functools import partial
from pathlib import Path

from cisfs.build import interrupts
from cisfs.errors import CisfsError, UsageError
from cisfs.mount import programs
from cisfs.mount.process import end_with_parent, ending

MEMORY_PER_ENTRY = 7 << 10  # bytes; mkfs.erofs 1.5 takes 6.2 KiB for each inode until it ends

_ALL_INLINE = str((1 << 31) - 1)
_CLUSTER_SIZE = 64 << 10
_TICK = 0.2  # seconds between two looks at how far it is
_COMPLAINT_LIMIT = 500  # characters


def find() -> str:
    """Return the path of mkfs.erofs.  Raises UsageError that names the package."""
    found = programs.find("mkfs.erofs")
    if found is None:
        raise UsageError(
            "mkfs.erofs is not installed; on Debian and Ubuntu: apt install erofs-utils"
        )
    return found


def make_image(
    program: str,
    source: Path,
    image: int,
    compression: str,
    *,
    limit: int | None,
    progress: Callable[[int], None],
) -> None:
    """Write an image of the directory `source` into the file with the descriptor `image`.

    `compression` is "lz4", "lz4hc" or "lz4hc,LEVEL".  The file may grow to `limit` bytes;
    `progress` is told its size now and then.  Raises CisfsError.
    """
    with contextlib.ExitStack() as undo:
        with interrupts.held():
            process = subprocess.Popen(
                command(program, source, image, compression),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=[image],
                env={"PATH": os.defpath, "LC_ALL": "C"},  # no SOURCE_DATE_EPOCH: times are kept
                preexec_fn=partial(_prepare, limit, os.getpid()),  # noqa: PLW1509 - one thread
            )
            undo.enter_context(process)  # waits for it
            undo.callback(process.kill)
        complaints = _await(process, lambda: progress(os.fstat(image).st_size))
    if process.returncode:
        raise CisfsError(_failure(process.returncode, complaints, limit))


def command(program: str, source: Path, image: int, compression: str) -> list[str]:
    """Return the words of the command line.

    All extended attributes lie beside their inodes: looking for those that could be shared takes a
    walk of its own, and saves less than reading them elsewhere costs.  Clusters of 64 KiB make
    images 6 % smaller than those of 4 KiB, in the same time; larger ones 0.5 % more.
    """
    options = ["--quiet", f"-x{_ALL_INLINE}", f"-z{compression}", f"-C{_CLUSTER_SIZE}"]
    return [program, *options, f"/proc/self/fd/{image}", str(source)]


def _prepare(limit: int | None, parent: int) -> None:
    """In the child: die with the parent, and of a file too large.

    Some failed writes it does not notice (lib/inode.c, where erofs_write_tail_end is called), so
    that ENOSPC could leave a damaged image behind an exit status of 0.
    """
    end_with_parent(parent)
    if limit is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def _await(process: subprocess.Popen[bytes], look: Callable[[], None]) -> str:
    """Wait for the end, looking up now and then; return what was complained of."""
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            _, complaints = process.communicate(timeout=_TICK)
            return complaints.decode(errors="replace")
        look()


def _failure(code: int, complaints: str, limit: int | None) -> str:
    if code == -signal.SIGXFSZ and limit is not None:
        return (
            f"the image outgrew the {limit >> 20} MiB of memory that were set aside for it: "
            "seal without --compression"
        )
    if code < 0:
        return f"mkfs.erofs {ending(code)}; was there too little memory?"
    lines = (re.sub(r"^<E> \w+:\s*", "", line.strip()) for line in complaints.splitlines())
    words = "; ".join(filter(None, lines)) or f"it ended with status {code}"
    return f"mkfs.erofs cannot make the image: {words[:_COMPLAINT_LIMIT]}"
