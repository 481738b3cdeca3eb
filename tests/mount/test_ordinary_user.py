"""cisfs without root: an ordinary user, fusermount3, and a /dev/fuse open to all.

Many systems have /dev/fuse with mode 0666; where it is closed, and in any case, the tests bring
their own in a private mount namespace, which goes with the process that has it.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import pkgutil
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import pytest

import cisfs
from tests.mount.harness import linux
from tests.mount.harness.processes import NOBODY, Child, become

pytestmark = [pytest.mark.fuse, pytest.mark.root]

_Result = TypeVar("_Result")


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory of the ordinary user's; pytest's own are closed to him."""
    path = Path(tempfile.mkdtemp(prefix="cisfs-user-", dir="/tmp"))
    os.chown(path, NOBODY, NOBODY)
    yield path
    shutil.rmtree(path)


def as_ordinary_user(home: Path, work: Callable[[], _Result], device_mode: int = 0o666) -> _Result:
    """Run `work` as nobody, in a mount namespace where /dev/fuse has the mode `device_mode`."""

    def prepare_and_work() -> _Result:
        linux.unshare_mounts()
        linux.adopt_orphans()
        device = home / "fuse"
        os.mknod(device, stat.S_IFCHR, os.makedev(10, 229))
        device.chmod(device_mode)
        linux.mount(str(device), Path("/dev/fuse"), "", linux.MS_BIND)
        _import_everything()  # the files may lie where only root can go
        become(NOBODY, NOBODY)
        os.chdir(home)
        result = work()
        # Every server must have ended by itself: else SIGALRM ends this wait, and the test fails.
        with contextlib.suppress(ChildProcessError):
            while True:
                os.wait()
        return result

    result: _Result = Child(prepare_and_work).result()
    return result


def _import_everything() -> None:
    from cisfs.mount.loop import stand_in_for_trio

    stand_in_for_trio()
    for module in pkgutil.walk_packages(cisfs.__path__, "cisfs."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def cisfs_command(*words: str) -> int:
    """The command line, in a process of its own; a server that it leaves behind is adopted."""
    from cisfs.cli.main import main

    pid = os.fork()
    if pid == 0:
        os._exit(main(words))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def make_vault() -> None:
    Path("key").touch(0o600)
    Path("key").write_bytes(bytes(range(32)))
    Path("open").mkdir()
    assert cisfs_command("init", "vault", "--key-file", "key") == 0


def mount(*options: str) -> int:
    return cisfs_command(
        "mount",
        "vault",
        "open",
        "--key-file",
        "key",
        "--log-file",
        os.path.abspath("log"),
        *options,
    )


def finish() -> None:
    assert cisfs_command("umount", "open") == 0
    assert Path("log").read_text() == ""
    assert cisfs_command("verify", "vault", "--key-file", "key") == 0


def test_a_vault_is_made_mounted_used_and_unmounted(home: Path) -> None:
    def work() -> None:
        make_vault()
        assert mount() == 0
        Path("open/dir").mkdir()
        Path("open/dir/file").write_bytes(bytes(100_000))
        os.setxattr("open/dir/file", "user.x", b"1")
        os.symlink("dir/file", "open/link")
        os.link("open/dir/file", "open/hard")
        os.mkfifo("open/fifo")
        assert cisfs_command("umount", "open") == 0
        assert mount() == 0
        assert Path("open/link").read_bytes() == bytes(100_000)
        assert os.getxattr("open/hard", "user.x") == b"1"
        shutil.rmtree("open/dir")
        finish()

    as_ordinary_user(home, work)


def test_the_modes_that_root_need_not_care_about(home: Path) -> None:  # noqa: C901 - a list
    """The server is the user here: files it may not read or write by mode are in its way."""

    def work() -> list[str]:
        make_vault()
        assert mount() == 0
        failures = []

        def attempt(what: str, act: Callable[[], object]) -> None:
            try:
                act()
            except OSError as error:
                failures.append(f"{what}: {error}")

        def write_only() -> None:
            Path("open/w").touch()
            os.chmod("open/w", 0o200)
            fd = os.open("open/w", os.O_WRONLY)
            os.write(fd, b"x")
            os.close(fd)

        def read_only_directory() -> None:
            Path("open/d").mkdir()
            os.chmod("open/d", 0o555)
            os.rmdir("open/d")

        def closed_directory_made_so() -> None:
            os.mkdir("open/c", 0o500)
            os.chmod("open/c", 0o700)
            Path("open/c/file").touch()

        def attributes_of_a_closed_file() -> None:
            Path("open/x").touch()
            os.setxattr("open/x", "user.x", b"1")
            os.chmod("open/x", 0o000)
            os.stat("open/x")
            os.chmod("open/x", 0o600)
            assert os.getxattr("open/x", "user.x") == b"1"

        def written_while_read_only() -> None:
            fd = os.open("open/r", os.O_CREAT | os.O_WRONLY, 0o400)
            os.write(fd, b"x" * 100_000)
            os.close(fd)
            assert Path("open/r").read_bytes() == b"x" * 100_000

        def renamed_over_a_read_only_directory() -> None:
            os.mkdir("open/from")
            os.mkdir("open/to")
            os.chmod("open/to", 0o555)
            os.rename("open/from", "open/to")

        attempt("write to a file of mode 0200", write_only)
        attempt("rmdir of an empty directory of mode 0555", read_only_directory)
        attempt("mkdir with mode 0500", closed_directory_made_so)
        attempt("attributes of a file of mode 0000", attributes_of_a_closed_file)
        attempt("create a file of mode 0400 and write it", written_while_read_only)
        attempt("rename over an empty directory of mode 0555", renamed_over_a_read_only_directory)
        for directory, _, _ in os.walk("open"):
            os.chmod(directory, 0o700)
        shutil.rmtree("open", ignore_errors=True)
        finish()
        return failures

    assert as_ordinary_user(home, work) == []


def test_verify_names_what_its_user_may_not_read_and_goes_on(
    home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    def work() -> int:
        make_vault()
        assert mount() == 0
        Path("open/closed").touch()
        os.chmod("open/closed", 0o200)
        assert cisfs_command("umount", "open") == 0
        return cisfs_command("verify", "vault", "--key-file", "key")

    assert as_ordinary_user(home, work) == 19
    assert "/closed: " in capfd.readouterr().out


def test_root_is_kept_out_of_a_users_mount(home: Path) -> None:
    """FUSE's own rule; what matters is that cisfs's message to its own user stays useful."""

    def work() -> None:
        make_vault()
        assert mount("--allow-other") in (0, 17)  # by /etc/fuse.conf
        if os.path.ismount("open"):
            finish()

    as_ordinary_user(home, work)


def test_a_closed_device_is_said_so(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def work() -> int:
        make_vault()
        return mount()

    assert as_ordinary_user(home, work, device_mode=0o600) == 18
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 1
    assert "/dev/fuse" in said[0]


def children() -> list[int]:
    """The processes whose parent this one is."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if (entry / "stat").read_text().rpartition(")")[2].split()[1] == str(os.getpid()):
                    found.append(int(entry.name))
    return found


def test_sigterm_ends_a_users_server(home: Path) -> None:
    def work() -> None:
        import signal

        from tests.mount.harness.processes import wait_until

        make_vault()
        assert mount() == 0
        Path("open/file").write_bytes(b"kept")
        (server,) = children()
        os.kill(server, signal.SIGTERM)
        wait_until(lambda: not os.path.ismount("open"), "the mount is gone")
        os.waitpid(server, 0)
        assert mount() == 0
        assert Path("open/file").read_bytes() == b"kept"
        finish()

    as_ordinary_user(home, work)
