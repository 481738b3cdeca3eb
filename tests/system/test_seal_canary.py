"""Nothing plaintext on a disk: a canary in a source's files and names is found nowhere afterwards.

Everything that a seal could write to lies on one ext4 of the test's own, mounted "sync": what is
written to it and deleted at once is in its blocks all the same.  There are the output, HOME,
TMPDIR and, in a mount namespace for the command, /tmp and /var/tmp.  The source is on a tmpfs, and
so is the file below the ext4, which is searched raw.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import secrets
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.harness import linux
from tests.mount.harness.processes import wait_until
from tests.system.seals import ENDLESS, NO_MEMORY, PATIENCE, STALL, Site, memory_site

pytestmark = [pytest.mark.root, pytest.mark.fuse]

_DISK_SIZE = 128 << 20
_CHECKOUT = Path(__file__).parents[2]
# The checkout itself may lie in /tmp: it is put aside, and back where it was.
_IN_SANDBOX = """
mount --bind "$1" /mnt || exit 99
for d in /tmp /var/tmp; do mount --bind "$0" $d || exit 99; done
mkdir -p "$1" && mount --bind /mnt "$1" || exit 99
shift
exec "$@"
"""


class Disk:
    """The ext4: its raw blocks, and the canary that must not get into them."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.raw = site.base / "disk"
        # Random, so that it is nowhere by chance; no byte that a name cannot have.
        self.canary = secrets.token_bytes(64).translate(None, b"\0/")[:32]

    def plant(self) -> None:
        """Fill the source with the canary: in content, names, targets and attributes."""
        source = self.site.source
        for number in range(20):
            filler = secrets.token_bytes(4096)
            content = (self.canary * 128 + filler) * 20
            (source / f"file-{number}").write_bytes(content)
        directory = source / os.fsdecode(self.canary * 7)
        directory.mkdir()
        (directory / os.fsdecode(self.canary)).write_bytes(self.canary)
        (source / "link").symlink_to(os.fsdecode(self.canary * 10))
        os.setxattr(source / "file-0", "user.canary", self.canary)

    def finds(self) -> bool:
        """Whether any half of the canary is in the blocks, after all has been written to them."""
        subprocess.run(["sync", "-f", self.site.out], check=True)
        with (
            self.raw.open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as raw,
        ):
            return any(raw.find(part) >= 0 for part in (self.canary[:16], self.canary[16:]))


@pytest.fixture
def disk() -> Iterator[Disk]:
    if os.geteuid() != 0:
        pytest.fail("these tests mount: run them as root (scripts/test does)")
    with memory_site() as site:
        made = Disk(site)
        with made.raw.open("wb") as file:
            file.truncate(_DISK_SIZE)
        subprocess.run(["mkfs.ext4", "-q", "-E", "lazy_itable_init=0", made.raw], check=True)
        mountpoint = site.base / "ext4"
        mountpoint.mkdir()
        subprocess.run(["mount", "-o", "loop,sync", made.raw, mountpoint], check=True)
        for name in ("out", "tmp"):
            (site.base / name).rmdir()
            (mountpoint / name).mkdir(mode=0o777)
        site.out, site.tmp = mountpoint / "out", mountpoint / "tmp"
        made.plant()
        elsewhere = {name: listing(name) for name in ("/tmp", "/var/tmp")}
        try:
            yield made
            wait_until(lambda: not site.processes(), "all of them have ended", patience=15)
            assert elsewhere == {name: listing(name) for name in elsewhere}
            subprocess.run(["umount", mountpoint], check=True)
        finally:
            linux.detach_all(mountpoint)
            site.out, site.tmp = site.base / "out", site.base / "tmp"
            site.out.mkdir()
            site.tmp.mkdir()


def listing(directory: str) -> set[str]:
    """Names that begin as ours would; the machine may be busy with others."""
    return {name for name in os.listdir(directory) if "cisfs-seal" in name or "layer.cis" in name}


def source_of(disk: Disk, kind: str) -> tuple[str | Path, Path | None]:
    """The source as a thing of some kind, not on the disk; and what to give as standard input."""
    site = disk.site
    if kind == "vault":
        return site.vault(site.source), None
    if kind == "compressed tar":
        return site.tar(site.source, "--gzip"), None
    if kind == "tar from a pipe":
        return "-", site.tar(site.source, "--gzip")
    if kind == "image":
        subprocess.run(["mkfs.erofs", "--quiet", site.base / "made", site.source], check=True)
        return site.base / "made", None
    if kind == "whiteouts":
        (site.source / ".wh.gone").touch()
    return site.source, None


def sandboxed(disk: Disk, words: list[str]) -> list[str]:
    sandbox = ["unshare", "--mount", "sh", "-c", _IN_SANDBOX, str(disk.site.tmp), str(_CHECKOUT)]
    return [*sandbox, *words]


def run_sandboxed(
    disk: Disk, words: list[str], stdin: Path | None = None
) -> subprocess.CompletedProcess[bytes]:
    with (stdin or Path(os.devnull)).open("rb") as given:
        return subprocess.run(
            sandboxed(disk, words),
            env=disk.site.environment,
            stdin=given,
            capture_output=True,
            check=False,
            timeout=PATIENCE,
        )


def remove_place_of_checkout(disk: Disk) -> None:
    """Remove the directories that the sandbox made to put a checkout in /tmp back."""
    for hidden in ("/tmp", "/var/tmp"):
        if _CHECKOUT.is_relative_to(hidden):
            place = _CHECKOUT.relative_to(hidden)
            subprocess.run(["rmdir", "-p", place], cwd=disk.site.tmp, check=True)


CASES = [
    ("directory", "none", ""),
    ("whiteouts", "none", ""),
    ("vault", "none", ""),
    ("compressed tar", "none", ""),
    ("tar from a pipe", "none", ""),
    ("image", "none", ""),
    ("directory", "lz4", ""),
    ("tar from a pipe", "lz4", ""),
    ("directory", "lz4", NO_MEMORY),
    ("vault", "lz4", NO_MEMORY),
]
IDS = [f"{kind}-{how}-{'vault' if change else 'memory'}" for kind, how, change in CASES]


@pytest.mark.parametrize(("kind", "compression", "change"), CASES, ids=IDS)
def test_a_seal_writes_nothing_plaintext(
    disk: Disk, kind: str, compression: str, change: str
) -> None:
    site = disk.site
    source, stdin = source_of(disk, kind)
    words = site.words(site.seal_words(source, "--compression", compression), change)
    ended = run_sandboxed(disk, words, stdin)
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert not disk.finds()
    remove_place_of_checkout(disk)
    assert disk.canary in site.image().read_bytes()  # so that it was there to be found
    site.judge({f"mount {site.base / 'ext4'}"})


@pytest.mark.parametrize("kind", ["directory", "vault", "tar from a pipe"])
@pytest.mark.parametrize(
    ("compression", "doing", "change"),
    [
        ("none", "encrypting", ""),
        ("lz4", "compressing", ""),
        ("lz4", "compressing", NO_MEMORY),
        ("lz4", "encrypting", NO_MEMORY),
    ],
    ids=["none-encrypting", "memory-compressing", "vault-compressing", "vault-encrypting"],
)
def test_a_seal_that_is_killed_has_written_nothing_plaintext(
    disk: Disk, kind: str, compression: str, doing: str, change: str
) -> None:
    site = disk.site
    source, stdin = source_of(disk, kind)
    words = site.words(
        site.seal_words(source, "--compression", compression),
        change + STALL.format(doing=doing, method="update"),
    )
    if doing == "compressing":  # when all of the image has been written
        program = site.programs / "mkfs.erofs"
        real = subprocess.run(["which", "mkfs.erofs"], capture_output=True, check=True, text=True)
        endless = ENDLESS.format(base=site.base).splitlines()[1]
        program.write_text(f'#!/bin/sh\n{real.stdout.strip()} "$@"\n{endless}\n')
        program.chmod(0o755)
    with (
        (stdin or Path(os.devnull)).open("rb") as given,
        subprocess.Popen(
            sandboxed(disk, words), env=site.environment, stdin=given, stdout=subprocess.PIPE
        ) as process,
    ):
        assert process.stdout is not None
        assert process.stdout.readline() == b"there\n"
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.5)  # some of it may be on its way to the disk
        process.send_signal(signal.SIGKILL)
    wait_until(lambda: not site.processes(), "all of them have ended", patience=15)
    assert not disk.finds()


def test_the_search_finds_what_was_written_and_deleted(disk: Disk) -> None:
    file = disk.site.out / "file"
    file.write_bytes(secrets.token_bytes(100_000) + disk.canary[16:])
    file.unlink()
    assert disk.finds()


def test_the_search_finds_a_temporary_file_of_mkfs(disk: Disk) -> None:
    """The option --chunksize, which is never given, has mkfs.erofs 1.5 write one to /tmp."""
    site = disk.site
    words = ["mkfs.erofs", "--quiet", "--chunksize=4096", f"{site.base}/made", f"{site.source}"]
    subprocess.run(sandboxed(disk, words), check=False)  # it may fail afterwards
    assert disk.finds()
