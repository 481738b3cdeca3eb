"""Mounting, unmounting, signals and dead servers."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.mount.harness import linux
from tests.mount.harness.lab import Lab, command, environment
from tests.mount.harness.linux import fails
from tests.mount.harness.processes import Child, alive, wait_until

pytestmark = [pytest.mark.fuse, pytest.mark.root]


def test_twenty_remounts_in_a_row(lab: Lab) -> None:
    for number in range(20):
        lab.mount()
        (lab.mountpoint / f"file{number}").write_bytes(bytes(1000))
        assert len(os.listdir(lab.mountpoint)) == number + 1
        lab.umount()


def test_the_key_may_be_gone_after_mounting(lab: Lab) -> None:
    lab.mount()
    key = lab.key.read_bytes()
    lab.key.unlink()
    (lab.mountpoint / "file").write_bytes(b"x")
    lab.umount()
    lab.key.touch(0o600)
    lab.key.write_bytes(key)


def test_a_relative_log_file_is_where_the_user_is(lab: Lab) -> None:
    lab.damaged = True
    lab.must("mount", lab.vault, lab.mountpoint, "--log-file", "own.log", *lab.with_key)
    (lab.mountpoint / "dir").mkdir()
    lab.stored(lab.mountpoint / "dir").joinpath("cisfs.dir").write_bytes(b"damage")
    (lab.stored(lab.mountpoint / "dir") / "x").touch()
    lab.umount()
    lab.must("mount", lab.vault, lab.mountpoint, "--log-file", "own.log", *lab.with_key)
    with fails():
        os.listdir(lab.mountpoint / "dir")
    lab.umount()
    assert "/dir" in (lab.base / "own.log").read_text()


def test_the_log_is_not_for_others_to_write(lab: Lab) -> None:
    lab.mount()
    wait_until(lab.log.exists, "there is a log")
    assert not lab.log.stat().st_mode & 0o022


def test_the_server_holds_nothing_of_its_starters(lab: Lab) -> None:
    """No terminal, no pipe of the caller's, no working directory: and so no hang of `| cat`."""
    lab.mount()
    server = Path("/proc") / str(lab.server)
    assert os.readlink(server / "cwd") == "/"
    assert {os.readlink(server / "fd" / number) for number in "012"} == {"/dev/null"}


def writer(root: Path, record: Path) -> int:
    """Write files until that fails; those that were closed well are recorded."""
    with record.open("a", buffering=1) as done:
        for number in range(100_000):
            try:
                (root / f"file{number}").write_bytes(b"%d;" % number * 2000)
            except OSError as error:
                # ENOENT: the mount is gone, and with it the directory in it.  EIO: what the kernel
                # makes of a failed write-back in close(2).
                ended = (errno.ENOTCONN, errno.ECONNABORTED, errno.ENOENT, errno.EIO)
                assert error.errno in ended, error  # noqa: PT017 - this is a child process
                return number
            done.write(f"{number}\n")
    raise AssertionError("nothing ended the writer")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_in_mid_write_loses_nothing_that_was_closed(
    lab: Lab, number: signal.Signals
) -> None:
    lab.allow(r"fuse_reply_\* failed with No such file")  # whose request was aborted at the end
    words = command("mount", lab.vault, lab.mountpoint, "--foreground", "--log-file", lab.log)
    with subprocess.Popen([*words, *lab.with_key], env=environment(), cwd=lab.base) as server:
        wait_until(lambda: lab.is_mounted, "it is mounted")
        record, directory = lab.base / "record", lab.mountpoint / "dir"
        directory.mkdir()
        writing = Child(lambda: writer(directory, record))
        wait_until(lambda: record.exists() and record.stat().st_size > 100, "some are written")
        server.send_signal(number)
        code = server.wait(60)
    writing.result()
    assert code == 0, lab.log.read_text()
    assert not lab.is_mounted
    lab.mount()
    for line in record.read_text().split():
        assert (directory / f"file{line}").read_bytes() == b"%s;" % line.encode() * 2000


def test_a_signal_to_a_detached_server(lab: Lab) -> None:
    lab.mount()
    (lab.mountpoint / "file").write_bytes(b"kept")
    server = lab.server
    os.kill(server, signal.SIGTERM)
    wait_until(lambda: not alive(server), "the server has ended")
    assert not lab.is_mounted
    lab.mount()
    assert (lab.mountpoint / "file").read_bytes() == b"kept"


def test_a_signal_while_the_mount_is_idle_and_in_use(lab: Lab) -> None:
    lab.mount()
    server = lab.server
    fd = os.open(lab.mountpoint / "file", os.O_WRONLY | os.O_CREAT)
    os.write(fd, b"unsynced, but written back before the end")
    os.kill(server, signal.SIGTERM)
    wait_until(lambda: not alive(server), "the server has ended")
    with fails(errno.ENOTCONN):
        os.fsync(fd)
    with fails():
        os.close(fd)
    lab.mount()
    assert (lab.mountpoint / "file").read_bytes() == b"unsynced, but written back before the end"


def kill_server(lab: Lab) -> None:
    server = lab.server
    os.kill(server, signal.SIGKILL)
    wait_until(lambda: not alive(server), "the server is dead")
    with fails(errno.ENOTCONN):
        os.listdir(lab.mountpoint)


def test_umount_cleans_a_dead_mount_up(lab: Lab) -> None:
    lab.mount()
    kill_server(lab)
    lab.umount()
    assert not lab.is_mounted
    assert os.listdir(lab.mountpoint) == []


def test_mount_cleans_a_dead_mount_up(lab: Lab) -> None:
    (lab.mount() / "file").write_bytes(b"x")
    kill_server(lab)
    lab.mount()
    assert os.listdir(lab.mountpoint) == ["file"]


def test_mount_cleans_a_dead_mount_up_that_is_in_use(lab: Lab) -> None:
    lab.mount()
    fd = os.open(lab.mountpoint, os.O_RDONLY | os.O_DIRECTORY)
    kill_server(lab)
    lab.mount()
    os.close(fd)


def test_a_forced_umount_ends_the_server_in_good_order(lab: Lab) -> None:
    """umount -f aborts the connection; neither the server nor its lock may stay."""
    lab.mount()
    (lab.mountpoint / "file").write_bytes(b"kept")
    server = lab.server
    linux.umount(lab.mountpoint, linux.MNT_FORCE)
    wait_until(lambda: not alive(server), "the server has ended")
    lab.mount()
    assert (lab.mountpoint / "file").read_bytes() == b"kept"


def test_close_after_the_servers_death_tells_that_the_content_is_lost(lab: Lab) -> None:
    """The kernel drops dirty pages of a dead connection in silence; only FLUSH, if sent, fails."""
    lab.mount()
    (lab.mountpoint / "earlier").write_bytes(b"x")
    fd = os.open(lab.mountpoint / "file", os.O_WRONLY | os.O_CREAT)
    os.write(fd, b"never written back")
    os.kill(lab.server, signal.SIGKILL)
    wait_until(lambda: not lab.servers(), "the server is dead")
    with fails(errno.ENOTCONN, errno.EIO):
        os.close(fd)
    lab.umount()
