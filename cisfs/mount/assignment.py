"""What a server process is told, how it reports, and how it lives, whatever it serves.

Does not know vaults, sealed layers or FUSE.  For processes with one thread: before and after the
fork that makes one a server.
"""

from __future__ import annotations

import contextlib
import os
import signal
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from cisfs.errors import CisfsError, UsageError
from cisfs.keys import memory
from cisfs.mount import process, syscalls

TERMINATION = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
MOUNTED = b"mounted"
FETCH_PATIENCE = 30.0  # seconds, where nobody says another time
IMAGE_NAME = "image.erofs"  # what a mount without root shows of a sealed layer


def patience(text: str) -> float:
    """Return how many seconds something is waited for, as a person writes it.

    Raises UsageError for what is no number from 0.1 to 86,400.
    """
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 86_400:
        raise UsageError(f"{text!r} is not a number of seconds from 0.1 to 86400")
    return seconds


@dataclass(frozen=True)
class MountOptions:
    """How to mount.

    `detach`: outlive the caller.  `foreground`, or not `detach`: log to stderr, else to syslog;
    `log_file` is for those who would rather have a file.  `home`: see below; a server that has one
    is found by no record.

    For vaults, mounted read-only: `first_owner` is shown in the place of id 0; see `owners`.

    For sealed layers: `workers` (default: one for each processor), the `worker_patience` in seconds
    after which one that does not answer is replaced, and `loop_device`: mount through one even
    where the kernel can do without.

    For layers that are not all here: `fetch_patience`, the seconds that a read waits for what is
    missing, and `fetch`, which has a process fetch it: called in a process of its own with the
    layer's directory, a descriptor of that which holds the claim to it, and `log_file`, it becomes
    that one or ends.
    """

    read_only: bool = False
    allow_other: bool = False
    foreground: bool = False
    detach: bool = True
    log_file: Path | None = None
    workers: int | None = None
    worker_patience: float = 60.0
    loop_device: bool = False
    fetch: Callable[[Path, int, Path | None], object] | None = None
    fetch_patience: float = FETCH_PATIENCE
    first_owner: int = 0
    home: int | None = None  # mount namespace that server processes live in


@dataclass(frozen=True)
class Assignment:
    """What a server is to do: the layer is `source`, shown at `mountpoint`; both are resolved.

    `parent` is the process it was forked from.  `report` is the writing end of a pipe: it gets
    MOUNTED, or an exit code, a newline and a message.
    """

    source: Path
    mountpoint: Path
    options: MountOptions
    report: int
    parent: int


def forked(work: Callable[[], int], report: int | None) -> int:
    """Fork a process whose whole life is `work`, see `live`; return its number.

    It heeds signals that ask for its end, also where this process ignores them, and from the first
    moment on: those that come before it can are not lost.
    """
    held = signal.pthread_sigmask(signal.SIG_BLOCK, TERMINATION)
    try:
        pid = os.fork()
        if pid == 0:
            heed_termination()
            signal.pthread_sigmask(signal.SIG_SETMASK, held)
            live(work, report)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, held)
    return pid


def live(work: Callable[[], int], report: int | None) -> NoReturn:
    """Run `work` as the whole life of this process; nothing of the caller's runs here again."""
    code = 1
    try:
        code = work()
    except CisfsError as error:
        code = error.exit_code
        tell(report, f"{code}\n{error}".encode())
    except OSError as error:
        tell(report, f"{code}\n{error}".encode())
    except BaseException as error:  # noqa: BLE001 - must not unwind into the parent's frames
        traceback.print_exc()
        tell(report, f"{code}\n{type(error).__name__}: {error}".encode())
    finally:
        os._exit(code)


def tell(report: int | None, message: bytes) -> None:
    """Write to the pipe that the process's starter reads, if there is one."""
    if report is not None:
        with contextlib.suppress(OSError):  # closed: mounted already, so nobody reads it
            os.write(report, message)


def heed_termination() -> None:
    """Let signals that ask for the end do so, whatever the process made of them that forked us."""
    for number in TERMINATION:
        signal.signal(number, signal.SIG_DFL)


def go_home(options: MountOptions) -> None:
    """Leave the mount namespace that was mounted in, if the options say where to.

    It and its mounts then end with those who use them, and so does the server.  Raises OSError.
    """
    if options.home is not None:
        syscalls.enter_namespace(options.home, syscalls.CLONE_NEWNS)


def settle(options: MountOptions, parent: int) -> None:
    """Shed what was inherited, and log where the options say."""
    to_stderr = options.foreground or not options.detach
    memory.keep_private()
    process.leave_home()
    process.shed_descriptors(keep_stderr=to_stderr)
    process.raise_file_limit()
    process.start_logging(options.log_file, to_stderr=to_stderr)
    if to_stderr:
        process.end_with_parent(parent)
