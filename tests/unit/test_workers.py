"""The crew of a mount, with real forks; /dev/fuse is a list of what was written to it."""

from __future__ import annotations

import errno
import logging
import os
import re
import signal
import time
from collections.abc import Callable, Iterator

import pytest

from cisfs.mount import wire, workers
from cisfs.mount.board import Seat
from cisfs.mount.workers import Crew

pytestmark = pytest.mark.slow

PATIENCE = 0.2
_write = os.write


class Device:
    """What the kernel is to the supervisor; `resends` says whether it knows that notification."""

    def __init__(self) -> None:
        self.fd = os.open(os.devnull, os.O_RDWR)
        self.written: list[bytes] = []
        self.resends = True
        self.gone = False
        self.unknown: set[int] = set()  # requests that nobody waits for

    def write(self, fd: int, data: bytes) -> int:
        if fd != self.fd:
            return _write(fd, data)
        if self.gone:
            raise OSError(errno.ENODEV, "No such device")
        if data == wire.NOTIFY_RESEND and not self.resends:
            raise OSError(errno.EINVAL, "Invalid argument")
        if any(data == wire.error_reply(number, errno.EIO) for number in self.unknown):
            raise OSError(errno.ENOENT, "No such file or directory")
        self.written.append(data)
        return len(data)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    made = Device()
    monkeypatch.setattr(os, "write", made.write)
    yield made
    os.close(made.fd)


Work = Callable[[Seat], None]
Enlist = Callable[..., Crew]


@pytest.fixture
def enlist(device: Device) -> Iterator[Enlist]:
    """Start crews; afterwards no child is left of any."""
    crews: list[Crew] = []

    def start(count: int, work: Work, patience: float = 60.0) -> Crew:
        crew = Crew(device.fd, count, work, patience=patience)
        crews.append(crew)
        crew.start()
        return crew

    yield start
    for crew in crews:
        crew.dismiss()
    assert no_child_is_left()


def no_child_is_left() -> bool:
    try:
        os.waitpid(-1, os.WNOHANG)
    except ChildProcessError:
        return True
    return False


def pids(crew: Crew) -> set[int]:
    return set(crew._workers)


def wait(_seat: Seat) -> None:
    signal.pause()


def with_request(number: int) -> Work:
    """Sit on a request."""

    def work(seat: Seat) -> None:
        seat.take(number)
        signal.pause()

    return work


def wait_until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, f"waited in vain until {what}"
        time.sleep(0.005)


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    """End a worker with a signal; it is left for its crew to bury."""
    os.kill(pid, number)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)


def looks_until(crew: Crew, condition: Callable[[], bool], what: str) -> None:
    def look() -> bool:
        crew.look()
        return condition()

    wait_until(look, what)


def has_in_hand(crew: Crew, number: int) -> bool:
    return any(crew._board.in_hand(index) == number for index in range(crew._count))


# ---- death


@pytest.mark.parametrize("count", [1, 3])
def test_a_dead_worker_is_replaced_and_its_requests_are_sent_again(
    enlist: Enlist, device: Device, caplog: pytest.LogCaptureFixture, count: int
) -> None:
    crew = enlist(count, wait)
    before = pids(crew)
    assert len(before) == count
    crew.look()
    assert (pids(crew), device.written) == (before, [])
    victim = min(before)
    kill(victim)
    crew.look()
    assert len(pids(crew)) == count
    assert len(pids(crew) & before) == count - 1
    assert device.written == [wire.NOTIFY_RESEND]
    assert len(device.written[0]) == 16
    (line,) = caplog.messages
    assert f"worker {victim} ended (SIGKILL)" in line
    crew.look()
    assert len(device.written) == 1


def test_deaths_at_once(enlist: Enlist, device: Device) -> None:
    crew = enlist(5, wait)
    before = pids(crew)
    for pid in before:
        kill(pid)
    crew.look()
    assert len(pids(crew)) == 5
    assert not pids(crew) & before
    assert set(device.written) == {wire.NOTIFY_RESEND}


@pytest.mark.parametrize(
    ("number", "said"),
    [(signal.SIGTERM, "SIGTERM"), (signal.SIGUSR1, "SIGUSR1"), (signal.SIGRTMIN + 6, "40")],
)
def test_any_signal_that_ends_one(
    enlist: Enlist, device: Device, caplog: pytest.LogCaptureFixture, number: int, said: str
) -> None:
    """Of the real-time signals Python has names for two only."""
    crew = enlist(1, wait)
    (victim,) = pids(crew)
    kill(victim, number)
    crew.look()
    assert said in caplog.text
    assert device.written == [wire.NOTIFY_RESEND]


def test_an_exception_ends_its_worker_only(
    enlist: Enlist, device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    def work(_seat: Seat) -> None:
        raise KeyError("in a worker")

    crew = enlist(1, work)
    (victim,) = pids(crew)
    looks_until(crew, lambda: victim not in pids(crew), "it is replaced")
    assert f"worker {victim} ended (exit code 1)" in caplog.text
    assert wire.NOTIFY_RESEND in device.written


def test_a_worker_whose_supervisor_is_gone_does_not_begin(
    enlist: Enlist, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have died between the fork and the worker's asking to die with it."""
    reading, writing = os.pipe()
    monkeypatch.setattr(os, "getppid", lambda: 1)
    crew = enlist(1, lambda _seat: print(_write(writing, b"began")))
    (pid,) = pids(crew)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    os.close(writing)
    assert os.read(reading, 5) == b""
    os.close(reading)


# ---- a kernel that cannot send requests again


def test_requests_in_hand_fail_if_they_cannot_be_sent_again(
    enlist: Enlist, device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    device.resends = False
    crew = enlist(1, with_request(1 << 63 | 77))
    for round_ in (1, 2):
        wait_until(lambda: has_in_hand(crew, 1 << 63 | 77), "the request is in hand")
        kill(*pids(crew))
        crew.look()
        assert device.written == [wire.error_reply(1 << 63 | 77, errno.EIO)] * round_
    said = [line for line in caplog.messages if "6.9" in line]
    assert len(said) == 1
    assert "EIO" in said[0]


def test_requests_put_aside_fail_if_they_cannot_be_sent_again(
    enlist: Enlist, device: Device
) -> None:
    device.resends = False

    def work(seat: Seat) -> None:
        seat.put_aside(3, 33)
        seat.put_aside(9, 99)
        seat.take(11)
        signal.pause()

    crew = enlist(1, work)
    wait_until(lambda: has_in_hand(crew, 11), "the request is in hand")
    kill(*pids(crew))
    crew.look()
    assert device.written == [wire.error_reply(number, errno.EIO) for number in (11, 33, 99)]


def test_what_was_put_aside_is_not_what_workers_die_of(enlist: Enlist, device: Device) -> None:
    """It may wait for a registry through any number of deaths."""

    def work(seat: Seat) -> None:
        seat.put_aside(3, 33)
        seat.take(0)
        signal.pause()

    crew = enlist(1, work)
    for _ in range(workers._FATAL_DEATHS + 2):
        wait_until(lambda: crew._board.aside(0) == [33], "the request is put aside")
        kill(*pids(crew))
        crew.look()
    assert set(device.written) == {wire.NOTIFY_RESEND}


def test_only_what_the_dead_had_in_hand_fails(enlist: Enlist, device: Device) -> None:
    device.resends = False

    def work(seat: Seat) -> None:
        if seat._offset == 0:
            seat.take(1)
        signal.pause()

    crew = enlist(2, work)
    wait_until(lambda: has_in_hand(crew, 1), "the request is in hand")
    (idle,) = (worker.pid for worker in crew._workers.values() if worker.index == 1)
    kill(idle)
    crew.look()
    assert device.written == []
    assert len(pids(crew)) == 2


def test_a_reader_who_has_left_is_nobodys_trouble(
    enlist: Enlist, device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    device.resends = False
    device.unknown.add(5)
    crew = enlist(1, with_request(5))
    wait_until(lambda: has_in_hand(crew, 5), "the request is in hand")
    kill(*pids(crew))
    crew.look()
    assert device.written == []
    assert len(pids(crew)) == 1
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


def test_a_death_when_the_mount_is_gone(
    enlist: Enlist, device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    device.gone = True
    crew = enlist(1, with_request(5))
    kill(*pids(crew))
    crew.look()
    device.gone = False
    assert "6.9" not in caplog.text
    (victim,) = pids(crew)
    kill(victim)
    crew.look()
    assert device.written == [wire.NOTIFY_RESEND]  # that it can be done is still believed


# ---- hanging


def test_a_hung_worker_is_replaced(
    enlist: Enlist, device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    crew = enlist(1, with_request(9), patience=PATIENCE)
    (victim,) = pids(crew)
    begun = time.monotonic()
    looks_until(crew, lambda: victim not in pids(crew), "it is replaced")
    assert time.monotonic() - begun > PATIENCE
    assert f"worker {victim} has not answered for 0.2 s" in caplog.text
    assert device.written == [wire.NOTIFY_RESEND]


def test_one_that_goes_from_request_to_request_is_not_hung(enlist: Enlist) -> None:
    def work(seat: Seat) -> None:
        number = 0
        while True:
            number += 1
            seat.take(number)
            time.sleep(0.01)
            seat.rest()

    crew = enlist(1, work, patience=PATIENCE)
    before = pids(crew)
    end = time.monotonic() + 3 * PATIENCE
    while time.monotonic() < end:
        crew.look()
        time.sleep(0.01)
    assert pids(crew) == before


def stop(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    os.waitid(os.P_PID, pid, os.WSTOPPED | os.WNOWAIT)


def test_a_stopped_worker_is_replaced_even_when_it_is_idle(
    enlist: Enlist, device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    crew = enlist(2, wait, patience=PATIENCE)
    before = pids(crew)
    victim = min(before)
    stop(victim)
    looks_until(crew, lambda: victim not in pids(crew), "it is replaced")
    assert len(pids(crew) & before) == 1
    assert f"worker {victim} has not answered" in caplog.text
    assert device.written == [wire.NOTIFY_RESEND]


def test_one_that_is_stopped_for_a_moment_stays(
    enlist: Enlist, caplog: pytest.LogCaptureFixture
) -> None:
    crew = enlist(1, wait, patience=PATIENCE)
    (pid,) = pids(crew)
    for _ in range(3):
        stop(pid)
        crew.look()
        time.sleep(PATIENCE * 0.6)
        crew.look()
        os.kill(pid, signal.SIGCONT)
        wait_until(lambda: not workers._is_stopped(pid), "it goes on")
        crew.look()
    assert pids(crew) == {pid}
    assert caplog.messages == []


# ---- workers that cannot live


def test_a_storm_of_deaths_does_not_fork_without_bound(
    enlist: Enlist, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(workers, "_STORM_SECONDS", 3600.0)
    crew = enlist(2, lambda _seat: os._exit(1))
    assert not crew.is_hopeless
    looks_until(crew, lambda: crew.is_hopeless, "it is given up")
    deaths = len(caplog.messages)
    assert workers._STORM_DEATHS <= deaths <= workers._STORM_DEATHS + 2
    for _ in range(50):
        crew.look()
        time.sleep(0.002)
    assert len(caplog.messages) <= workers._STORM_DEATHS + 2
    assert not crew._workers
    assert not crew.ended


def test_after_a_storm_it_is_tried_again(
    enlist: Enlist, monkeypatch: pytest.MonkeyPatch, device: Device
) -> None:
    monkeypatch.setattr(workers, "_STORM_SECONDS", 3600.0)
    reading, writing = os.pipe()
    os.set_blocking(reading, False)

    def work(_seat: Seat) -> None:
        try:
            os.read(reading, 1)
        except BlockingIOError:
            os._exit(1)
        signal.pause()

    crew = enlist(1, work)
    looks_until(crew, lambda: crew.is_hopeless and not crew._workers, "it is given up")
    os.write(writing, b"y")
    device.written.clear()
    monkeypatch.setattr(workers, "_STORM_SECONDS", 0.0)
    crew.look()
    assert len(pids(crew)) == 1
    assert device.written == [wire.NOTIFY_RESEND]
    for end in (reading, writing):
        os.close(end)


def test_deaths_now_and_then_are_no_storm(enlist: Enlist, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_STORM_DEATHS", 3)
    monkeypatch.setattr(workers, "_STORM_SECONDS", 0.2)
    crew = enlist(1, wait)
    for _ in range(5):
        time.sleep(0.11)
        kill(*pids(crew))
        crew.look()
        assert len(pids(crew)) == 1
        assert not crew.is_hopeless


# ---- the end


def test_the_end_of_the_mount_is_not_taken_for_a_death(
    enlist: Enlist, device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    crew = enlist(3, lambda seat: None if seat._offset == 0 else signal.pause())
    looks_until(crew, lambda: crew.ended, "a worker has seen the end")
    assert len(pids(crew)) == 2
    assert device.written == []
    for pid in pids(crew):  # whatever becomes of the others then
        kill(pid)
    crew.look()
    assert not crew._workers
    assert device.written == []
    assert caplog.messages == []


def test_dismissed_workers_are_gone(
    enlist: Enlist, device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    crew = enlist(3, with_request(4))
    stop(min(pids(crew)))
    dead = max(pids(crew))
    kill(dead)
    crew.dismiss()
    assert not crew._workers
    assert no_child_is_left()
    assert (device.written, caplog.messages) == ([], [])
    crew.dismiss()


def test_log_lines_name_processes(enlist: Enlist, caplog: pytest.LogCaptureFixture) -> None:
    crew = enlist(2, wait)
    victims = pids(crew)
    for pid in victims:
        kill(pid)
    crew.look()
    named = {int(number) for number in re.findall(r"worker (\d+) ended", caplog.text)}
    assert named == victims
