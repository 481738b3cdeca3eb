"""Servers that are told to end before they have begun."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cisfs.mount import server
from cisfs.mount.assignment import MountOptions


@pytest.fixture
def deaf() -> Iterator[None]:
    """What servers are forked from ignores that it is to end, as a keeper does."""
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("deaf")
@pytest.mark.parametrize("early", [True, False])
def test_a_server_ends_when_it_is_told_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, early: bool
) -> None:
    fork = os.fork

    def forked() -> int:
        pid = fork()
        if pid == 0:
            time.sleep(0.1)  # the signal is there before anything else is
        elif early:
            os.kill(pid, signal.SIGTERM)
        return pid

    def served(*_arguments: object) -> int:
        time.sleep(60)
        return 0

    monkeypatch.setattr(os, "fork", forked)
    monkeypatch.setattr(server, "check", lambda *_arguments: None)
    monkeypatch.setattr("cisfs.mount.serving.serve", served)
    layer: Any = SimpleNamespace(path=tmp_path / "layer")
    launched = server.launch(layer, tmp_path, MountOptions())
    try:
        assert signal.SIGTERM not in signal.pthread_sigmask(signal.SIG_BLOCK, ())
        launched.server.stop(5.0)  # raises if it has to be killed
    finally:
        os.close(launched.report)
