"""`cisfs seal` for real: mkfs.erofs, FUSE, tmpfs and the kernel's EROFS, as root.

Needs root, erofs-utils, acl and /dev/fuse.  After every test nothing may be left: no mount, no
process, no file but the layer.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import pty
import secrets
import shutil
import signal
import subprocess
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.harness import linux, processes
from tests.mount.harness.processes import NOBODY, Child, wait_until
from tests.system.seals import (
    ENDLESS,
    NO_MEMORY,
    PATIENCE,
    STALL,
    Site,
    assert_same,
    memory_site,
    plant,
    plant_what_mkfs_would_lose,
    snapshot,
)

pytestmark = [pytest.mark.root, pytest.mark.fuse]

LZ4 = ["--compression", "lz4"]


@pytest.fixture
def site() -> Iterator[Site]:
    if os.geteuid() != 0:
        pytest.fail("these tests mount: run them as root (scripts/test does)")
    with memory_site() as made:
        yield made


def fail(
    site: Site, source: str | Path, code: int, words: str, *options: str, change: str = ""
) -> None:
    """Seal what cannot be sealed: one line says why, and nothing is made."""
    ended = site.seal(source, *options, change=change)
    assert (ended.returncode, ended.stdout) == (code, ""), ended
    assert words in ended.stderr
    assert ended.stderr.startswith("cisfs: ")
    assert ended.stderr.count("\n") == 1, ended.stderr
    assert list(site.out.iterdir()) == []


# -- what is kept --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "compression"),
    [
        ("directory", "none"),
        ("vault", "none"),
        ("tar", "none"),
        ("directory", "lz4"),
        ("vault", "lz4"),
        ("tar", "lz4"),
        ("directory", "lz4hc,1"),
    ],
)
def test_everything_is_kept(site: Site, kind: str, compression: str) -> None:
    plant(site.source)
    if compression == "none":
        plant_what_mkfs_would_lose(site.source)
    if kind == "tar":  # GNU tar has no sockets, and takes no notice of a FIFO's hard link
        (site.source / "a/fifo").unlink()
        (site.source / "socket").unlink(missing_ok=True)
    source = {"directory": lambda path: path, "vault": site.vault, "tar": site.tar}[kind](
        site.source
    )
    layer = site.must_seal(source, "--compression", compression, "--allow-devices")
    with site.mounted(layer) as mounted:
        assert_same(snapshot(site.source), snapshot(mounted))


@pytest.mark.parametrize("compression", ["none", "lz4"])
def test_a_large_directory_is_kept(site: Site, compression: str) -> None:
    large = site.source / "large"
    large.mkdir()
    for number in range(10_000):
        (large / f"{number:05}-with-a-rather-long-name").touch()
    with site.mounted(site.must_seal(site.source, "--compression", compression)) as mounted:
        assert_same(snapshot(site.source), snapshot(mounted))


def test_a_file_of_more_than_four_gibibytes_is_kept(site: Site) -> None:
    with (site.source / "huge").open("wb") as file:
        file.truncate((4 << 30) + 12345)
        file.seek((4 << 30) + 5)
        file.write(b"beyond")
    with site.mounted(site.must_seal(site.source, "--compression", "lz4")) as mounted:
        assert (mounted / "huge").stat().st_size == (4 << 30) + 12345
        with (mounted / "huge").open("rb") as file:
            file.seek((4 << 30) - 1)
            assert file.read(12) == bytes(6) + b"beyond"


def test_a_tar_may_be_standard_input(site: Site) -> None:
    plant(site.source)
    before = snapshot(site.source)
    (site.source / "a/fifo").unlink()
    tar = site.tar(site.source, "--gzip")
    shutil.rmtree(site.source)
    ended = site.seal("-", "--allow-devices", stdin=tar)
    assert (ended.returncode, ended.stderr) == (0, "")
    with site.mounted() as mounted:
        after = snapshot(mounted)
        assert after["sparse"] == before["sparse"]
        assert len(after) > 100


def test_a_tar_may_come_from_another_command(site: Site) -> None:
    (site.source / "file").write_text("content")
    words = site.words(["seal", "--key-file", site.key, "-o", site.layer])
    line = 'exec "$@" <(tar c -C "$0" .)'
    subprocess.run(
        ["bash", "-c", line, site.source, *words], env=site.environment, check=True, timeout=60
    )
    with site.mounted() as mounted:
        assert (mounted / "file").read_text() == "content"


def test_a_large_image_is_compressed_in_an_ephemeral_vault(site: Site) -> None:
    plant(site.source)
    ended = site.seal(site.source, *LZ4, change=NO_MEMORY)
    assert (ended.returncode, ended.stderr) == (0, "")
    with site.mounted() as mounted:
        assert_same(snapshot(site.source), snapshot(mounted))


def test_an_erofs_image_is_sealed_as_it_is(site: Site) -> None:
    (site.source / "file").write_bytes(secrets.token_bytes(1_000_000))
    made = site.base / "made"
    subprocess.run(["mkfs.erofs", "--quiet", made, site.source], check=True)
    ended = site.seal(made, "--json")
    assert json.loads(ended.stdout)["source"] == "EROFS image"
    assert site.image().read_bytes() == made.read_bytes()


def test_whiteouts_are_made_overlayfs_own(site: Site) -> None:
    (site.source / "sub").mkdir()
    (site.source / ".wh.gone").touch()
    (site.source / "sub" / ".wh..wh..opq").touch()
    for source in (site.source, site.tar(site.source)):
        with site.mounted(site.must_seal(source)) as mounted:
            assert sorted(each.name for each in mounted.iterdir()) == ["gone", "sub"]
            assert (mounted / "gone").is_char_device()
            assert os.getxattr(mounted / "sub", "trusted.overlay.opaque") == b"y"


def test_the_key_of_the_vault_and_that_of_the_layer_may_differ(site: Site) -> None:
    (site.source / "file").write_text("content")
    vault = site.vault(site.source)
    old = site.base / "old-key"
    site.key.rename(old)
    site.key.touch(0o600)
    site.key.write_bytes(secrets.token_bytes(32))
    fail(site, vault, 12, "key")
    with site.mounted(site.must_seal(vault, "--source-key-file", old)) as mounted:
        assert (mounted / "file").read_text() == "content"


def test_what_is_said_of_a_layer_is_true(site: Site) -> None:
    (site.source / "file").write_bytes(bytes(100_000))
    (site.source / "hard").hardlink_to(site.source / "file")
    ended = site.seal(site.source, "--json", "--unit-size", "16K", "--workers", "3")
    said = json.loads(ended.stdout)
    described = json.loads(site.must("inspect", "--json", site.layer).stdout)
    for key in ("identity", "image_size", "stored_size", "unit_size"):
        assert said[key] == described[key]
    assert (said["entries"], said["input_bytes"]) == (2, 100_000)
    assert said["stored_size"] == site.layer.stat().st_size
    assert site.must("verify", "--key-file", site.key, site.layer).returncode == 0


def test_a_layer_is_replaced_only_when_told_so(site: Site) -> None:
    first = site.must_seal(site.source).read_bytes()
    (site.source / "file").touch()
    ended = site.seal(site.source)
    assert ended.returncode == 2
    assert site.layer.read_bytes() == first
    assert site.seal(site.source, "--force").returncode == 0
    assert site.layer.read_bytes() != first


# -- refusals ------------------------------------------------------------------------------


def test_what_mkfs_would_lose_is_not_compressed(site: Site) -> None:
    (site.source / ("n" * 255)).touch()
    (site.source / ("n" * 254)).touch()
    fail(site, site.source, 2, "names of up to 254 bytes", *LZ4)
    (site.source / ("n" * 255)).rename(site.source / "lost+found-notes")
    fail(site, site.source, 2, "would leave it out", *LZ4)


def test_the_empty_directory_of_an_ext4_is_left_out(site: Site) -> None:
    (site.source / "lost+found").mkdir()
    with site.mounted(site.must_seal(site.source, *LZ4)) as mounted:
        assert list(mounted.iterdir()) == []


def test_an_image_that_lacks_something_is_not_sealed(site: Site) -> None:
    (site.source / "lost+found").mkdir()
    blind = "from cisfs.build import losses; losses.check = lambda index, mountpoint: 0\n"
    fail(site, site.source, 1, "1 of 2 files and directories", *LZ4, change=blind)


def test_an_image_that_outgrows_its_memory_is_given_up(site: Site) -> None:
    (site.source / "file").write_bytes(secrets.token_bytes(3_000_000))
    small = """
from cisfs.build import memory
from cisfs.build.index import Totals
memory.available = lambda: 2 << 20
def count(self, *given):
    self.entries += 1
Totals.count = count
"""
    fail(site, site.source, 1, "outgrew the 1 MiB of memory", *LZ4, change=small)


def damaged_vault(site: Site) -> Path:
    (site.source / "file").write_bytes(secrets.token_bytes(100_000))
    vault = site.vault(site.source)
    (stored,) = (path for path in vault.iterdir() if path.stat().st_size > 100_000)
    with stored.open("r+b") as file:
        file.seek(50_000)
        file.write(b"altered")
    return vault


def test_a_damaged_vault_is_not_sealed(site: Site) -> None:
    fail(site, damaged_vault(site), 16, "file")


def test_a_damaged_vault_is_not_compressed(site: Site) -> None:
    ended = site.seal(damaged_vault(site), *LZ4)
    assert ended.returncode == 1
    assert "altered" in ended.stderr.splitlines()[0]
    assert "mkfs.erofs cannot make the image" in ended.stderr.splitlines()[-1]
    assert list(site.out.iterdir()) == []


def test_a_file_that_changes_meanwhile_is_not_sealed(site: Site) -> None:
    (site.source / "file").write_bytes(bytes(100_000))
    change = f"""
from cisfs.build import seal
def touched(*given, honest=seal.seal_image, **named):
    open({str(site.source / "file")!r}, "a").write("more")
    return honest(*given, **named)
seal.seal_image = touched
"""
    fail(site, site.source, 1, "changed while it was being sealed", change=change)


def test_a_vault_in_use_is_not_sealed(site: Site) -> None:
    vault, mountpoint = site.vault(site.source), site.base / "m"
    mountpoint.mkdir()
    site.must("mount", "--key-file", site.key, vault, mountpoint)
    fail(site, vault, 15, "in use")
    site.must("umount", mountpoint)


def test_a_tar_with_devices_or_of_too_large_a_size_is_refused(site: Site) -> None:
    os.mknod(site.source / "disk", 0o060600, os.makedev(8, 0))
    fail(site, site.tar(site.source), 2, "--allow-devices")
    (site.source / "disk").unlink()
    (site.source / "large").write_bytes(bytes(3_000_000))
    tar = site.tar(site.source, "--gzip")
    assert tar.stat().st_size < 1 << 20
    ended = site.seal(tar, "--max-size", "2M")
    assert ended.returncode == 2
    assert "--max-size" in ended.stderr


def test_what_is_no_tar_is_not_sealed(site: Site) -> None:
    path = site.base / "noise"
    path.write_bytes(secrets.token_bytes(100_000))
    fail(site, path, 11, str(path))
    path.write_bytes(b"")
    fail(site, path, 11, str(path))


def test_a_machine_without_mkfs(site: Site) -> None:
    gone = "from cisfs.mount import programs; programs.find = lambda name: None\n"
    fail(site, site.source, 2, "apt install erofs-utils", *LZ4, change=gone)


# -- full disks ----------------------------------------------------------------------------


@contextlib.contextmanager
def small_disk(place: Path, size: int) -> Iterator[None]:
    linux.mount("cisfs-test", place, "tmpfs", 0, f"size={size}")
    try:
        yield
    finally:
        linux.umount(place)


def test_a_full_disk_below_the_output(site: Site) -> None:
    (site.source / "file").write_bytes(secrets.token_bytes(3_000_000))
    with small_disk(site.out, 1 << 20):
        fail(site, site.source, 1, f"the file system of {site.out} is full")


def test_a_full_disk_below_the_ephemeral_vault(site: Site) -> None:
    """What the kernel has taken of a write and cannot get rid of is known only afterwards."""
    (site.source / "file").write_bytes(secrets.token_bytes(3_000_000))
    with small_disk(site.out, 1 << 20):
        ended = site.seal(site.source, *LZ4, change=NO_MEMORY)
        assert ended.returncode == 1
        assert "full" in ended.stderr.splitlines()[-1] or "No space" in ended.stderr
        assert list(site.out.iterdir()) == []


def test_what_a_full_disk_did_not_take_is_known_when_all_is_written(site: Site) -> None:
    """The kernel takes all of it at first, and shows it to whoever reads it again."""

    def work() -> tuple[int, int]:
        from cisfs.build import memory
        from cisfs.build.room import room
        from cisfs.build.workplace import Workplace

        memory.available = lambda: 0
        with Workplace(site.layer) as place, room(1, place) as made:
            written = os.pwrite(made.fd, bytes(3_000_000), 0)
            try:
                made.settle()
            except OSError as error:
                return written, error.errno or 0
            return written, 0

    with small_disk(site.out, 1 << 20):
        assert Child(work).result() == (3_000_000, errno.ENOSPC)
        assert list(site.out.iterdir()) == []


def test_a_write_that_failed_afterwards_fails_the_seal(site: Site) -> None:
    change = """
from cisfs.build.room import Room
def settle(self):
    raise OSError(5, "what the disk did not take")
Room.settle = settle
"""
    fail(site, site.source, 1, "what the disk did not take", *LZ4, change=change)


# -- signals -------------------------------------------------------------------------------

PHASES = [
    ("directory", "", "reading", "begin"),
    ("directory", "", "encrypting", "update"),
    ("vault", "", "encrypting", "update"),
    ("tar", "", "encrypting", "update"),
    ("directory", "", "compressing", "begin"),
    ("directory", "", "compressing", "update"),
    ("vault", "", "compressing", "update"),
    ("tar", "", "compressing", "update"),
    ("directory", "lz4", "encrypting", "update"),
    ("directory", NO_MEMORY, "compressing", "begin"),
    ("vault", NO_MEMORY, "compressing", "update"),
    ("tar", NO_MEMORY, "encrypting", "update"),
]
IDS = [
    f"{kind}-{'vault-' if change == NO_MEMORY else change}{doing}-{method}"
    for kind, change, doing, method in PHASES
]


@contextlib.contextmanager
def stalled(
    site: Site, kind: str, change: str, doing: str, method: str
) -> Iterator[subprocess.Popen[bytes]]:
    """A seal that has come to a certain point; `change` may be a kind of compression."""
    (site.source / "file").write_bytes(secrets.token_bytes(30_000_000))
    if doing == "compressing" and method == "update":
        program = site.programs / "mkfs.erofs"
        program.write_text(ENDLESS.format(base=site.base))
        program.chmod(0o755)
    source: str | Path = site.source
    stdin = None
    if kind == "vault":
        source = site.vault(site.source)
    elif kind == "tar":
        source, stdin = "-", site.tar(site.source)
    options = LZ4 if change or doing == "compressing" else []
    change = change if change == NO_MEMORY else ""
    change += STALL.format(doing=doing, method=method)
    with site.stalled(source, *options, change=change, stdin=stdin) as process:
        yield process


@pytest.mark.parametrize(("kind", "change", "doing", "method"), PHASES, ids=IDS)
def test_sigterm_in_every_phase(
    site: Site, kind: str, change: str, doing: str, method: str
) -> None:
    with stalled(site, kind, change, doing, method) as process:
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=PATIENCE)
        assert process.returncode == 128 + signal.SIGTERM
        assert said == b"cisfs: sealing was interrupted by SIGTERM\n"
    site.judge()
    assert list(site.out.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP])
def test_ctrl_c_and_a_lost_terminal(site: Site, number: signal.Signals) -> None:
    """Both come to the whole process group."""
    with stalled(site, "vault", NO_MEMORY, "encrypting", "update") as process:
        os.killpg(process.pid, number)
        _, said = process.communicate(timeout=PATIENCE)
        assert process.returncode == 128 + number
        assert said.count(b"\n") == 1
        assert number.name.encode() in said


@pytest.mark.parametrize(("kind", "change", "doing", "method"), PHASES, ids=IDS)
def test_kill_9_in_every_phase(site: Site, kind: str, change: str, doing: str, method: str) -> None:
    """No process is left, no mount, and no file but the ciphertext that nobody can read."""
    with stalled(site, kind, change, doing, method) as process:
        process.kill()
        process.wait()
        wait_until(lambda: not site.processes(), "all of them have ended", patience=15)
        left = list(site.out.iterdir())
        assert all(path.name.startswith(".layer.cis.") for path in left)
        assert all(path.suffix == ".scratch" for path in left)
        assert bool(left) == (change == NO_MEMORY)
        assert not linux.mounts_below(site.out)
        for path in left:
            shutil.rmtree(path)


def test_sigterm_while_the_tar_is_awaited(site: Site) -> None:
    reading, writing = os.pipe()
    with subprocess.Popen(
        site.words(site.seal_words("-")),
        env=site.environment,
        stdin=reading,
        stderr=subprocess.PIPE,
    ) as process:
        os.close(reading)
        os.write(writing, bytes(100))
        left = bytearray(4)
        wait_until(
            lambda: not fcntl.ioctl(writing, termios.FIONREAD, left) and not any(left),
            "the tar is being read",
        )
        process.terminate()
        _, said = process.communicate(timeout=PATIENCE)
    os.close(writing)
    assert process.returncode == 128 + signal.SIGTERM
    assert said == b"cisfs: sealing was interrupted by SIGTERM\n"


@pytest.mark.parametrize("delay", [0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 1.0, 1.2, 1.5])
def test_sigterm_at_any_moment(site: Site, delay: float) -> None:
    (site.source / "file").write_bytes(secrets.token_bytes(10_000_000))
    words = site.words(site.seal_words(site.source, *LZ4), NO_MEMORY)
    with subprocess.Popen(
        words, env=site.environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        time.sleep(delay)
        process.terminate()
        said, complaints = process.communicate(timeout=PATIENCE)
    assert b"Traceback" not in complaints, complaints
    # By the signal itself: before cisfs had begun, or when it had done everything.
    assert process.returncode in (0, -signal.SIGTERM, 128 + signal.SIGTERM), complaints
    if site.layer.exists():
        site.must("verify", "--key-file", site.key, site.layer)
    else:
        assert (process.returncode != 0, said) == (True, b"")


# -- what others can see -------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["directory", "vault", "tar"])
def test_nothing_mounted_can_be_seen_from_outside(site: Site, kind: str) -> None:
    before = site.traces()
    with stalled(site, kind, NO_MEMORY, "compressing", "update"):
        mounts = {trace for trace in site.traces() - before if trace.startswith("mount")}
        assert mounts == set()
        (scratch,) = site.out.iterdir()
        assert scratch.stat().st_mode & 0o777 == 0o700
        assert not [path for path in scratch.rglob("*") if path.name in ("image/image", "file")]
    for path in site.out.iterdir():
        shutil.rmtree(path)


def test_the_memory_is_never_swapped_out(tmp_path: Path) -> None:
    def work() -> tuple[str, bool, bytes]:
        from cisfs.build.room import room
        from cisfs.build.workplace import Workplace
        from cisfs.mount import syscalls

        seen: list[str] = []
        honest = syscalls.unmount

        def unmount(target: str, flags: int = 0) -> None:
            table = Path("/proc/self/mountinfo").read_text().splitlines()
            seen.extend(line for line in table if f" {tmp_path} " in line)
            honest(target, flags)

        syscalls.unmount = unmount
        with Workplace(tmp_path / "x.cis") as place, room(1, place) as made:
            os.write(made.fd, b"kept")
            return "".join(seen), tmp_path.is_mount(), os.pread(made.fd, 9, 0)

    entry, mounted, kept = Child(work).result()
    assert "noswap" in entry
    assert "tmpfs" in entry
    assert (mounted, kept) == (False, b"kept")
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()


def test_neither_the_seal_nor_mkfs_leaves_a_core(site: Site) -> None:
    with stalled(site, "directory", "", "compressing", "update") as process:
        for pid in site.processes():
            limits = Path(f"/proc/{pid}/limits").read_text().splitlines()
            (core,) = (line.split()[4:6] for line in limits if line.startswith("Max core"))
            if pid == process.pid or b"python" not in Path(f"/proc/{pid}/cmdline").read_bytes():
                assert core[0] == "1"  # the seal, and mkfs.erofs
            else:
                assert core[0] in ("0", "1")  # the server that shows the source
        assert len(site.processes()) == 3


def test_other_processes_of_the_user_do_not_see_its_memory(site: Site) -> None:
    """The kernel gives the files of a process that they may not look into to root (proc(5))."""
    for path in (site.base, *site.base.rglob("*")):
        os.chown(path, NOBODY, NOBODY)
    # A change of user alone has the same effect; what is executed afterwards begins anew.
    change = f"""
import os
if os.geteuid() == 0:
    os.setgid({NOBODY})
    os.setuid({NOBODY})
    os.execv(sys.executable, sys.orig_argv)
"""
    change += STALL.format(doing="reading", method="begin")
    with site.stalled(site.source, change=change) as process:
        assert Path(f"/proc/{process.pid}").stat().st_uid == NOBODY
        assert Path(f"/proc/{process.pid}/environ").stat().st_uid == 0


# -- an ordinary user, a terminal -----------------------------------------------------------


@pytest.mark.parametrize("how", ["no FUSE", "memory", "vault"])
@pytest.mark.parametrize("kind", ["directory", "vault", "tar"])
def test_without_root(site: Site, kind: str, how: str) -> None:
    """Compression takes a /dev/fuse that is open to all, here in the test's own namespace."""
    (site.source / "sub").mkdir()
    (site.source / "sub/file").write_text("content")
    source = {"directory": lambda path: path, "vault": site.vault, "tar": site.tar}[kind](
        site.source
    )
    for path in (site.base, *site.base.rglob("*")):
        os.chown(path, NOBODY, NOBODY, follow_symlinks=False)

    def work() -> tuple[int, str]:
        linux.unshare_mounts()
        linux.adopt_orphans()
        device = site.base / "fuse"
        os.mknod(device, 0o020666, os.makedev(10, 229))
        device.chmod(0o600 if how == "no FUSE" else 0o666)
        linux.mount(str(device), Path("/dev/fuse"), "", linux.MS_BIND)
        options = [] if how == "no FUSE" else LZ4
        change = NO_MEMORY if how == "vault" else ""
        words = site.words(site.seal_words(source, *options), change)
        as_nobody = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
        ended = subprocess.run(
            [*as_nobody, *words],
            env=site.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE,
        )
        left = [str(each.path) for each in linux.mounts_below(site.out)]
        return ended.returncode, f"{ended.stderr}{left or ''}"

    assert Child(work).result() == (0, "")
    (site.base / "fuse").unlink()
    with site.mounted() as mounted:
        assert (mounted / "sub/file").read_text() == "content"


def on_a_terminal(site: Site, *options: str) -> str:
    """Everything that a seal writes to its terminal."""
    master, slave = pty.openpty()
    with subprocess.Popen(
        site.words(site.seal_words(site.source, *options)),
        env=site.environment,
        stdin=slave,
        stdout=slave,
        stderr=slave,
    ) as process:
        os.close(slave)
        shown = b""
        with contextlib.suppress(OSError):  # how a terminal says that nobody is there any more
            while data := os.read(master, 65536):
                shown += data
    os.close(master)
    assert process.returncode == 0
    return shown.decode()


def test_a_terminal_is_shown_how_far_it_is(site: Site) -> None:
    (site.source / "file").write_bytes(secrets.token_bytes(3_000_000))
    shown = on_a_terminal(site, *LZ4)
    for words in ("reading ...", "compressing [", "encrypting  [", "100%  3 of 3 MiB"):
        assert words in shown
    assert f"\r\x1b[K\rsealed {site.layer}, sha256:" in shown
    assert "\x1b" not in on_a_terminal(site, "--force", "--json")
    assert on_a_terminal(site, "--force", "--quiet") == ""


def test_a_terminal_is_no_tar(site: Site) -> None:
    master, slave = pty.openpty()
    ended = subprocess.run(
        site.words(site.seal_words("-")),
        env=site.environment,
        stdin=slave,
        capture_output=True,
        check=False,
        timeout=PATIENCE,
    )
    os.close(slave)
    os.close(master)
    assert ended.returncode == 2
    assert b"is a terminal" in ended.stderr


def test_a_seal_that_nobody_waits_for_goes_on(site: Site) -> None:
    """As under nohup: SIGHUP was ignored when it began."""
    change = "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
    change += STALL.format(doing="reading", method="begin")
    with site.stalled(site.source, change=change) as process:
        process.send_signal(signal.SIGHUP)
        time.sleep(0.3)
        assert process.poll() is None
        assert processes.alive(process.pid)
