"""The socket of a fetcher: what a reader may ask of it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cisfs.format.wants import Want
from cisfs.registry import fetcher
from cisfs.registry.fetcher_plan import Plan
from tests.unit.partial_layers import close, pulled

UNITS = 40


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The socket of a fetcher that fetches nothing."""
    monkeypatch.setattr(fetcher, "_MOST_UNITS", 3 * UNITS)
    filler = pulled(tmp_path, UNITS).filler()
    plan = Plan(filler, quiet=1)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        listener.setblocking(False)
        service = threading.Thread(target=fetcher.Service(listener, filler, plan).serve)
        service.start()
        yield tmp_path / "s"
        plan.close()
        service.join()
    close(filler)


def test_what_one_reader_waits_for_is_bounded(path: Path) -> None:
    """Workers are not trusted, and what they ask for takes memory."""
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as greedy,
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as modest,
    ):
        for reader in (greedy, modest):
            reader.connect(str(path))
            reader.settimeout(1)
        for number in range(4):
            greedy.send(Want(number, range(UNITS)).pack())
        for number in range(3):
            modest.send(Want(number, range(UNITS)).pack())
        assert greedy.recv(64) == b""
        with pytest.raises(TimeoutError):
            modest.recv(64)


def test_who_is_still_there_at_the_end_learns_of_it(tmp_path: Path) -> None:
    filler = pulled(tmp_path, UNITS).filler()
    plan = Plan(filler, quiet=1)
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener,
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as reader,
    ):
        listener.bind(str(tmp_path / "s"))
        listener.listen()
        service = fetcher.Service(listener, filler, plan)
        reader.connect(str(tmp_path / "s"))
        service._accept()
        plan.close()
        service.serve()
        reader.settimeout(5)
        assert reader.recv(64) == b""
    close(filler)
