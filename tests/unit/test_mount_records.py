"""The records of our EROFS mounts: whose a mount is, and whether anybody serves it."""

from __future__ import annotations

import os
import signal
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cisfs.mount import records
from cisfs.mount.points import MountEntry
from cisfs.mount.records import Record

DEVICE = "0:99"


@pytest.fixture(autouse=True)
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two directories that are not there yet."""
    path = tmp_path / "cisfs/mounts"
    monkeypatch.setattr(records, "DIRECTORY", path)
    return path


def entry(device: str = DEVICE, source: str = "/srv/layer.cis") -> MountEntry:
    return MountEntry(device, Path("/mnt"), frozenset({"ro"}), "erofs", source)


@contextmanager
def process(work: Callable[[], object]) -> Iterator[int]:
    """Another process, which does `work`, says so, and then lives until it is killed."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            kept = work()
            os.write(writing, b"done" if kept else b"none")
            signal.pause()
        finally:
            os._exit(1)
    os.close(writing)
    try:
        assert os.read(reading, 4) in (b"done", b"none"), "the other process failed"
        yield pid
    finally:
        os.close(reading)
        kill(pid)


def kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    except (ProcessLookupError, ChildProcessError):
        pass  # the test has done it


def test_a_record_tells_our_mounts_from_others() -> None:
    record = Record(entry())
    assert records.is_ours(entry())
    assert not records.is_ours(entry(device="0:98"))
    assert not records.is_ours(entry(source="/srv/other.cis"))  # the number was used again
    record.remove()
    assert not records.is_ours(entry())


def test_a_source_of_any_bytes() -> None:
    odd = entry(source="/srv/line\nend, \\ and \udcff")
    record = Record(odd)
    assert records.is_ours(odd)
    record.remove()


def test_the_layer_behind_a_loop_device_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    loop, layer = entry(source="/dev/loop7"), Path("/srv/line\nend.cis")
    os.close(Record(entry(source=f"/an/earlier/{'x' * 100}"))._fd)  # its server was killed
    records.announce(loop.device, loop.source, layer)
    assert records.layer_of(loop) == layer
    assert not records.is_served(loop.device)
    with monkeypatch.context() as patched:
        patched.delattr(os, "ftruncate")  # killed just then, it would lose what was announced
        record = Record(loop, layer)
    assert records.is_ours(loop)
    assert records.layer_of(loop) == layer
    assert records.layer_of(entry(source="/dev/loop8")) is None
    record.remove()
    record = Record(entry())
    assert records.layer_of(entry()) == Path(entry().source)
    record.remove()
    assert records.layer_of(entry()) is None


def test_only_root_looks_into_them(directory: Path) -> None:
    before = os.umask(0)
    try:
        record = Record(entry())
    finally:
        os.umask(before)
    modes = [stat.S_IMODE(path.stat().st_mode) for path in (directory.parent, directory)]
    assert modes == [0o700, 0o700]
    assert stat.S_IMODE((directory / DEVICE).stat().st_mode) == 0o600
    record.remove()


def test_nothing_is_left_of_the_last(directory: Path) -> None:
    one, other = Record(entry("0:1")), Record(entry("0:2"))
    one.remove()
    assert [path.name for path in directory.iterdir()] == ["0:2"]
    other.remove()
    assert not directory.parent.exists()


def test_what_others_keep_beside_them_stays(directory: Path) -> None:
    record = Record(entry())
    (directory.parent / "run-1").mkdir()
    record.remove()
    assert [path.name for path in directory.parent.iterdir()] == ["run-1"]


def test_a_mount_is_served_while_its_supervisor_lives() -> None:
    assert not records.is_served(DEVICE)
    with process(lambda: Record(entry())) as supervisor:
        assert records.is_served(DEVICE)
        assert records.is_ours(entry())
        kill(supervisor)
        assert not records.is_served(DEVICE)
        assert records.is_ours(entry())  # so that somebody may clean up


def test_asking_does_not_take_the_lock() -> None:
    with process(lambda: Record(entry())) as supervisor:
        kill(supervisor)
    assert not records.is_served(DEVICE)
    assert not records.is_served(DEVICE)
    record = Record(entry())
    record.remove()


def test_what_a_dead_supervisor_left_is_replaced() -> None:
    with process(lambda: Record(entry(source="/srv/a much longer name than the next.cis"))):
        pass
    record = Record(entry())
    assert records.is_ours(entry())
    record.remove()


def test_forgetting_what_is_not_there() -> None:
    records.forget(DEVICE)
    Record(entry()).remove()
    records.forget(DEVICE)


def test_a_number_used_again_before_the_first_user_has_left() -> None:
    """The kernel may give a device number away while its last user has yet to remove the record."""
    first, second = Record(entry()), entry(source="/srv/second.cis")
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(first._fd)  # the inherited copy would keep the first one's lock
            record = Record(second)
            code = 0 if records.is_ours(second) and records.is_served(DEVICE) else 2
            record.remove()
        finally:
            os._exit(code)
    time.sleep(0.2)  # it waits for the lock now, if it waits at all
    first.remove()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_link_in_the_place_of_a_record_is_not_followed(directory: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    directory.mkdir(parents=True)
    (directory / DEVICE).symlink_to(victim)
    with pytest.raises(OSError, match="symbolic links"):
        Record(entry())
    assert not records.is_served(DEVICE)
    assert victim.read_text() == "precious"
