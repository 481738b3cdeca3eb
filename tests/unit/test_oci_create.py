"""What `cisfs-runtime create` takes, and how it learns what became of the keeper it forked."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from cisfs.errors import EngineError, NoKeyError
from cisfs.mount import syscalls
from cisfs.mount.assignment import MOUNTED, tell
from cisfs.runtime.oci import create, keeper, line

_LONG = 5.0  # seconds that a server outlives its keeper by


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch) -> keeper.Task:
    """What a keeper that mounts nothing is told."""
    monkeypatch.setattr(syscalls, "unmount", lambda *_: None)
    return cast("keeper.Task", SimpleNamespace(place=SimpleNamespace(mounts="/nowhere")))


def test_a_keeper_that_is_killed_is_not_waited_for_although_its_servers_live(
    task: keeper.Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(_task: object, _report: int) -> int:
        if os.fork() == 0:  # a server, with the pipe open
            time.sleep(_LONG)
            os._exit(0)
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    monkeypatch.setattr(keeper, "keep", killed)
    before = time.monotonic()
    with pytest.raises(EngineError, match="keeper of the container died"):
        create._have_kept(task)
    assert time.monotonic() - before < _LONG / 2


def test_what_a_keeper_says_before_it_ends_is_heard(
    task: keeper.Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_task: object, _report: int) -> int:
        raise NoKeyError("it is locked")

    monkeypatch.setattr(keeper, "keep", refuse)
    with pytest.raises(NoKeyError, match="it is locked"):
        create._have_kept(task)


def test_a_keeper_that_has_mounted_stays(
    task: keeper.Task, monkeypatch: pytest.MonkeyPatch
) -> None:
    released, release = os.pipe()

    def keep(_task: object, report: int) -> int:
        os.close(release)
        tell(report, MOUNTED)
        os.read(released, 1)
        return 7

    monkeypatch.setattr(keeper, "keep", keep)
    create._have_kept(task)
    assert os.waitpid(-1, os.WNOHANG)[0] == 0
    os.close(release)
    os.close(released)
    assert os.waitstatus_to_exitcode(os.wait()[1]) == 7


def test_a_configuration_beside_the_bundles_own_takes_no_layers(tmp_path: Path) -> None:
    """Read as the bundle's, it would be rewritten where the runtime does not look."""
    (tmp_path / "other.json").write_text(
        '{"root": {"path": "r"}, "annotations": {"dev.cisfs.layers": "/srv/x.cis"}}'
    )
    given = line.parse(["create", "--bundle", str(tmp_path), "--config", "other.json", "box"])
    with pytest.raises(EngineError, match=r"^--config other\.json: .* its bundle's config\.json"):
        create.prepare(given, "/usr/bin/crun")
    (tmp_path / "other.json").write_text("{}")
    create.prepare(given, "/usr/bin/crun")
