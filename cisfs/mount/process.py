"""What the server process sheds and keeps of the process it was forked from.

Does not know vaults, FUSE or mounts.  Called once, by a process that has just been forked and has
one thread.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import logging
import logging.handlers
import os
import resource
import signal
import socket
from pathlib import Path

from cisfs.mount import logs

# linux/prctl.h
_PR_SET_PDEATHSIG = 1
_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_IO_FLUSHER = 57
_NOBODY = 65534
_SYSLOG = Path("/dev/log")
_OOM_SCORE = Path("/proc/self/oom_score_adj")
_LAST_TO_BE_KILLED = "-999"  # -1000 would be never
_FORMAT = "cisfs[%(process)d]: %(message)s"

_libc = ctypes.CDLL(None, use_errno=True)


def join_writeback() -> None:
    """Be one of those that the kernel writes pages back through, as far as that is allowed.

    Memory that such a process needs is not waited for by writing to it (PR_SET_IO_FLUSHER, Linux
    5.6), and when there is none left, others are killed first.
    """
    _libc.prctl(_PR_SET_IO_FLUSHER, 1, 0, 0, 0)
    with contextlib.suppress(OSError):
        _OOM_SCORE.write_text(_LAST_TO_BE_KILLED)


def drop_privileges() -> None:
    """Be nobody, for good; without root, only make sure that nothing can be gained any more."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(_NOBODY, _NOBODY, _NOBODY)
        os.setresuid(_NOBODY, _NOBODY, _NOBODY)
    _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def keep_descriptors(kept: set[int]) -> None:
    """Close every descriptor but `kept`, the standard ones, and what the log is written to."""
    kept = kept | {0, 1, 2} | {_log_descriptor(each) for each in logging.getLogger().handlers}
    start = 0
    for descriptor in [*sorted(kept), os.sysconf("SC_OPEN_MAX")]:
        if start < descriptor:  # closerange(0, 0) closes everything (CPython 3.11)
            os.closerange(start, descriptor)
        start = descriptor + 1


def _log_descriptor(handler: logging.Handler) -> int:
    if isinstance(handler, logging.handlers.SysLogHandler):
        connection: socket.socket = vars(handler)["socket"]
        return connection.fileno()
    return int(handler.stream.fileno()) if isinstance(handler, logging.StreamHandler) else 2


def signal_name(number: int) -> str:
    """Return the name of a signal; those for real-time use have only a number."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def ending(exit_code: int) -> str:
    """Say how a process ended, in words that follow its name."""
    if exit_code < 0:
        return f"was killed by {signal_name(-exit_code)}"
    return f"ended with code {exit_code}"


def raise_file_limit() -> None:
    """Open files of the mount cost a descriptor each: take as many as are allowed."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def end_with_parent(parent: int, number: int = signal.SIGTERM) -> None:
    """Have a signal sent when the process `parent`, which forked this one, ends (prctl(2)).

    A change of user takes this back.
    """
    _libc.prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)
    if os.getppid() != parent:
        os.kill(os.getpid(), number)


def leave_home() -> None:
    """Belong to no terminal and stay in no directory; modes come from the kernel already masked."""
    os.setsid()
    os.chdir("/")
    os.umask(0)


def shed_descriptors(keep_stderr: bool) -> None:
    """Let go of the caller's terminal or pipes, and of what its own parent left open to it.

    Python opens everything close-on-exec (PEP 446), so what is not was inherited and is not ours.
    """
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1) if keep_stderr else (0, 1, 2):
        os.dup2(null, standard)
    os.close(null)
    for link in list(Path("/proc/self/fd").iterdir()):
        descriptor = int(link.name)
        if descriptor > 2 and not _close_on_exec(descriptor):
            os.close(descriptor)


def _close_on_exec(descriptor: int) -> bool:
    try:
        return bool(fcntl.fcntl(descriptor, fcntl.F_GETFD) & fcntl.FD_CLOEXEC)
    except OSError:
        return True  # the listing's own descriptor, closed since


def start_logging(log_file: Path | None, *, to_stderr: bool) -> None:
    """Log warnings and worse to `log_file`, else to stderr, else to syslog where there is one."""
    root = logging.getLogger()
    for handler in list(root.handlers):
        root.removeHandler(handler)
    handler = _log_handler(log_file, to_stderr)
    handler.setFormatter(logs.OneLine(_FORMAT))
    handler.addFilter(logs.Repeats())
    root.addHandler(handler)
    root.setLevel(logging.WARNING)


def _log_handler(log_file: Path | None, to_stderr: bool) -> logging.Handler:
    if log_file is not None:
        return logs.LimitedFile(log_file)
    if to_stderr:
        return logging.StreamHandler()
    try:
        return logging.handlers.SysLogHandler(
            str(_SYSLOG), facility=logging.handlers.SysLogHandler.LOG_DAEMON
        )
    except OSError:
        return logging.NullHandler()
