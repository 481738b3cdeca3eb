"""What the tests of `cisfs seal` share: sources of every kind, the command, and what it leaves.

Judges by the kernel's own eyes: mounts, processes, files.  Needs root.  One test at a time.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import cisfs
from cisfs.keys.credentials import RawKey
from cisfs.layer.sealed import SealedLayer
from tests.mount.harness import linux, processes, trees
from tests.mount.harness.processes import wait_until

PATIENCE = 60.0  # seconds
_PACKAGE = str(Path(cisfs.__file__).parents[1])
_PIECE = 1 << 20

# Runs the command line after a change to how it behaves, which comes as the first argument.
_CHANGED = """
import sys, time
exec(sys.argv.pop(1))
from cisfs.cli.main import main
sys.exit(main())
"""
NO_MEMORY = "from cisfs.build import memory; memory.available = lambda: 0\n"
# Says that a phase was reached, and stays there: in short sleeps, because Python takes no notice of
# a signal that comes just before it falls asleep.
STALL = """
from cisfs.build.progress import Progress
def stall(self, *given, honest=Progress.{method}):
    honest(self, *given)
    if self._doing == {doing!r}:
        print("there", flush=True)
        while True:
            time.sleep(0.05)
Progress.{method} = stall
"""
# A mkfs.erofs that never ends.
ENDLESS = "#!/bin/sh\nexec tail -f {base}/key\n"

Ended = subprocess.CompletedProcess[str]


class Site:
    """Where a test works: everything is below `base`."""

    def __init__(self, base: Path) -> None:
        self.base = base
        base.mkdir(exist_ok=True)
        self.source, self.out, self.tmp = base / "source", base / "out", base / "tmp"
        self.key = base / "key"
        self.programs = base / "bin"
        for path in (self.source, self.out, self.tmp, self.programs):
            path.mkdir()
        self.key.touch(0o600)
        self.key.write_bytes(secrets.token_bytes(32))

    @property
    def layer(self) -> Path:
        """Where layers are made."""
        return self.out / "layer.cis"

    @property
    def environment(self) -> dict[str, str]:
        """That of every command."""
        return {
            "PATH": f"{self.programs}:{os.environ['PATH']}",
            "PYTHONPATH": _PACKAGE,
            "PYTHONDONTWRITEBYTECODE": "1",
            "TMPDIR": str(self.tmp),
            "HOME": str(self.tmp),
        }

    # -- commands ----------------------------------------------------------------------------

    def words(self, words: Sequence[str | Path], change: str = "") -> list[str]:
        """An argument vector of cisfs, changed or as it is."""
        start = ["-c", _CHANGED, change] if change else ["-m", "cisfs"]
        return [sys.executable, *start, *map(str, words)]

    def seal_words(self, source: str | Path, *options: str | Path) -> list[str | Path]:
        """The words of a seal."""
        return ["seal", "--key-file", self.key, source, "-o", self.layer, *options]

    def cisfs(
        self, *words: str | Path, change: str = "", stdin: Path | None = None, cwd: str = "/"
    ) -> Ended:
        """Run a command to its end."""
        with (stdin or Path(os.devnull)).open("rb") as given:
            ended = subprocess.run(
                self.words(words, change),
                env=self.environment,
                stdin=given,
                capture_output=True,
                text=True,
                timeout=PATIENCE * 3,
                check=False,
                cwd=cwd,
            )
        assert "Traceback" not in ended.stderr, ended.stderr
        return ended

    def must(self, *words: str | Path) -> Ended:
        """Run a command that has to succeed, and to say nothing on stderr."""
        ended = self.cisfs(*words)
        assert (ended.returncode, ended.stderr) == (0, ""), ended
        return ended

    def seal(
        self,
        source: str | Path,
        *options: str | Path,
        change: str = "",
        stdin: Path | None = None,
    ) -> Ended:
        """Seal to the end."""
        return self.cisfs(*self.seal_words(source, *options), change=change, stdin=stdin)

    def must_seal(self, source: str | Path, *options: str | Path) -> Path:
        """Make a new layer, silently but for the line that says so; returns where."""
        self.layer.unlink(missing_ok=True)
        ended = self.seal(source, *options)
        assert (ended.returncode, ended.stderr) == (0, ""), ended
        assert [each.name for each in self.out.iterdir()] == [self.layer.name]
        return self.layer

    @contextlib.contextmanager
    def stalled(
        self, source: str | Path, *options: str, change: str, stdin: Path | None = None
    ) -> Iterator[subprocess.Popen[bytes]]:
        """A seal that has come to where `change` holds it up; killed if it is not ended."""
        with (stdin or Path(os.devnull)).open("rb") as given:
            process = subprocess.Popen(
                self.words(self.seal_words(source, *options), change),
                env=self.environment,
                stdin=given,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        with process:
            try:
                assert process.stdout is not None
                said = process.stdout.readline()
                assert said == b"there\n", (said, process.stderr and process.stderr.read())
                yield process
            finally:
                process.kill()

    # -- sources -----------------------------------------------------------------------------

    def vault(self, content: Path) -> Path:
        """A vault with a copy of all that is in a directory."""
        path, mountpoint = self.base / "vault", self.base / "open"
        mountpoint.mkdir()
        self.must("init", "--key-file", self.key, path)
        self.must("mount", "--key-file", self.key, path, mountpoint)
        try:
            subprocess.run(["cp", "-a", f"{content}/.", mountpoint], check=True)
        finally:
            self.must("umount", mountpoint)
        mountpoint.rmdir()
        return path

    def tar(self, content: Path, *options: str) -> Path:
        """A tar of all that is in a directory."""
        path = self.base / "source.tar"
        words = ["tar", "--format=pax", "--xattrs", "--xattrs-include=*", *options]
        subprocess.run([*words, "-c", "-f", path, "-C", content, "."], check=True)
        return path

    # -- results -----------------------------------------------------------------------------

    def image(self, layer: Path | None = None) -> Path:
        """The image in a layer, decrypted into a file."""
        opened = SealedLayer.open(layer or self.layer, RawKey(self.key.read_bytes()))
        path = self.base / "image"
        try:
            reader = opened.reader()
            with path.open("wb") as file:
                for offset in range(0, opened.image_size, _PIECE):
                    file.write(reader.read(offset, _PIECE))
        finally:
            opened.close()
        return path

    @contextlib.contextmanager
    def mounted(self, layer: Path | None = None) -> Iterator[Path]:
        """What is in a layer, through the kernel's EROFS and nothing else of ours."""
        mountpoint = self.base / "mounted"
        mountpoint.mkdir()
        options = ["-t", "erofs", "-o", "ro,loop"]
        subprocess.run(["mount", *options, self.image(layer), mountpoint], check=True)
        try:
            yield mountpoint
        finally:
            linux.umount(mountpoint)
            mountpoint.rmdir()

    # -- what is left ------------------------------------------------------------------------

    def processes(self) -> list[int]:
        """Those that have to do with this site."""
        found = processes.mentioning(str(self.base))
        return [pid for pid in found if processes.alive(pid)]

    def traces(self) -> set[str]:
        """Mounts, and files where nothing but a layer should be."""
        found = {f"mount {each.path}" for each in linux.mounts_below(self.base)}
        files = {*self.out.iterdir(), *self.tmp.iterdir()} - {self.layer}
        return found | {f"file {path}" for path in files}

    def judge(self, allowed: set[str] | None = None) -> None:
        """Fail on a process, mount or file that is left, but for the `allowed` traces."""
        wait_until(lambda: not self.processes(), f"nobody works in {self.base}", patience=15)
        left = self.traces() - (allowed or set())
        assert not left, left


@contextlib.contextmanager
def site_in(base: Path) -> Iterator[Site]:
    """A site that is judged, and cleared away; a failure inside is not hidden by that."""
    site = Site(base)
    before = site.traces()
    try:
        yield site
        site.judge(before)
    finally:
        for pid in site.processes():
            os.kill(pid, signal.SIGKILL)
        linux.detach_all(base)


@contextlib.contextmanager
def memory_site() -> Iterator[Site]:
    """A site on a tmpfs: it takes every kind of attribute, and reading it costs no disk."""
    base = Path(tempfile.mkdtemp(prefix="cisfs-seal-test-", dir="/run"))
    linux.mount("cisfs-test", base, "tmpfs", 0, "mode=0755")
    try:
        with site_in(base / "here") as site:
            yield site
    finally:
        linux.detach_all(base)
        base.rmdir()


# -- content -------------------------------------------------------------------------------


def plant(root: Path) -> None:
    """Everything that a layer may hold, except what a large one has."""
    plain = root / "plain"
    plain.write_bytes(secrets.token_bytes(100_000))
    for bits in range(12):
        (root / f"mode-{bits}").touch()
        (root / f"mode-{bits}").chmod(1 << bits)
    (root / "empty").touch()
    with (root / "sparse").open("wb") as file:
        file.truncate(5_000_000)
        file.seek(2_000_000)
        file.write(b"in the middle")
    for size in (1, 4095, 4096, 4097, 65536, 65537):
        (root / f"size-{size}").write_bytes(secrets.token_bytes(size))
    (root / "a").mkdir()
    (root / "b").mkdir(mode=0o500)
    for name in ("hard", "a/hard", "b/hard"):
        (root / name).hardlink_to(plain)
    (root / "short").symlink_to("../x")
    (root / "long").symlink_to("/long" * 500)
    (root / "a/link").symlink_to(os.fsdecode(b"\xff\xfe"))
    (root / ("n" * 254)).touch()
    (root / os.fsdecode(b"\xff\x01\n\xfe\\ ")).write_text("no UTF-8")
    os.mknod(root / "character", stat.S_IFCHR | 0o640, os.makedev(5, 300))
    os.mknod(root / "block", stat.S_IFBLK | 0o660, os.makedev(259, 70_000))
    os.mkfifo(root / "fifo", 0o604)
    os.link(root / "fifo", root / "a/fifo")
    os.mknod(root / "whiteout", stat.S_IFCHR, 0)
    _attribute(root)
    deep = root / "deep"
    for _ in range(60):
        deep.mkdir()
        deep = deep / ("d" * 40)
    for path in (root, *root.rglob("*")):
        os.chown(path, 123_456, 4_000_000_000, follow_symlinks=False)
    for path in (root / "plain", root / "a", root / "fifo", root / "mode-11", root / "mode-10"):
        mode = path.lstat().st_mode
        os.chown(path, 7, 8)
        path.chmod(stat.S_IMODE(mode) | 0o6000)
    _age(root)


def plant_what_mkfs_would_lose(root: Path) -> None:
    """What mkfs.erofs 1.5 has no room for."""
    for name in ("n" * 255, "N" * 255, "lost+found", "lost+found-and-more"):
        (root / name).write_text(name)
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(root / "socket"))


def _attribute(root: Path) -> None:
    """Extended attributes of every name space, on everything that can have them."""
    for name in ("plain", "a", "empty"):
        os.setxattr(root / name, "user.note", b"of a user")
        os.setxattr(root / name, "user.nothing", b"")
    for name in ("plain", "a", "short", "long", "character", "block", "fifo"):
        for space in ("trusted", "security"):
            value = secrets.token_bytes(40)
            os.setxattr(root / name, f"{space}.note", value, follow_symlinks=False)
    os.setxattr(root / "empty", "trusted.large", secrets.token_bytes(60_000))
    os.setxattr(root / "empty", "trusted." + "x" * 200, b"long name")
    for number in range(100):
        os.setxattr(root / "size-1", f"trusted.{number}", secrets.token_bytes(50))
        os.setxattr(root / f"size-{(4095, 4096)[number % 2]}", "security.label", b"the same")
    capability = b"\x01\0\0\x02\0\x20" + bytes(14)  # CAP_NET_RAW, permitted and effective
    os.setxattr(root / "size-1", "security.capability", capability)
    subprocess.run(["setfacl", "-m", "u:77:rwx,g:88:r", root / "plain"], check=True)
    subprocess.run(["setfacl", "-m", "u:77:rwx", "-d", "-m", "u:9:r", root / "a"], check=True)


def _age(root: Path) -> None:
    """Times of modification to the nanosecond, long ago and far away among them."""
    second, moment = 1_000_000_000, 1_600_000_000_123_456_789
    for path in (*root.rglob("*"), root):
        moment += 987_654_321
        os.utime(path, ns=(0, moment), follow_symlinks=False)
    for name, time in (("empty", 0), ("size-1", -second - 1), ("size-4095", (1 << 33) * second)):
        os.utime(root / name, ns=(0, time))


def snapshot(root: Path) -> Mapping[str, object]:
    """All of a tree, directories' times and the root itself included."""
    seen: dict[str, object] = dict(trees.snapshot(root, times=True))
    seen["/"] = trees.look(root)._replace(nlink=0)
    for path in (root, *root.rglob("*")):
        if path.is_dir() and not path.is_symlink():
            seen[f"time of {path.relative_to(root)}"] = path.stat().st_mtime_ns
    return seen


def assert_same(one: Mapping[str, object], other: Mapping[str, object]) -> None:
    """Fail with the first few differences."""
    differences = [
        f"{path!r}: {one.get(path)} / {other.get(path)}"
        for path in sorted(one.keys() | other.keys())
        if one.get(path) != other.get(path)
    ]
    assert not differences, "\n".join(differences[:5])
