"""The server of an image that is not all here, asked over sockets in place of the device.

It serves in a thread; what it asks the fetcher for comes to the test, which fills in the layer.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from cisfs.format.wants import MAX_SIZE, Want, pack_here
from cisfs.layer.filling import Filler
from cisfs.layer.sealed import SealedLayer
from cisfs.mount import lazy_image, wire
from cisfs.mount.absent import Line
from cisfs.mount.board import Board
from cisfs.mount.image import Shape
from cisfs.mount.lazy_image import LazyImageServer
from cisfs.mount.watch import Watch
from tests.unit.partial_layers import UNIT, Pulled, close, flip, pulled
from tests.unit.vaults import KEY

UNITS = 64
SOON = 20.0  # seconds
ASK = struct.Struct("=IIQQIIIHH")
READ = struct.Struct("=QQIIQII")

_readv = os.readv


class Scene:
    """A server, the kernel that asks it, and the fetcher that it asks."""

    def __init__(self, layer: Pulled, patience: float) -> None:
        self.layer = layer
        self.filler: Filler = layer.filler()
        self.opened = SealedLayer.open(layer.path, KEY)
        self.kernel, self.device = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.kernel.settimeout(SOON)
        self.device.setblocking(False)
        self.board = Board(1)
        self.watch = Watch()
        self.patience = patience
        self.readers: list[socket.socket] = []
        self.listener: socket.socket | None = None
        self._last = 0
        self._thread: threading.Thread | None = None

    # -- the server

    def serve(self) -> None:
        partial = self.opened.partial
        assert partial is not None
        self.server = LazyImageServer(
            *(self.device.fileno(), self.opened.reader(), Shape.bare(UNITS * UNIT, 0)),
            *(self.board.seat(0), self.watch),
            presence=partial.presence,
            line=Line(partial.fd),
            patience=self.patience,
        )
        self._thread = threading.Thread(target=self.server.serve)
        self._thread.start()

    def close(self) -> None:
        self.kernel.close()
        if self._thread is not None:
            self._thread.join(SOON)
            assert not self._thread.is_alive()
        self.go_away()
        self.opened.close()
        close(self.filler)
        self.device.close()
        os.close(self.watch.fd)

    # -- the kernel

    def read(self, unit: int, count: int = 1) -> int:
        """Ask for units; returns the number of the request."""
        self._last += 2
        body = READ.pack(0, unit * UNIT, count * UNIT, 0, 0, 0, 0)
        head = ASK.pack(ASK.size + len(body), wire.READ, self._last, 1, 0, 0, 1, 0, 0)
        self.kernel.send(head + body)
        return self._last

    def reply(self) -> tuple[int, int, bytes]:
        """The next reply: the number of the request, an errno, what was read."""
        data = self.kernel.recv(1 << 21)
        _, error, unique = struct.unpack_from("=IiQ", data)
        return unique, -error, data[16:]

    def content(self, unit: int, count: int = 1) -> bytes:
        return self.layer.content[unit * UNIT : (unit + count) * UNIT]

    # -- the fetcher

    def come(self) -> None:
        """Be there."""
        path = self.layer.directory / "fetch"
        path.unlink(missing_ok=True)
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.listener.settimeout(SOON)
        with in_directory(self.layer.directory):
            self.listener.bind("fetch")
        self.listener.listen()

    def go_away(self) -> None:
        for each in (self.listener, *self.readers):
            if each is not None:
                each.close()
        self.readers, self.listener = [], None

    def wanted(self) -> Want:
        """The next wish."""
        assert self.listener is not None
        if not self.readers:
            made, _ = self.listener.accept()
            made.settimeout(SOON)
            self.readers.append(made)
        return Want.parse(self.readers[0].recv(MAX_SIZE), UNITS)

    def bring(self, want: Want) -> None:
        self.layer.fill(self.filler, *want.units)
        self.readers[0].send(pack_here(want.number))


@contextlib.contextmanager
def in_directory(path: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(path)
    try:
        yield
    finally:
        os.chdir(before)


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    def readv(fd: int, buffers: Sequence[bytearray]) -> int:
        length = _readv(fd, buffers)
        if not length:
            raise OSError(errno.ENODEV, "No such device")
        return length

    monkeypatch.setattr(os, "readv", readv)
    monkeypatch.chdir(tmp_path)
    made = Scene(pulled(tmp_path, UNITS), patience=60.0)
    yield made
    made.close()


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


def test_what_is_missing_is_asked_for_while_others_are_answered(scene: Scene) -> None:
    scene.layer.fill(scene.filler, 7)
    scene.come()
    scene.serve()
    absent = scene.read(3, 2)
    want = scene.wanted()
    assert (want.units, want.doubtful) == (range(3, 5), False)
    for _ in range(3):
        present = scene.read(7)
        assert scene.reply() == (present, 0, scene.content(7))
    assert scene.board.aside(0) == [absent]
    wait_until(lambda: scene.board.busy_for(0) == 0.0)
    scene.bring(want)
    assert scene.reply() == (absent, 0, scene.content(3, 2))
    wait_until(lambda: scene.board.aside(0) == [])


def test_many_at_once_in_any_order(scene: Scene) -> None:
    scene.come()
    scene.serve()
    asked = {scene.read(unit): unit for unit in range(0, 40, 2)}
    wants = [scene.wanted() for _ in asked]
    assert sorted(want.units[0] for want in wants) == list(asked.values())
    for want in reversed(wants):
        scene.bring(want)
        unique, error, data = scene.reply()
        assert (asked[unique], error, data) == (want.units[0], 0, scene.content(want.units[0]))
    present = scene.read(0, 1)
    assert scene.reply()[0] == present


def test_without_a_fetcher_reads_fail_in_time_and_the_log_says_it_once(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    scene.patience = 0.3
    scene.serve()
    begun = time.monotonic()
    asked = {scene.read(unit) for unit in (3, 4, 5)}
    replies = [scene.reply() for _ in asked]
    assert time.monotonic() - begun > 0.3
    assert {(unique, error, data) for unique, error, data in replies} == {
        (unique, errno.EIO, b"") for unique in asked
    }
    (line,) = caplog.messages
    assert "unit 3 has not been fetched yet, nor has it come within 0.3 s" in line
    scene.come()
    again = scene.read(3)
    scene.bring(scene.wanted())
    assert scene.reply() == (again, 0, scene.content(3))
    scene.read(9)
    scene.reply()
    assert len(caplog.messages) == 2, "after progress it is said again"


def test_a_fetcher_that_dies_and_comes_back_is_asked_again(scene: Scene) -> None:
    scene.come()
    scene.serve()
    asked = {scene.read(3), scene.read(9)}
    assert {scene.wanted().units[0], scene.wanted().units[0]} == {3, 9}
    scene.go_away()
    scene.come()
    wants = [scene.wanted(), scene.wanted()]
    assert {want.units[0] for want in wants} == {3, 9}
    for want in wants:
        scene.bring(want)
    assert {scene.reply()[0], scene.reply()[0]} == asked


def test_a_fetcher_that_says_nothing_is_not_needed_for_what_has_come(scene: Scene) -> None:
    scene.come()
    scene.serve()
    asked = scene.read(3)
    scene.layer.fill(scene.filler, *scene.wanted().units)
    assert scene.reply() == (asked, 0, scene.content(3))


def test_nonsense_from_a_fetcher(scene: Scene) -> None:
    scene.come()
    scene.serve()
    asked = scene.read(3)
    want = scene.wanted()
    scene.readers[0].send(pack_here(want.number + 1))
    scene.readers[0].send(pack_here(want.number))
    scene.readers[0].send(b"nonsense, longer than a number")
    scene.readers.pop().close()
    scene.bring(scene.wanted())
    assert scene.reply() == (asked, 0, scene.content(3))


def test_damage_is_asked_about(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    scene.layer.fill(scene.filler, 3)
    flip(scene.layer.path, scene.layer.geometry.unit_offset(3))
    scene.come()
    scene.serve()
    asked = scene.read(3)
    want = scene.wanted()
    assert (want.units, want.doubtful) == (range(3, 4), True)
    scene.filler.doubt(want.units)
    scene.bring(want)
    assert scene.reply() == (asked, 0, scene.content(3))
    flip(scene.layer.path, scene.layer.geometry.unit_offset(5))
    assert caplog.messages == []


def test_damage_that_stays_is_an_error(scene: Scene, caplog: pytest.LogCaptureFixture) -> None:
    scene.layer.fill(scene.filler, 3)
    flip(scene.layer.path, scene.layer.geometry.unit_offset(3))
    scene.come()
    scene.serve()
    asked = scene.read(3)
    want = scene.wanted()
    scene.readers[0].send(pack_here(want.number))
    assert scene.reply() == (asked, errno.EIO, b"")
    assert "unit 3 has been damaged here" in caplog.text


def test_more_than_can_be_put_aside(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lazy_image, "ASIDE", 2)
    scene.come()
    scene.serve()
    scene.server._free[:] = scene.server._free[:2]
    scene.read(1), scene.read(2)
    wants = [scene.wanted(), scene.wanted()]
    refused = scene.read(3)
    assert scene.reply() == (refused, errno.EIO, b"")
    for want in wants:
        scene.bring(want)
        scene.reply()
    asked = scene.read(3)
    scene.bring(scene.wanted())
    assert scene.reply() == (asked, 0, scene.content(3))
