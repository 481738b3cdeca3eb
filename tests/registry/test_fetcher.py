"""The fetcher of a layer, a process of its own, asked over its socket as workers do.

tests/mount/test_lazy.py has the rest: mounts, deaths, absent and lying registries.
"""

from __future__ import annotations

import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cisfs.format.wants import Want, parse_here
from cisfs.layer import lazy, slotarea
from cisfs.layer.eviction import set_limit
from cisfs.layer.filling import claim
from cisfs.layer.origin import Origin
from cisfs.layer.presence import opened
from cisfs.registry.artifacts import PushedLayer, part
from cisfs.registry.pull import install
from tests.mount.harness.processes import wait_until
from tests.registry.harness.faults import Answer, Fault, Rule
from tests.registry.harness.modern import ModernRegistry
from tests.registry.harness.proxy import Proxy
from tests.unit.partial_layers import Pulled, close, flip, pulled

UNITS = 1024  # of 4 KiB
GET = r"^GET .*/blobs/"
PATIENCE = 30.0  # seconds


class Fetcher:
    """A running one, and a reader of it."""

    def __init__(self, layer: Pulled, log: Path) -> None:
        self.layer, self.log = layer, log
        claimed = claim(layer.directory)
        os.set_inheritable(claimed, True)
        module = [sys.executable, "-P", "-m", "cisfs.registry.fetcher"]
        words = [str(layer.directory), str(claimed), "--log-file", str(log)]
        self.process = subprocess.Popen([*module, *words], close_fds=False)
        os.close(claimed)
        self.line = self.connect()

    def connect(self) -> socket.socket:
        """A line to it, once it listens."""
        directory = os.open(self.layer.directory, os.O_RDONLY)
        try:
            end = time.monotonic() + PATIENCE
            while time.monotonic() < end:
                line = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                line.settimeout(PATIENCE)
                try:
                    line.connect(f"/proc/self/fd/{directory}/{lazy.SOCKET}")
                except OSError:
                    line.close()
                    time.sleep(0.02)
                else:
                    return line
        finally:
            os.close(directory)
        raise AssertionError("it does not listen: " + self.log.read_text())

    def get(self, units: range, *, doubtful: bool = False) -> None:
        """Wait until units are here."""
        self.line.send(Want(7, units, doubtful).pack())
        assert parse_here(self.line.recv(64)) == 7
        assert opened(self.layer.directory).has_all(units)

    def end(self) -> None:
        self.line.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()


Start = Callable[[], Fetcher]


@pytest.fixture
def layer(tmp_path: Path, modern: ModernRegistry, modern_front: Proxy) -> Pulled:
    made = pulled(tmp_path, UNITS, registry=modern_front.name)
    modern.blobs["a/b", made.digest] = made.blob
    return made


@pytest.fixture
def start(tmp_path: Path, layer: Pulled) -> Iterator[Start]:
    started: list[Fetcher] = []

    def begin() -> Fetcher:
        started.append(Fetcher(layer, tmp_path / "log"))
        return started[-1]

    yield begin
    for each in started:
        each.end()


def stored(layer: Pulled) -> bytes:
    return layer.path.read_bytes()[131072:]


def test_what_is_wanted_comes_and_then_the_rest(
    layer: Pulled, start: Start, modern_front: Proxy
) -> None:
    modern_front.limit(2e6)
    fetcher = start()
    fetcher.get(range(700, 705))
    first = modern_front.requests(GET)
    assert sum(each.sent for each in first) < 1 << 20
    modern_front.limit(None)
    assert fetcher.process.wait(PATIENCE) == 0
    assert stored(layer) == layer.blob[131072:]
    assert not lazy.is_partial(layer.path)
    assert modern_front.sent == len(layer.blob) - 131072
    assert hashlib.sha256(layer.blob).hexdigest() in layer.digest
    assert not fetcher.log.read_text()


def test_others_make_room_for_it(layer: Pulled, start: Start, tmp_path: Path) -> None:
    other = pulled(tmp_path, UNITS, seed=2)
    filler = other.filler()
    other.fill(filler, *range(UNITS))
    filler.settle()
    close(filler)
    store = tmp_path / "store"
    limit = 6 << 20  # more than one of them, and less than both
    set_limit(store, limit)
    assert start().process.wait(PATIENCE) == 0
    assert not lazy.is_partial(layer.path)
    assert lazy.is_partial(other.path)
    on_disk = [each.stat().st_blocks * 512 for each in store.rglob("layer.cis")]
    assert sum(on_disk) <= limit
    assert len(on_disk) == 2


def test_root_is_left_and_no_key_is_there(layer: Pulled, start: Start, modern_front: Proxy) -> None:
    modern_front.limit(1e5)
    fetcher = start()
    status = Path(f"/proc/{fetcher.process.pid}/status").read_text()
    ids = next(line for line in status.splitlines() if line.startswith("Uid:")).split()[1:]
    assert ids == (["65534"] * 4 if os.geteuid() == 0 else [str(os.geteuid())] * 4)
    assert "NoNewPrivs:\t1" in status
    assert layer.directory.exists()


def test_it_ends_when_nobody_is_left(start: Start, modern_front: Proxy) -> None:
    modern_front.limit(1e5)
    fetcher = start()
    other = fetcher.connect()
    fetcher.line.close()
    time.sleep(3)
    assert fetcher.process.poll() is None
    other.close()
    assert fetcher.process.wait(PATIENCE) == 0


def test_after_a_kill_another_goes_on(layer: Pulled, start: Start, modern_front: Proxy) -> None:
    modern_front.limit(2e6)
    fetcher = start()
    fetcher.get(range(100, 110))
    os.kill(fetcher.process.pid, signal.SIGKILL)
    fetcher.process.wait()
    modern_front.stop()
    again = start()
    again.get(range(100, 110))
    modern_front.resume()
    modern_front.limit(None)
    again.get(range(110, 900))
    assert again.process.wait(PATIENCE) == 0
    assert stored(layer) == layer.blob[131072:]


def test_damage_is_replaced(layer: Pulled, start: Start, modern_front: Proxy) -> None:
    modern_front.limit(2e6)
    fetcher = start()
    fetcher.get(range(10))
    flip(layer.path, layer.geometry.unit_offset(4))
    fetcher.get(range(10), doubtful=True)
    assert layer.path.read_bytes()[131072 : 131072 + 10 * 4096] == layer.blob[131072:][: 10 * 4096]


@pytest.mark.parametrize("data", [b"", b"nonsense", Want(1, range(UNITS, UNITS + 1)).pack()])
def test_nonsense_costs_the_line_only(start: Start, modern_front: Proxy, data: bytes) -> None:
    modern_front.limit(2e6)
    fetcher = start()
    other = fetcher.connect()
    if data:
        other.send(data)
        assert other.recv(64) == b""
    other.close()
    fetcher.get(range(3))


def test_wrong_bytes_are_refused_and_asked_for_again(
    layer: Pulled, start: Start, modern_front: Proxy
) -> None:
    modern_front.rules = [Rule(GET, Fault(alter=lambda piece: bytes(len(piece))), times=3)]
    fetcher = start()
    fetcher.get(range(3))
    assert fetcher.process.wait(PATIENCE) == 0
    assert stored(layer) == layer.blob[131072:]
    lines = fetcher.log.read_text().splitlines()
    assert any("is wrong" in line for line in lines)
    assert "fetching goes on" in lines[-1]


@pytest.mark.parametrize("status", [401, 403, 404, 429, 500, 503])
def test_refusals_are_logged_once_and_outlasted(
    start: Start, modern_front: Proxy, status: int
) -> None:
    modern_front.rules = [Rule(GET, Answer(status, [], b"no"), times=4)]
    fetcher = start()
    fetcher.get(range(3))
    # The reader is answered first, and then it is logged that fetching goes on.
    wait_until(lambda: "goes on" in fetcher.log.read_text(), "it is logged")
    lines = fetcher.log.read_text().splitlines()
    assert len(lines) == 2
    assert "cannot fetch what is missing" in lines[0]


def test_a_whole_blob_where_there_are_no_parts(
    layer: Pulled, start: Start, modern_front: Proxy
) -> None:
    modern_front.rules = [Rule(GET, Fault(ignore_range=True))]
    fetcher = start()
    fetcher.get(range(900, 910))
    assert fetcher.process.wait(PATIENCE) == 0
    assert stored(layer) == layer.blob[131072:]
    whole = [each for each in modern_front.requests(GET) if each.sent == len(layer.blob)]
    assert len(whole) == 1


def test_a_pull_puts_an_end_to_it(layer: Pulled, start: Start, modern_front: Proxy) -> None:
    modern_front.limit(1e5)
    fetcher = start()
    with layer.path.open("rb") as file:
        text = slotarea.read(file.fileno()).text
    identity = layer.directory.name
    described = PushedLayer(identity, (part(layer.digest, len(layer.blob), identity),))
    source = Origin.read(layer.directory)
    inode = layer.path.stat().st_ino
    install(layer.directory, described, text, source, lambda fd: os.pwrite(fd, layer.blob, 0))
    assert fetcher.process.wait(PATIENCE) == -signal.SIGTERM
    assert sorted(os.listdir(layer.directory)) == ["layer.cis", "source.json"]
    assert (layer.path.stat().st_ino, stored(layer)) == (inode, layer.blob[131072:])
