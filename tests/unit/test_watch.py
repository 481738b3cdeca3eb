"""The watch of the workers, with real forks."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator

import pytest

from cisfs.mount.watch import Watch
from tests.mount.harness.processes import wait_until


@pytest.fixture
def watch() -> Iterator[Watch]:
    made = Watch()
    yield made
    os.close(made.fd)


def forked(work: Callable[[int], None]) -> tuple[int, int]:
    """Fork a process that tells of its doings through a pipe; returns its id and the pipe."""
    receive, send = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            work(send)
        finally:
            os._exit(0)
    os.close(send)
    return pid, receive


def test_one_at_a_time_has_it(watch: Watch) -> None:
    watch.take()

    def follow(send: int) -> None:
        watch._is_mine = False
        watch.take()
        os.write(send, b"mine")

    pid, receive = forked(follow)
    os.set_blocking(receive, False)
    with pytest.raises(BlockingIOError):
        os.read(receive, 4)
    assert os.waitpid(pid, os.WNOHANG) == (0, 0)
    watch.pass_on()
    os.set_blocking(receive, True)
    assert os.read(receive, 4) == b"mine"
    os.waitpid(pid, 0)
    os.close(receive)


def test_it_can_be_tried_for(watch: Watch) -> None:
    assert watch.try_take()
    assert watch.try_take()

    def follow(send: int) -> None:
        watch._is_mine = False
        os.write(send, b"%d" % watch.try_take())

    pid, receive = forked(follow)
    assert os.read(receive, 1) == b"0"
    os.waitpid(pid, 0)
    os.close(receive)
    watch.pass_on()
    pid, receive = forked(follow)
    assert os.read(receive, 1) == b"1"
    os.waitpid(pid, 0)
    os.close(receive)


def test_the_dead_pass_it_on(watch: Watch) -> None:
    def hold(send: int) -> None:
        watch.take()
        os.write(send, b"mine")
        signal.pause()

    pid, receive = forked(hold)
    assert os.read(receive, 4) == b"mine"
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    watch.take()
    os.close(receive)


def test_to_take_it_twice_or_pass_on_nothing_does_no_harm(watch: Watch) -> None:
    watch.pass_on()
    watch.take()
    watch.take()
    watch.pass_on()

    def take(send: int) -> None:
        watch.take()
        os.write(send, b"mine")

    pid, receive = forked(take)
    assert os.read(receive, 4) == b"mine"
    wait_until(lambda: os.waitpid(pid, os.WNOHANG)[0] == pid, "the child has ended")
    os.close(receive)
