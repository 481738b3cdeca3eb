"""Sealing an image: what comes out, and that a failure of any kind leaves nothing."""

from __future__ import annotations

import errno
import os
import resource
import signal
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cisfs.errors import CisfsError, UsageError
from cisfs.format.sealed import LayerHeader
from cisfs.format.slotarea import SlotText
from cisfs.keys import slots
from cisfs.keys.credentials import Passphrase
from cisfs.keys.slots import open_slots
from cisfs.layer import fallocate, sealing, writing
from cisfs.layer.sealed import describe
from cisfs.layer.sealing import BATCH, StoredImage, seal_image
from tests.unit import layers
from tests.unit.test_forked import no_child_is_left
from tests.unit.vaults import KEY, flip, same
from tests.vectors import reference_layer

MIB = 1 << 20
IMAGE = layers.image(2 * MIB + 20480)


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    before = os.listdir("/proc/self/fd")
    yield
    assert no_child_is_left()
    assert os.listdir("/proc/self/fd") == before


@pytest.fixture
def output(memory_path: Path) -> Path:
    return memory_path / "layer.cis"


def image_of(path: Path) -> bytes:
    with layers.opened(path) as layer:
        return bytes(layer.reader().read(0, layer.image_size))


@pytest.fixture
def no_tmpfile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do as on file systems where a file cannot be without a name."""
    real = os.open

    def without(
        path: str | bytes | Path, flags: int, mode: int = 0o777, *, dir_fd: int | None = None
    ) -> int:
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
        return real(path, flags, mode, dir_fd=dir_fd)

    monkeypatch.setattr(os, "open", without)


@pytest.fixture
def no_links(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do as on FAT."""

    def refused(*_args: object, **_more: object) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refused)


@pytest.fixture(params=["unnamed", "named", "named, and no links"])
def way(request: pytest.FixtureRequest) -> None:
    """Each way in which a file gets its name when it is whole."""
    if request.param != "unnamed":
        request.getfixturevalue("no_tmpfile")
    if request.param.endswith("links"):
        request.getfixturevalue("no_links")


# -- what comes out ------------------------------------------------------------------------


@pytest.mark.parametrize("unit_size", [4096, 16384, 65536, MIB])
@pytest.mark.parametrize("size", [4096, 65536 + 4096, BATCH, BATCH + 4096])
def test_a_second_implementation_reads_what_was_sealed(
    output: Path, unit_size: int, size: int
) -> None:
    layers.seal(output, IMAGE[:size], unit_size=unit_size)
    stored = output.read_bytes()
    layer_id = LayerHeader.parse(stored).layer_id
    layer_key = open_slots(SlotText.parse(stored[4096:65536]).slots, KEY, layer_id).reveal()
    assert same(reference_layer.opened(stored, layer_key), IMAGE[:size])


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_any_number_of_processes_seals_the_same(output: Path, workers: int) -> None:
    said: list[int] = []
    with layers.in_memory(IMAGE) as fd:
        image = StoredImage(fd, len(IMAGE))
        identity = seal_image(
            image, output, KEY, unit_size=4096, workers=workers, progress=said.append
        )
    assert same(image_of(output), IMAGE)
    assert describe(output)["identity"] == identity
    assert said == sorted(said)
    assert said[-1] == len(IMAGE)


def test_a_part_of_a_longer_image_is_sealed(output: Path) -> None:
    with layers.in_memory(IMAGE) as fd:
        seal_image(StoredImage(fd, MIB), output, KEY)
    assert same(image_of(output), IMAGE[:MIB])
    assert describe(output)["unit_size"] == sealing.DEFAULT_UNIT_SIZE == 65536


def test_a_passphrase_seals_too(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "MEMORY_KIB", 64)
    words = Passphrase(b"correct horse")
    layers.seal(output, IMAGE[:4096], key=words)
    with layers.opened(output, words) as layer:
        assert same(layer.reader().read(0, 4096), IMAGE[:4096])


def test_two_layers_of_one_image_have_nothing_in_common(memory_path: Path) -> None:
    content = layers.image(64 * 4096)
    stored = []
    for name in ("one", "other"):
        layers.seal(memory_path / name, content)
        stored.append((memory_path / name).read_bytes())
    one, other = stored
    assert one[16:32] != other[16:32]
    drawn = [
        {each[at : at + 16] for at in range(131072, 131072 + len(content), 16)}
        for each in (one, other)
    ]
    plain = {content[at : at + 16] for at in range(0, len(content), 16)}
    assert len(drawn[0] | drawn[1] | plain) == 3 * len(content) // 16


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0, 0o666)])
def test_the_umask_decides_who_may_read_it(output: Path, umask: int, mode: int) -> None:
    os.umask(umask)  # put back by the fixture of all unit tests
    layers.seal(output, IMAGE)
    assert stat.S_IMODE(output.stat().st_mode) == mode
    assert [each.name for each in output.parent.iterdir()] == [output.name]


# -- what is at the output already -----------------------------------------------------------


@pytest.mark.usefixtures("way")
def test_an_output_that_is_there_is_left_alone_unless_forced(output: Path) -> None:
    output.write_text("precious")
    with pytest.raises(UsageError, match=f"^{output} is there already; use --force to replace it"):
        layers.seal(output, IMAGE)
    assert output.read_text() == "precious"
    layers.seal(output, IMAGE, force=True)
    assert same(image_of(output), IMAGE)
    assert [each.name for each in output.parent.iterdir()] == [output.name]


def test_only_a_regular_file_is_replaced(memory_path: Path) -> None:
    (memory_path / "directory").mkdir()
    (memory_path / "link").symlink_to("directory")
    os.mkfifo(memory_path / "fifo")
    for name in ("directory", "link", "fifo"):
        with pytest.raises(UsageError, match="is not a regular file, so it is not replaced"):
            layers.seal(memory_path / name, IMAGE, force=True)
        with pytest.raises(UsageError, match="is there already"):
            layers.seal(memory_path / name, IMAGE)
    assert len(list(memory_path.iterdir())) == 3


def meanwhile(output: Path, act: Callable[[], None]) -> None:
    """Seal, and do something else before it is done."""

    def once(done: int) -> None:
        if done == BATCH:
            act()

    with layers.in_memory(IMAGE) as fd:
        seal_image(
            StoredImage(fd, len(IMAGE)), output, KEY, unit_size=4096, workers=1, progress=once
        )


@pytest.mark.usefixtures("way")
def test_an_output_that_appears_meanwhile_is_left_alone(output: Path) -> None:
    def appear() -> None:
        output.write_text("precious")

    with pytest.raises(UsageError, match=f"^{output} (has appeared meanwhile|is there already)"):
        meanwhile(output, appear)
    assert output.read_text() == "precious"
    assert [each.name for each in output.parent.iterdir()] == [output.name]


# -- whole or not at all ---------------------------------------------------------------------


def test_it_has_no_name_before_it_is_whole(output: Path) -> None:
    def look() -> None:
        assert list(output.parent.iterdir()) == []

    meanwhile(output, look)
    assert list(output.parent.iterdir()) == [output]


@pytest.mark.usefixtures("no_tmpfile")
def test_where_it_needs_a_name_it_has_a_temporary_one(output: Path) -> None:
    def look() -> None:
        (temporary,) = output.parent.iterdir()
        assert temporary.name.startswith(".layer.cis.")
        assert temporary.name.endswith(".part")

    meanwhile(output, look)
    assert list(output.parent.iterdir()) == [output]


@pytest.mark.usefixtures("way")
def test_a_name_of_any_length_will_do(memory_path: Path) -> None:
    for name in ("n" * 255, "\N{SNOWMAN}" * 85):
        layers.seal(memory_path / name, IMAGE[:4096])
    assert len(list(memory_path.iterdir())) == 2


FAILURES = {
    "full disk": OSError(errno.ENOSPC, "No space left on device"),
    "no memory": MemoryError(),
    "a mistake": RuntimeError("a mistake"),
}


@pytest.mark.parametrize("what", FAILURES)
@pytest.mark.parametrize("force", [False, True])
@pytest.mark.usefixtures("way")
def test_a_worker_that_fails_leaves_nothing(
    output: Path, what: str, force: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = writing.write_at

    def failing(fd: int, data: bytes | memoryview, offset: int) -> None:
        if offset > 131072 + MIB:
            raise FAILURES[what]
        real(fd, data, offset)

    monkeypatch.setattr(sealing, "write_at", failing)
    if force:
        output.write_text("precious")
    expected = OSError if what != "a mistake" else RuntimeError
    with pytest.raises(expected) as caught:
        layers.seal(output, IMAGE, force=force)
    if isinstance(caught.value, OSError):
        assert caught.value.errno == (errno.ENOSPC if what == "full disk" else errno.ENOMEM)
    assert [each.read_text() for each in output.parent.iterdir()] == ["precious"] * force


@pytest.mark.usefixtures("way")
def test_a_killed_worker_leaves_nothing(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealing, "unit_hash", lambda _cipher: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(CisfsError, match="killed by signal 9"):
        layers.seal(output, IMAGE)
    assert list(output.parent.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.usefixtures("way")
def test_an_interrupt_leaves_nothing(output: Path, error: type[BaseException]) -> None:
    def interrupt() -> None:
        raise error

    with pytest.raises(error):
        meanwhile(output, interrupt)
    assert list(output.parent.iterdir()) == []


@pytest.mark.usefixtures("way")
def test_a_disk_without_room_is_noticed_before_the_work(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A limit on the size of files stands for the full disk."""
    monkeypatch.setattr(sealing.Sealing, "run", lambda *_: pytest.fail("it began"))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            layers.seal(output, IMAGE[:MIB])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(output.parent.iterdir()) == []


def test_where_space_cannot_be_allocated_the_file_grows(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fallocate, "_fallocate", lambda *_: False)
    layers.seal(output, IMAGE)
    assert same(image_of(output), IMAGE)
    assert output.stat().st_blocks * 512 < output.stat().st_size  # nothing is where zeros are


def test_a_short_write_is_continued_and_an_empty_one_is_a_full_disk(
    output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, most = os.pwrite, 5000

    def pwrite(fd: int, data: memoryview, offset: int) -> int:
        return real(fd, data[:most], offset)

    monkeypatch.setattr(os, "pwrite", pwrite)
    layers.seal(output, IMAGE[: 20 * 4096])
    assert same(image_of(output), IMAGE[: 20 * 4096])
    most = 0
    with pytest.raises(OSError, match="No space left on device"):
        layers.seal(output, IMAGE, force=True)
    assert same(image_of(output), IMAGE[: 20 * 4096])


@pytest.mark.parametrize("force", [False, True])
def test_it_is_durable_before_it_has_its_name_and_so_is_the_name(
    output: Path, force: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[str] = []
    real_sync, real_link, real_rename = os.fsync, os.link, os.rename

    def fsync(fd: int) -> None:
        events.append("directory" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file")
        real_sync(fd)

    def link(source: bytes, target: bytes, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        events.append("link")
        real_link(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    def rename(source: bytes, target: bytes, *, src_dir_fd: int, dst_dir_fd: int) -> None:
        events.append("rename")
        real_rename(source, target, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "link", link)
    monkeypatch.setattr(os, "rename", rename)
    layers.seal(output, IMAGE, force=force)
    named = ["link", "rename"] if force else ["link"]
    assert events == ["file", *named, "directory"]


def test_an_image_that_is_shorter_than_said_is_refused(output: Path) -> None:
    with layers.in_memory(IMAGE) as fd:
        with pytest.raises(OSError, match=f"the image ends at {len(IMAGE)} bytes, before its size"):
            seal_image(StoredImage(fd, len(IMAGE) + 4096), output, KEY)
        for size in (0, 1, 4095, -4096):
            with pytest.raises(ValueError, match=f"image size {size} is not a multiple of 4096"):
                seal_image(StoredImage(fd, size), output, KEY)
        with pytest.raises(ValueError, match="unit size 5000"):
            seal_image(StoredImage(fd, 4096), output, KEY, unit_size=5000)
        with pytest.raises(FileNotFoundError):
            seal_image(StoredImage(fd, 4096), output.parent / "no" / "parent", KEY)
    assert list(output.parent.iterdir()) == []


@pytest.mark.usefixtures("no_tmpfile")
def test_what_someone_writes_into_the_file_meanwhile_is_not_vouched_for(output: Path) -> None:
    """The hashes are made of memory: the storage has no say in what the publisher signs."""
    meanwhile(output, lambda: flip(next(output.parent.iterdir()), 131072 + 5))
    with layers.opened(output) as layer:
        assert layers.damaged_units(layer, IMAGE) == {0}
