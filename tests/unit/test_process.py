"""What a server process sheds: descriptors, rights, and its parent; each test in one of its own."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from cisfs.mount import process
from tests.mount.harness.processes import NOBODY, Child, alive, wait_until


def open_descriptors() -> list[int]:
    found = []
    for link in list(Path("/proc/self/fd").iterdir()):
        try:
            os.fstat(int(link.name))
        except OSError:
            continue  # the listing's own
        found.append(int(link.name))
    return sorted(found)


def no_log() -> None:
    """Before there is a log: the handlers of these tests' own process are pytest's."""
    logging.getLogger().handlers.clear()


Keep = Callable[..., list[int]]


@pytest.fixture
def keep(tmp_path: Path) -> Keep:
    """What is open after `keep_descriptors`, in a process that has much more open before.

    It reports through a file, which it opens afterwards.
    """
    report = tmp_path / "report"

    def in_a_child(kept: set[int], start_log: Callable[[], None] = no_log) -> list[int]:
        pid = os.fork()
        if pid == 0:
            signal.alarm(30)
            try:
                start_log()
                for number in range(200, 300):
                    os.dup2(0, number)
                process.keep_descriptors(kept)
                found = open_descriptors()
                logging.getLogger("cisfs").warning("still heard")
                report.write_text(json.dumps(found))
            finally:
                os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        left: list[int] = json.loads(report.read_text())
        return left

    return in_a_child


def test_all_others_are_closed(keep: Keep) -> None:
    assert keep(set()) == [0, 1, 2]


@pytest.mark.parametrize("kept", [{0}, {1}, {2}, {0, 1, 2}])
def test_the_standard_ones_stay_whoever_is_kept(keep: Keep, kept: set[int]) -> None:
    """`os.closerange(0, 0)`, an empty range, closes everything from 0 on (CPython 3.11)."""
    assert keep(kept) == [0, 1, 2]


@pytest.mark.parametrize("kept", [{200}, {299}, {200, 299}, {210, 211, 213}])
def test_the_kept_ones_stay(keep: Keep, kept: set[int]) -> None:
    assert keep(kept) == [0, 1, 2, *sorted(kept)]


def test_one_that_is_not_open(keep: Keep) -> None:
    assert keep({199, 210, 400}) == [0, 1, 2, 210]


def test_a_log_file_stays(keep: Keep, tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert len(keep(set(), lambda: process.start_logging(log, to_stderr=False))) == 4
    assert "still heard" in log.read_text()
    assert stat.S_IMODE(log.stat().st_mode) == 0o600


def test_a_connection_to_syslog_stays(
    keep: Keep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_SYSLOG", tmp_path / "log")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as syslog:
        syslog.bind(str(tmp_path / "log"))
        syslog.settimeout(20)
        assert len(keep(set(), lambda: process.start_logging(None, to_stderr=False))) == 4
        assert b"still heard" in syslog.recv(1000)


def test_without_any_log_nothing_more_is_kept(
    keep: Keep, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "_SYSLOG", tmp_path / "missing")
    assert keep(set(), lambda: process.start_logging(None, to_stderr=False)) == [0, 1, 2]


# ---- rights, memory, parents


def status(field: str) -> str:
    text = Path("/proc/self/status").read_text()
    return text.partition(f"\n{field}:")[2].partition("\n")[0].strip()


def test_rights_are_dropped_for_good() -> None:
    def work() -> tuple[list[int], str, str, list[int]]:
        process.drop_privileges()
        with pytest.raises(PermissionError):
            os.setuid(0)
        return [*os.getresuid(), *os.getresgid()], status("CapEff"), status("NoNewPrivs"), groups()

    def groups() -> list[int]:
        return os.getgroups() if root else []

    root = os.geteuid() == 0
    ids, capabilities, no_new, left = Child(work).result()
    assert no_new == "1"
    assert int(capabilities, 16) == 0
    assert left == []
    assert ids == [NOBODY] * 6 if root else NOBODY not in ids


def test_a_process_ends_with_its_parent() -> None:
    reading, writing = os.pipe()

    def parent() -> None:
        pid = os.fork()
        if pid == 0:
            try:
                process.end_with_parent(os.getppid(), signal.SIGKILL)
                os.write(writing, b"%d" % os.getpid())
                signal.pause()
            finally:
                os._exit(1)
        signal.pause()

    child = Child(parent)
    grandchild = int(os.read(reading, 20))
    assert alive(grandchild)
    os.kill(child.pid, signal.SIGKILL)
    wait_until(lambda: not alive(grandchild), "it has ended, too")
    with pytest.raises(AssertionError, match=r"ended with -9"):
        child.result()
    for end in (reading, writing):
        os.close(end)


def test_a_parent_that_died_before_it_was_asked_about() -> None:
    def orphan() -> None:
        process.end_with_parent(1 << 30, signal.SIGKILL)

    with pytest.raises(AssertionError, match=r"ended with -9"):
        Child(orphan).result()
