"""The server of one file, asked over a socket in place of /dev/fuse."""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from cisfs.errors import IntegrityError
from cisfs.mount import wire
from cisfs.mount.board import Board
from cisfs.mount.image import ImageServer, Readable, Shape
from cisfs.mount.watch import Watch
from tests.unit import layers

CONTENT = layers.image(10 * 4096)
NAME = b"image.erofs"
BARE = Shape.bare(len(CONTENT), 1_700_000_000)
IN_DIRECTORY = Shape.in_directory(NAME, len(CONTENT), 1_700_000_000, for_all=False)
FILE_NODE = 2
ASK = struct.Struct("=IIQQIIIHH")
GETXATTR, ACCESS, LSEEK = 22, 34, 46

_readv, _writev = os.readv, os.writev


class Plain:
    """An image that lies open."""

    def read(self, offset: int, size: int) -> memoryview:
        return memoryview(CONTENT)[offset : offset + size]


class Answer(NamedTuple):
    """A reply: the errno, 0 for none, and the body."""

    error: int
    body: bytes


class Kernel:
    """The other end of the device.

    Requests are queued first and served then; when none is left, the device says what it says after
    an unmount.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ours, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for each in (self.ours, self.theirs):
            each.setblocking(False)
        self.device = self.theirs.fileno()
        self.taken_back = 0  # requests that are gone when they are read
        self.refusal: dict[int, int] = {}  # what is said to replies to a request
        self.board = Board(1)
        self._last = 0
        monkeypatch.setattr(os, "readv", self._readv)
        monkeypatch.setattr(os, "writev", self._writev)

    def _readv(self, fd: int, buffers: Sequence[bytearray]) -> int:
        if fd != self.device:
            return _readv(fd, buffers)
        if self.taken_back:
            self.taken_back -= 1
            raise OSError(errno.ENOENT, "No such file or directory")
        try:
            return _readv(fd, buffers)
        except BlockingIOError:
            raise OSError(errno.ENODEV, "No such device") from None

    def _writev(self, fd: int, buffers: Sequence[bytes | memoryview]) -> int:
        if fd == self.device:
            _, _, unique = struct.unpack_from("=IiQ", buffers[0])
            if unique in self.refusal:
                raise OSError(self.refusal[unique], "refused")
        return _writev(fd, buffers)

    def ask(self, opcode: int, body: bytes = b"", node: int = wire.ROOT_NODE) -> int:
        """Queue a request; returns its number."""
        self._last += 2
        header = ASK.pack(ASK.size + len(body), opcode, self._last, node, 0, 0, 1, 0, 0)
        self.ours.send(header + body)
        return self._last

    def read(self, offset: int, size: int) -> int:
        """Queue a READ."""
        return self.ask(wire.READ, struct.pack("=QQIIQII", 0, offset, size, 0, 0, 0, 0), FILE_NODE)

    def answers(
        self, image: Readable | None = None, shape: Shape = IN_DIRECTORY
    ) -> dict[int, Answer]:
        """Have all that was queued answered; returns the replies by the number of the request."""
        image = image or Plain()
        self.watch = Watch()
        try:
            ImageServer(self.device, image, shape, self.board.seat(0), self.watch).serve()
        finally:
            os.close(self.watch.fd)
        assert self.board.busy_for(0) == 0.0
        return dict(self._replies())

    def answer(self, image: Readable | None = None, shape: Shape = IN_DIRECTORY) -> Answer:
        """The reply to the one request that was queued."""
        answers = self.answers(image, shape)
        assert answers.keys() == {self._last}
        return answers[self._last]

    def _replies(self) -> Iterator[tuple[int, Answer]]:
        while True:
            try:
                data = self.ours.recv(1 << 20)
            except BlockingIOError:
                return
            length, error, unique = struct.unpack_from("=IiQ", data)
            assert length == len(data)
            yield unique, Answer(-error, data[16:])


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch) -> Iterator[Kernel]:
    made = Kernel(monkeypatch)
    yield made
    made.ours.close()
    made.theirs.close()


def attributes(attr: bytes) -> tuple[int, int, int, int]:
    """Node, size, mode and mtime in a struct fuse_attr."""
    ino, size, _, _, mtime, _ = struct.unpack_from("=6Q", attr)
    (mode,) = struct.unpack_from("=I", attr, 60)
    return ino, size, mode, mtime


# ---- questions and answers


def test_the_first_words(kernel: Kernel) -> None:
    kernel.ask(wire.INIT, struct.pack("=IIII44x", 7, 45, 1 << 17, 0xFFFFFFFF))
    error, body = kernel.answer()
    assert error == 0
    assert struct.unpack_from("=III", body) == (7, 31, 1 << 20)


def test_a_kernel_that_is_too_old(kernel: Kernel, caplog: pytest.LogCaptureFixture) -> None:
    kernel.ask(wire.INIT, struct.pack("=IIII", 7, 26, 0, 0))
    assert kernel.answer().error == errno.EPROTO
    assert "too old" in caplog.text


def test_looking_a_name_up(kernel: Kernel, caplog: pytest.LogCaptureFixture) -> None:
    right, longer, shorter, other = (
        kernel.ask(wire.LOOKUP, name + b"\0")
        for name in (NAME, NAME + b"x", NAME[:-1], b".Trash-1000")
    )
    answers = kernel.answers()
    assert answers[right].error == 0
    assert struct.unpack_from("=Q", answers[right].body) == (FILE_NODE,)
    file = attributes(answers[right].body[40:])
    assert file == (FILE_NODE, len(CONTENT), stat.S_IFREG | 0o400, 1_700_000_000)
    assert [answers[each] for each in (longer, shorter, other)] == [(errno.ENOENT, b"")] * 3
    assert caplog.messages == []


def test_attributes_of_the_root_and_of_the_file(kernel: Kernel) -> None:
    root, file = kernel.ask(wire.GETATTR), kernel.ask(wire.GETATTR, node=FILE_NODE)
    answers = kernel.answers()
    assert attributes(answers[root].body[16:])[:3] == (1, 0, stat.S_IFDIR | 0o500)
    assert attributes(answers[file].body[16:])[:3] == (2, len(CONTENT), stat.S_IFREG | 0o400)


def test_the_root_can_be_the_file_itself(kernel: Kernel) -> None:
    kernel.ask(wire.GETATTR)
    _, body = kernel.answer(shape=BARE)
    assert attributes(body[16:])[:3] == (1, len(CONTENT), stat.S_IFREG | 0o400)


def test_others_may_look_if_they_are_let(kernel: Kernel) -> None:
    shape = Shape.in_directory(NAME, len(CONTENT), 0, for_all=True)
    root, file = kernel.ask(wire.GETATTR), kernel.ask(wire.GETATTR, node=FILE_NODE)
    answers = kernel.answers(shape=shape)
    assert attributes(answers[root].body[16:])[2] == stat.S_IFDIR | 0o555
    assert attributes(answers[file].body[16:])[2] == stat.S_IFREG | 0o444


def test_opening_lets_the_kernel_keep_what_it_has(kernel: Kernel) -> None:
    file, directory = kernel.ask(wire.OPEN, bytes(8)), kernel.ask(wire.OPENDIR, bytes(8))
    answers = kernel.answers()
    for each in (file, directory):
        handle, flags, _ = struct.unpack("=QIi", answers[each].body)
        assert handle == 0
        assert flags & wire.FOPEN_KEEP_CACHE
    assert struct.unpack("=QIi", answers[directory].body)[1] & wire.FOPEN_CACHE_DIR


@pytest.mark.parametrize(
    ("offset", "size"),
    [
        (0, len(CONTENT)),
        (0, 1),
        (4096, 4096),
        (4095, 4098),
        (len(CONTENT) - 10, 4096),
        (len(CONTENT), 4096),
        (len(CONTENT) + 1, 4096),
        (1 << 62, 1 << 20),
        (100, 0),
    ],
)
def test_reading(kernel: Kernel, offset: int, size: int, tmp_path: Path) -> None:
    expected = CONTENT[offset : offset + size]
    kernel.read(offset, size)
    assert kernel.answer() == (0, expected)
    layers.seal(tmp_path / "layer.cis", CONTENT)
    with layers.opened(tmp_path / "layer.cis") as layer:
        kernel.read(offset, size)
        assert kernel.answer(layer.reader(), BARE) == (0, expected)


def test_a_listing(kernel: Kernel) -> None:
    body = struct.pack("=QQIIQII", 0, 0, 4096, 0, 0, 0, 0)
    again = struct.pack("=QQIIQII", 0, 1, 4096, 0, 0, 0, 0)
    first, second = kernel.ask(wire.READDIR, body), kernel.ask(wire.READDIR, again)
    answers = kernel.answers()
    node, following, length, kind = struct.unpack_from("=QQII", answers[first].body)
    assert (node, following, kind) == (FILE_NODE, 1, stat.S_IFREG >> 12)
    assert answers[first].body[24 : 24 + length] == NAME
    assert answers[second] == (0, b"")


def test_the_size_of_the_file_system(kernel: Kernel) -> None:
    kernel.ask(wire.STATFS)
    error, body = kernel.answer()
    assert error == 0
    assert struct.unpack_from("=QQ", body) == (10, 0)


def test_closing_is_acknowledged(kernel: Kernel) -> None:
    numbers = [kernel.ask(opcode, bytes(24)) for opcode in (wire.RELEASE, wire.RELEASEDIR)]
    assert kernel.answers() == dict.fromkeys(numbers, (0, b""))


def test_some_requests_want_no_answer(kernel: Kernel) -> None:
    for opcode in (wire.FORGET, wire.BATCH_FORGET, wire.DESTROY):
        kernel.ask(opcode, bytes(16))
    last = kernel.ask(wire.GETATTR)
    assert kernel.answers().keys() == {last}


@pytest.mark.parametrize("opcode", [GETXATTR, ACCESS, LSEEK, wire.INTERRUPT, 9999])
def test_what_is_unknown_is_said_to_be(
    kernel: Kernel, opcode: int, caplog: pytest.LogCaptureFixture
) -> None:
    kernel.ask(opcode, bytes(40))
    assert kernel.answer() == (errno.ENOSYS, b"")
    assert caplog.messages == []


# ---- failures


class Failing:
    """An image that cannot be read at its start."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def read(self, offset: int, size: int) -> memoryview:
        if offset == 0:
            raise self.error
        return Plain().read(offset, size)


@pytest.mark.parametrize(
    ("error", "number", "said"),
    [
        (IntegrityError("/srv/l.cis: unit 7 was altered"), errno.EIO, "unit 7 was altered"),
        (OSError(errno.ENXIO, "the disk is gone"), errno.ENXIO, "the disk is gone"),
        (OSError("an error without a number"), errno.EIO, "without a number"),
        (KeyError("unforeseen"), errno.EIO, "KeyError: 'unforeseen'"),
        (MemoryError(), errno.EIO, "MemoryError"),
    ],
)
def test_a_failure_is_an_error_a_line_and_no_more(
    kernel: Kernel,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    number: int,
    said: str,
) -> None:
    bad, good = kernel.read(0, 4096), kernel.read(4096, 4096)
    answers = kernel.answers(Failing(error))
    assert answers[bad] == (number, b"")
    assert answers[good] == (0, CONTENT[4096:8192])
    assert said in caplog.text
    assert [record.levelname for record in caplog.records] == ["ERROR"]


def test_nothing_of_a_bad_unit_is_in_a_reply(
    kernel: Kernel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "layer.cis"
    layers.seal(path, CONTENT)
    with path.open("r+b") as file:
        file.seek(131_072 + 3 * 4096 + 100)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 4]))
    with layers.opened(path) as layer:
        whole, around, within, before, after = (
            kernel.read(*each)
            for each in [
                (0, len(CONTENT)),
                (2 * 4096, 3 * 4096),
                (3 * 4096 + 8, 16),
                (0, 3 * 4096),
                (4 * 4096, 6 * 4096),
            ]
        )
        answers = kernel.answers(layer.reader())
    assert [answers[each] for each in (whole, around, within)] == [(errno.EIO, b"")] * 3
    assert answers[before] == (0, CONTENT[: 3 * 4096])
    assert answers[after] == (0, CONTENT[4 * 4096 :])
    assert len(caplog.messages) == 3
    assert all(f"{path}: unit 3 was altered" in line for line in caplog.messages)


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ENODEV])
def test_a_reply_that_nobody_waits_for(kernel: Kernel, number: int) -> None:
    """Interrupted, answered by another worker after a re-send, or unmounted meanwhile."""
    kernel.refusal[kernel.read(0, 4096)] = number
    other = kernel.read(4096, 4096)
    assert kernel.answers() == {other: (0, CONTENT[4096:8192])}


def test_a_reply_that_the_kernel_does_not_understand_ends_the_worker(kernel: Kernel) -> None:
    kernel.refusal[kernel.read(0, 4096)] = errno.EINVAL
    with pytest.raises(OSError, match="refused"):
        kernel.answers()


def test_a_request_that_was_taken_back(kernel: Kernel) -> None:
    kernel.taken_back = 3
    kernel.ask(wire.STATFS)
    assert kernel.answer().error == 0


def test_a_request_is_on_the_board_while_it_is_worked_on(kernel: Kernel) -> None:
    seen: list[int] = []

    class Watching:
        def read(self, offset: int, size: int) -> memoryview:
            seen.append(kernel.board.in_hand(0))
            if offset:
                raise IntegrityError("damaged")
            return Plain().read(offset, size)

    numbers = [kernel.read(0, 1), kernel.read(1, 1), kernel.read(0, 2)]
    kernel.answers(Watching())
    assert seen == numbers
    assert kernel.board.in_hand(0) == 0


def test_the_view_is_sent_before_the_next_read_reuses_it(kernel: Kernel) -> None:
    buffer = bytearray(4096)

    class Reusing:
        def read(self, offset: int, size: int) -> memoryview:
            buffer[:] = CONTENT[offset : offset + 4096]
            return memoryview(buffer)[:size]

    numbers = [kernel.read(unit * 4096, 4096) for unit in range(5)]
    answers = kernel.answers(Reusing())
    for unit, number in enumerate(numbers):
        assert answers[number].body == CONTENT[unit * 4096 :][:4096]
