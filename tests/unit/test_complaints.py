"""How failures are said: without numbers, and not at all when nothing failed."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

import pytest

from cisfs.errors import MountError, UsageError, in_words
from cisfs.mount.server import Server


def test_the_operating_systems_errors_have_no_numbers() -> None:
    full = os.strerror(errno.ENOSPC)
    assert in_words(OSError(errno.ENOSPC, full)) == "No space left on device"
    assert in_words(OSError(errno.ENOSPC, full, "/a")) == "/a: No space left on device"
    assert in_words(OSError(errno.ENOSPC, full, b"/\xff")) == "/\udcff: No space left on device"
    assert in_words(OSError("odd")) == "odd"
    assert in_words(UsageError("said")) == "said"


def child(code: int | None) -> int:
    """A process that ends with a code, or waits for a signal."""
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if code is None:
            signal.pause()
        os._exit(code or 0)
    return pid


def test_a_server_that_did_not_serve_yet_has_failed_nobody(tmp_path: Path) -> None:
    Server(child(None), tmp_path).stop()
    failed = child(3)
    os.waitid(os.P_PID, failed, os.WEXITED | os.WNOWAIT)
    with pytest.raises(MountError, match="ended with code 3"):
        Server(failed, tmp_path).stop()
