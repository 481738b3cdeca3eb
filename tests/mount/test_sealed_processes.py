"""The processes behind a mounted sealed layer: how many, what they may, and what they hold."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.harness import layers
from tests.mount.harness.layers import Material, fresh
from tests.mount.harness.processes import NOBODY, as_user, descriptors
from tests.mount.harness.sealed import SealedLab, lab_in

WATCH = "/memfd:cisfs watch (deleted)"
pytestmark = [pytest.mark.fuse, pytest.mark.root]


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    """One layer for all tests of the module."""
    base = tmp_path_factory.mktemp("material")
    layers.plain_tree(base / "tree")
    return Material.make(base, base / "tree")


@pytest.fixture
def lab(tmp_path: Path, material: Material) -> Iterator[SealedLab]:
    with lab_in(tmp_path, material) as made:
        yield made


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, material: Material) -> Iterator[SealedLab]:
    """One mount for the tests that only look at it."""
    with lab_in(tmp_path_factory.mktemp("shared"), material, patience=600) as made:
        made.mount("--workers", "2")
        yield made


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def test_the_processes_have_names(shared: SealedLab) -> None:
    shown = shared.run(["ps", "-eo", "args"]).stdout.splitlines()
    ours = sorted(
        line.rstrip() for line in shown if line.startswith("cisfs: ") and str(shared.base) in line
    )
    assert ours == [f"cisfs: {role} {shared.layer}" for role in ("supervisor", "worker", "worker")]


@pytest.mark.parametrize("count", [1, 3])
def test_as_many_workers_as_asked_for(lab: SealedLab, count: int) -> None:
    lab.mount("--workers", str(count))
    assert len(lab.workers) == count
    assert fresh(lab.mountpoint / "large") == (lab.tree / "large").read_bytes()


def test_a_worker_for_each_processor(lab: SealedLab) -> None:
    lab.mount()
    assert len(lab.workers) == min(8, len(os.sched_getaffinity(0)))


def test_workers_have_no_rights(shared: SealedLab) -> None:
    supervisor = shared.supervisor
    for pid in shared.workers:
        status = status_of(pid)
        assert set(status["Uid"].split() + status["Gid"].split()) == {str(NOBODY)}
        assert status["Groups"] == ""
        assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0
        assert int(status["CapAmb"], 16) == 0
        assert status["NoNewPrivs"] == "1"
        assert status["PPid"] == str(supervisor)


def test_the_memory_of_all_is_private(shared: SealedLab) -> None:
    """Neither dumped, nor read by others of the same user, nor swapped out."""
    for pid in [shared.supervisor, *shared.workers]:
        process = Path("/proc") / str(pid)
        # What belongs to a process that must not be dumped belongs to root: see proc(5).
        assert (process / "environ").stat().st_uid == 0
        limits = (process / "limits").read_text()
        # The kernel writes none at a limit of 1, and pipes none either (fs/coredump.c).
        assert limits.partition("Max core file size")[2].split()[0] in ("0", "1")
        assert int(status_of(pid)["VmLck"].split()[0]) > 0

    def spy() -> list[int]:
        read = []
        for pid in shared.workers:
            for name in ("mem", "maps", "environ", "fd/3"):
                try:
                    Path(f"/proc/{pid}/{name}").open("rb").close()
                except OSError:
                    continue
                read.append(pid)
        return read

    assert as_user(NOBODY, Path("/"), spy) == []


def test_workers_hold_what_they_need_and_no_more(shared: SealedLab) -> None:
    for pid in shared.workers:
        opened = descriptors(pid)
        assert {opened.pop(number)[0] for number in (0, 1, 2)} == {"/dev/null"}
        left = sorted(place for place, _ in opened.values())
        assert left == sorted(["/dev/fuse", WATCH, str(shared.layer), str(shared.log.path)])
        assert os.readlink(f"/proc/{pid}/cwd") == "/"


def test_the_supervisor_holds_nothing_of_its_starters(shared: SealedLab) -> None:
    """No terminal, no pipe of the caller's, no working directory: and so no hang of `| cat`."""
    supervisor = shared.supervisor
    opened = descriptors(supervisor)
    assert {opened.pop(number)[0] for number in (0, 1, 2)} == {"/dev/null"}
    left = {place for place, _ in opened.values()}
    assert left >= {"/dev/fuse", str(shared.layer), str(shared.log.path)}
    assert not [place for place in left if place.startswith(("pipe:", "socket:", "/dev/pts"))]
    assert os.readlink(f"/proc/{supervisor}/cwd") == "/"
    assert os.getsid(supervisor) == supervisor


def test_nothing_of_the_key_is_in_argv_or_environment(shared: SealedLab) -> None:
    key = shared.key.read_bytes()
    for pid in [shared.supervisor, *shared.workers]:
        shown = [(Path("/proc") / str(pid) / name).read_bytes() for name in ("cmdline", "environ")]
        assert not [one for one in shown if key in one or key.hex().encode() in one]


def test_memory_stays_small(shared: SealedLab) -> None:
    for _ in range(3):
        for name in ("large", "small"):
            fresh(shared.mountpoint / name)
    for pid in shared.workers:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        proportional = int(rollup.partition("\nPss:")[2].split()[0])
        assert proportional < 60 * 1024
