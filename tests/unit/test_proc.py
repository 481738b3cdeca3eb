"""Processes that call themselves what is hard to read."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cisfs.mount import proc, unmount
from cisfs.runtime import dispositions

GONE = 1 << 22  # beyond any process's number (proc(5), pid_max)
# A line that ends within a name, for all but the kernel, and bytes that are no text.
STRANGE = b"\xff\x0cSigCgt:\tf)"


@pytest.fixture
def strange(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has its name from the link that it was started by, and waits."""
    link = os.path.join(os.fsencode(tmp_path), STRANGE)
    os.symlink("/bin/cat", link)
    pipe = subprocess.PIPE
    with subprocess.Popen([link], stdin=pipe, stdout=pipe, bufsize=0, cwd=tmp_path) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(b"x")
        assert process.stdout.read(1) == b"x"  # so it is executed, and has its name
        yield process


def test_a_name_is_text_whatever_it_is(strange: subprocess.Popen[bytes]) -> None:
    assert os.fsencode(proc.name(strange.pid)) == STRANGE
    assert proc.name(GONE) == ""


def test_what_follows_a_name_is_found(strange: subprocess.Popen[bytes]) -> None:
    fields = proc.stat(strange.pid)
    assert fields[0] in ("R", "S")
    assert int(fields[1]) == os.getpid()
    assert proc.stat(GONE) == []


def test_a_name_is_no_field_of_a_status(strange: subprocess.Popen[bytes]) -> None:
    status = proc.status(strange.pid)
    assert int(status["Pid"]) == strange.pid
    assert os.fsencode(status["Name"]) == STRANGE
    assert not dispositions.handles(strange.pid, signal.SIGHUP)
    assert proc.status(GONE) == {}


def test_who_uses_a_mount_is_said_in_letters(
    strange: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    assert unmount._users(tmp_path) == [f"??SigCgt:?f) (process {strange.pid})"]
