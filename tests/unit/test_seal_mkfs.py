"""Running mkfs.erofs, with a script in its place, and what it would lose of a source."""

from __future__ import annotations

import os
import signal
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cisfs.build import interrupts, losses, mkfs
from cisfs.build.index import Directory, Entry, Index
from cisfs.errors import CisfsError, UsageError

SOURCE = Path("/the/source")
LIMIT = 1 << 20


@pytest.fixture
def image() -> Iterator[int]:
    fd = os.memfd_create("image")
    yield fd
    os.close(fd)


@pytest.fixture
def program(tmp_path: Path) -> Path:
    return tmp_path / "mkfs.erofs"


def script(program: Path, text: str) -> str:
    program.write_text(f"#!/bin/sh\n{text}\n")
    program.chmod(0o755)
    return str(program)


def run(program: str, image: int, *, source: Path = SOURCE, limit: int | None = LIMIT) -> list[int]:
    """Make an image; returns what progress was told."""
    sizes: list[int] = []
    mkfs.make_image(program, source, image, "lz4", limit=limit, progress=sizes.append)
    return sizes


# -- the command ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("compression", "options"),
    [
        ("lz4", ["-zlz4", "-C65536"]),
        ("lz4hc", ["-zlz4hc", "-C65536"]),
        ("lz4hc,12", ["-zlz4hc,12", "-C65536"]),
    ],
)
def test_the_command_line(compression: str, options: list[str]) -> None:
    words = mkfs.command("/usr/bin/mkfs.erofs", SOURCE, 9, compression)
    start = ["/usr/bin/mkfs.erofs", "--quiet", "-x2147483647"]
    assert words == [*start, *options, "/proc/self/fd/9", "/the/source"]


def test_it_gets_the_image_a_bare_environment_and_limits(
    program: Path, image: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    said = tmp_path / "said"
    text = (
        f"for word; do image=$source source=$word; done; env >{said}; ulimit -f >>{said}; exec 3<&-"
    )
    name = script(program, f"{text}\necho made >$image\nread x || echo empty >>{said}")
    reading, writing = os.pipe()
    os.write(writing, b"not for it\n")
    before = os.dup(0)
    os.dup2(reading, 0)
    try:
        run(name, image)
    finally:
        os.dup2(before, 0)
        for fd in (before, reading, writing):
            os.close(fd)
    os.lseek(image, 0, os.SEEK_SET)
    assert os.read(image, 100) == b"made\n"
    lines = said.read_text().splitlines()
    assert "LC_ALL=C" in lines
    assert not [line for line in lines if line.startswith(("SOURCE_DATE", "TMPDIR", "HOME"))]
    assert lines[-2:] == [str(LIMIT // 512), "empty"]


def test_a_program_with_a_size_of_its_own_choice_has_no_limit(
    program: Path, image: int, tmp_path: Path
) -> None:
    run(script(program, f"ulimit -f >{tmp_path}/said"), image, limit=None)
    assert (tmp_path / "said").read_text() == "unlimited\n"


def test_progress_is_told_how_large_the_image_is(
    program: Path, image: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mkfs, "_TICK", 0.01)
    text = "for word; do image=$source source=$word; done; printf 12345 >$image; sleep 0.3"
    assert run(script(program, text), image)[-1] == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "echo '<E> erofs_io: Failed to write.' >&2\n"
            "echo '<E> erofs: \tCould not format the device : [Error 28] No space' >&2\n"
            "echo >&2; exit 1",
            "Failed to write.; Could not format the device : [Error 28] No space",
        ),
        ("exit 3", "it ended with status 3"),
        ("kill -KILL $$", "was killed by SIGKILL; was there too little memory"),
        ("kill -40 $$", "was killed by signal 40; was"),
        (
            "for word; do image=$source source=$word; done\n"
            "exec dd if=/dev/zero of=$image bs=1M count=2 2>/dev/null",
            "outgrew the 1 MiB of memory",
        ),
    ],
)
def test_each_way_to_fail_is_one_line(program: Path, image: int, text: str, message: str) -> None:
    with pytest.raises(CisfsError) as caught:
        run(script(program, text), image)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_it_complains_of_is_cut_short(program: Path, image: int) -> None:
    with pytest.raises(CisfsError) as caught:
        run(script(program, "yes complaint | head -100000 >&2; exit 1"), image)
    assert len(str(caught.value)) < 600


def test_it_is_gone_when_the_seal_is_interrupted(program: Path, image: int, tmp_path: Path) -> None:
    text = f"echo $$ >{tmp_path}/pid\nkill -TERM {os.getpid()}\nexec sleep 100"
    began = time.monotonic()
    with pytest.raises(interrupts.Interrupted), interrupts.raised():
        run(script(program, text), image)
    assert time.monotonic() < began + 50
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_it_dies_with_the_seal(program: Path, image: int, tmp_path: Path) -> None:
    name = script(
        program,
        f"echo $$ >{tmp_path}/pid.new; mv {tmp_path}/pid.new {tmp_path}/pid\nexec sleep 100",
    )
    reading, writing = os.pipe()
    parent = os.fork()
    if parent == 0:
        try:
            os.set_inheritable(writing, True)
            run(name, image)
        finally:
            os._exit(1)
    os.close(writing)
    while not (tmp_path / "pid").exists():
        pass
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    pid = int((tmp_path / "pid").read_text())
    with os.fdopen(reading, "rb") as pipe:
        pipe.read()
    wait_for_end(pid)


def wait_for_end(pid: int) -> None:
    """Wait until a process that is nobody's child here is gone or a zombie."""
    for _ in range(1000):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return
        if state in "ZX":
            return
        signal.sigtimedwait([], 0.01)
    pytest.fail(f"{pid} is still running")


# -- losses --------------------------------------------------------------------------------


def index_of(*paths: str, xattrs: dict[bytes, bytes] | None = None) -> Index:
    """An index of empty files, and of directories if the path ends with a slash."""
    root = Directory(stat.S_IFDIR)
    for path in paths:
        *above, last = path.removesuffix("/").encode().split(b"/")
        parent = root
        for name in above:
            found = parent.children.setdefault(name, Directory(stat.S_IFDIR))
            assert isinstance(found, Directory)
            parent = found
        kind = Directory(stat.S_IFDIR) if path.endswith("/") else Entry(stat.S_IFREG)
        parent.children[last] = kind
        kind.xattrs = xattrs or {}
    return Index(root)


def check(index: Index) -> int:
    return losses.check(index, Path("/mountpoint"))


def test_what_fits_is_passed() -> None:
    longest = "/".join(["d" * 200] * 20 + ["d" * (4095 - 20 * 201 - len("/mountpoint/"))])
    fitting = {b"trusted.x": bytes(65535), b"user.y": bytes(65535)}
    assert check(index_of("n" * 254, "sub/lost", "sub/n/", longest, xattrs=fitting)) == 0


def test_the_empty_directory_on_top_of_each_ext4_may_go() -> None:
    assert check(index_of("lost+found/", "file")) == 1


@pytest.mark.parametrize(
    "path",
    [
        "n" * 255,
        "sub/" + "n" * 255 + "/",
        "lost+found",
        "lost+found/inside",
        "lost+found-and-more/",
        "sub/lost+found/",
        "/".join(["d" * 200] * 20 + ["d" * (4096 - 20 * 201 - len("/mountpoint/"))]),
    ],
)
def test_what_would_be_lost_is_refused_by_name(path: str) -> None:
    with pytest.raises(UsageError, match="mkfs") as caught:
        check(index_of(path))
    assert "--compression" in str(caught.value)
    assert path[:10] in str(caught.value)


@pytest.mark.parametrize(
    "xattrs",
    [
        {b"trusted.large": bytes(65536)},
        {b"user.%d" % number: bytes(60000) for number in range(5)},
        {b"system.nfs4_acl": b"x"},
    ],
)
def test_attributes_that_no_image_has_room_for_are_refused(xattrs: dict[bytes, bytes]) -> None:
    with pytest.raises(UsageError, match=r"'sub/file': .*attribute"):
        check(index_of("sub/file", xattrs=xattrs))
