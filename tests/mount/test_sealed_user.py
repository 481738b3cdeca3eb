"""A sealed layer in the hands of an ordinary user: the decrypted image, shown as one file.

See test_ordinary_user.py for how /dev/fuse is opened to one in a mount namespace of the test's own.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import signal
import stat
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.mount.harness import layers, linux
from tests.mount.harness.layers import Material, block, flip, fresh
from tests.mount.harness.linux import fails
from tests.mount.harness.processes import NOBODY, Child, alive, wait_until
from tests.mount.harness.sealed import guarded, serving
from tests.mount.test_ordinary_user import as_ordinary_user, children, cisfs_command

pytestmark = [pytest.mark.fuse, pytest.mark.root]

IMAGE = Path("open/image.erofs")
UNIT = 64 * 1024


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    """One layer for all tests of the module."""
    base = tmp_path_factory.mktemp("material")
    layers.plain_tree(base / "tree")
    return Material.make(base, base / "tree")


@pytest.fixture
def home(material: Material) -> Iterator[Path]:
    """A directory of the ordinary user's with the layer, its key, and a mount point in it."""
    path = Path(tempfile.mkdtemp(prefix="cisfs-user-", dir="/tmp"))
    shutil.copyfile(material.layer, path / "layer.cis")
    shutil.copyfile(material.key, path / "key")
    (path / "open").mkdir()
    (path / "key").chmod(0o600)
    for each in (path, *path.iterdir()):
        os.chown(each, NOBODY, NOBODY)
    with guarded(path, 60):
        yield path
    assert serving(path) == []
    shutil.rmtree(path)


@pytest.fixture
def image(material: Material) -> bytes:
    """What is to be seen."""
    return material.image.read_bytes()


def mount(*options: str, layer: str = "layer.cis", at: str = "open") -> int:
    log = os.path.abspath("log")
    return cisfs_command("mount", layer, at, "--key-file", "key", "--log-file", log, *options)


def umount(*options: str) -> int:
    return cisfs_command("umount", *options, "open")


def logged() -> list[str]:
    return Path("log").read_text().splitlines()


def workers(supervisor: int) -> list[int]:
    """The processes whose parent is `supervisor`."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[1]) == supervisor and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def have_others(supervisor: int, before: list[int]) -> bool:
    return len(set(workers(supervisor)) - set(before)) == 2


# ---- what it shows


def test_the_image_is_shown_and_said_to_be(
    home: Path, image: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    def work() -> tuple[list[str], int, str, int, int]:
        assert mount() == 0
        listed, status = os.listdir("open"), IMAGE.stat()
        content = hashlib.sha256(fresh(IMAGE)).hexdigest()
        assert block(IMAGE, len(image) - 50, 100) == image[-50:]
        assert os.statvfs("open").f_bavail == 0
        checked = subprocess.run(["fsck.erofs", IMAGE], capture_output=True, check=False)
        assert checked.returncode == 0
        modes = [stat.S_IMODE(os.stat(path).st_mode) for path in ("open", IMAGE)]
        assert modes == [0o500, 0o400]
        for path, flags in ((IMAGE, os.O_RDWR), (Path("open/x"), os.O_CREAT)):
            with fails(errno.EROFS, errno.EACCES):
                os.open(path, flags)
        with fails(errno.ENOENT):
            os.stat("open/other")
        assert umount() == 0
        assert logged() == []
        return listed, status.st_size, content, status.st_uid, len(os.listdir("open"))

    expected = (["image.erofs"], len(image), hashlib.sha256(image).hexdigest(), NOBODY, 0)
    assert as_ordinary_user(home, work) == expected
    said, complaints = capfd.readouterr()
    assert said == "without root only the decrypted image is shown: open/image.erofs\n"
    assert complaints == ""


def test_the_mount_table_tells_the_layer(home: Path) -> None:
    odd = "a, layer\\with:odd name.cis"

    def work() -> tuple[str, str, set[str]]:
        os.rename("layer.cis", odd)
        assert mount(layer=odd) == 0
        (line,) = (
            line
            for line in Path("/proc/self/mountinfo").read_text().splitlines()
            if line.split()[4] == str(home / "open")
        )
        assert umount() == 0
        kind, source = line.partition(" - ")[2].split()[:2]
        source = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), source)
        return kind, source, set(line.split()[5].split(","))

    kind, source, options = as_ordinary_user(home, work)
    assert (kind, source) == ("fuse.cisfs", str(home / odd))
    assert options >= {"ro", "nosuid", "nodev"}


def test_two_mounts_of_one_layer(home: Path, image: bytes) -> None:
    def work() -> None:
        Path("other").mkdir()
        assert mount() == 0
        assert mount(at="other") == 0
        assert umount() == 0
        assert fresh(Path("other/image.erofs")) == image
        assert cisfs_command("umount", "other") == 0

    as_ordinary_user(home, work)


# ---- what is refused


def test_refusals(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def work() -> list[int]:
        Path("full").mkdir()
        Path("full/x").touch()
        Path("wrong").touch(0o600)
        Path("wrong").write_bytes(bytes(32))
        codes = [
            mount(at="full"),
            mount(at="missing"),
            cisfs_command("mount", "layer.cis", "open", "--key-file", "wrong"),
            mount("--allow-other"),  # which takes a line in /etc/fuse.conf
            umount(),
        ]
        flip(Path("layer.cis"), 100)
        return [*codes, mount()]

    assert as_ordinary_user(home, work) == [17, 17, 12, 17, 17, 11]
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 6
    assert all(line.startswith("cisfs: ") for line in said)
    assert "user_allow_other" in said[3]


def test_a_closed_device_is_said_so(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert as_ordinary_user(home, mount, device_mode=0o600) == 18
    (said,) = capfd.readouterr().err.splitlines()
    assert "/dev/fuse" in said


# ---- who may look


def seen_by(uid: int, home: Path, *options: str) -> tuple[int, str]:
    """What another user gets who looks at the image: exit code and output of sha256sum(1)."""
    home.chmod(0o755)

    def serve() -> None:
        assert mount(*options) == 0
        Path("pid").write_text(str(os.getpid()))
        wait_until(Path("done").exists, "the other has looked")
        assert umount() == 0

    def serve_where_others_may_be_let_in() -> None:
        linux.unshare_mounts()
        (home / "fuse.conf").write_text("user_allow_other\n")
        linux.mount(str(home / "fuse.conf"), Path("/etc/fuse.conf"), "", linux.MS_BIND)
        as_ordinary_user(home, serve)

    server = Child(serve_where_others_may_be_let_in)
    wait_until((home / "pid").exists, "it is mounted")
    wait_until(lambda: (home / "pid").read_text() != "", "it is mounted")
    namespace = f"--mount=/proc/{(home / 'pid').read_text()}/ns/mnt"
    become = ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"]
    words = ["nsenter", namespace, *become, "sha256sum", str(home / IMAGE)]
    ended = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    (home / "done").touch()
    server.result()
    return ended.returncode, ended.stdout.partition(" ")[0]


@pytest.mark.parametrize("uid", [0, 1234])
def test_others_are_kept_out(home: Path, uid: int) -> None:
    assert seen_by(uid, home) == (1, "")


@pytest.mark.parametrize("uid", [0, 1234])
def test_others_are_let_in_if_asked_for(home: Path, image: bytes, uid: int) -> None:
    assert seen_by(uid, home, "--allow-other") == (0, hashlib.sha256(image).hexdigest())


# ---- deaths


def test_workers_may_be_killed(home: Path, image: bytes) -> None:
    def work() -> None:
        assert mount("--workers", "2") == 0
        (supervisor,) = children()
        for _ in range(5):
            before = workers(supervisor)
            for pid in before:
                os.kill(pid, signal.SIGKILL)
            assert fresh(IMAGE) == image
            wait_until(partial(have_others, supervisor, before), "there are two again")
        status = Path(f"/proc/{workers(supervisor)[0]}/status").read_text()
        assert "\nNoNewPrivs:\t1\n" in status
        assert umount() == 0
        lines = logged()
        assert len(lines) == 10
        assert all("ended (SIGKILL): it is replaced" in line for line in lines)

    as_ordinary_user(home, work)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it(home: Path, number: signal.Signals) -> None:
    def work() -> None:
        assert mount() == 0
        (supervisor,) = children()
        os.kill(supervisor, number)
        assert os.waitpid(supervisor, 0)[1] == 0
        assert not os.path.ismount("open")
        assert logged() == []

    as_ordinary_user(home, work)


def test_a_signal_ends_one_in_use(home: Path) -> None:
    def work() -> None:
        assert mount() == 0
        fd = os.open(IMAGE, os.O_RDONLY)
        (supervisor,) = children()
        os.kill(supervisor, signal.SIGTERM)
        assert os.waitpid(supervisor, 0)[1] == 0
        assert not os.path.ismount("open")
        with fails(errno.ENOTCONN, errno.EIO, errno.ECONNABORTED):
            os.pread(fd, 100, 5 << 20)

    as_ordinary_user(home, work)


def test_umount_in_use_is_refused_then_lazy(
    home: Path, image: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    def work() -> None:
        assert mount() == 0
        fd = os.open(IMAGE, os.O_RDONLY)
        assert umount() == 17
        assert umount("--lazy") == 0
        assert os.listdir("open") == []
        assert os.pread(fd, UNIT, 5 << 20) == image[5 << 20 :][:UNIT]
        os.close(fd)

    as_ordinary_user(home, work)
    assert "in use" in capfd.readouterr().err


@pytest.mark.parametrize("cure", ["umount", "mount"])
def test_a_dead_mount_is_cleaned_up(home: Path, image: bytes, cure: str) -> None:
    cures: dict[str, Callable[[], int]] = {"umount": umount, "mount": mount}

    def work() -> None:
        assert mount() == 0
        (supervisor,) = children()
        orphans = workers(supervisor)
        os.kill(supervisor, signal.SIGKILL)
        os.waitpid(supervisor, 0)
        wait_until(lambda: not any(map(alive, orphans)), "its workers have ended with it")
        with fails(errno.ENOTCONN, errno.ECONNABORTED):
            os.listdir("open")
        assert cures[cure]() == 0
        if cure == "mount":
            assert fresh(IMAGE) == image
            assert umount() == 0
        assert os.listdir("open") == []

    as_ordinary_user(home, work)


def test_damage_is_an_error_and_a_line(home: Path, image: bytes) -> None:
    def work() -> None:
        flip(Path("layer.cis"), 131_072 + 20 * UNIT + 9)
        assert mount() == 0
        with fails(errno.EIO):
            block(IMAGE, 20 * UNIT)
        with fails(errno.EIO):
            fresh(IMAGE)
        for unit in (19, 21):
            assert block(IMAGE, unit * UNIT, UNIT) == image[unit * UNIT :][:UNIT]
        assert umount() == 0
        lines = logged()
        assert lines
        assert [
            line for line in lines if f"{home}/layer.cis: unit 20 was altered" not in line
        ] == []

    as_ordinary_user(home, work)
