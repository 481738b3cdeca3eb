"""A mounted sealed layer survives its workers' deaths, and its own death leaves nobody waiting."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.mount.harness import layers, linux
from tests.mount.harness.faulty import ALWAYS, Act
from tests.mount.harness.lab import command, environment
from tests.mount.harness.layers import Material, forget, fresh
from tests.mount.harness.linux import fails
from tests.mount.harness.processes import Child, wait_until
from tests.mount.harness.sealed import SealedLab, lab_in, serving

pytestmark = [pytest.mark.fuse, pytest.mark.root]

FIO_SIZE = 64 << 20
FIO_SECONDS = 8
KILL_EVERY = 0.2
ENOUGH_DEATHS = 15
DEAD = {errno.EIO, errno.ENOTCONN, errno.ECONNABORTED}

FIO = ["fio", "--verify=crc32c", "--bs=64k", f"--size={FIO_SIZE}", "--verify_state_save=0"]


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    """A plain tree, and a file that fio(1) wrote so that it knows each block again."""
    base = tmp_path_factory.mktemp("material")
    layers.plain_tree(base / "tree")
    write = ["--name=w", f"--filename={base}/tree/fio", "--rw=write", "--do_verify=0"]
    subprocess.run([*FIO, *write], check=True, capture_output=True, timeout=90)
    return Material.make(base, base / "tree")


@pytest.fixture
def lab(tmp_path: Path, material: Material) -> Iterator[SealedLab]:
    with lab_in(tmp_path, material) as made:
        yield made


def sums(root: Path) -> dict[str, str]:
    """The checksums of all files, read anew from the layer."""
    return {path.name: hashlib.sha256(fresh(path)).hexdigest() for path in root.iterdir()}


# ---- deaths that nobody notices


def test_no_reader_learns_of_the_deaths_of_workers(lab: SealedLab) -> None:
    """A worker is killed every 200 ms while fio and a checksum of everything read."""
    lab.mount("--workers", "2")
    expected = sums(lab.tree)
    file = lab.mountpoint / "fio"
    end = time.monotonic() + FIO_SECONDS

    def sum_again_and_again() -> int:
        rounds = 0
        while time.monotonic() < end or not rounds:
            assert sums(lab.mountpoint) == expected
            rounds += 1
        return rounds

    def forget_again_and_again() -> None:
        while time.monotonic() < end:
            forget(file)
            time.sleep(0.05)

    jobs = [f"--filename={file}", "--readonly", "--verify_fatal=1", "--output-format=json"]
    timed = ["--time_based", f"--runtime={FIO_SECONDS}"]
    each = [["--name=random", "--rw=randread"], ["--name=sequential", "--rw=read"]]
    with subprocess.Popen(
        [*FIO, *jobs, *timed, *each[0], *each[1]],
        env=environment(),
        cwd=lab.base,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as fio:
        readers = [Child(sum_again_and_again), Child(forget_again_and_again)]
        victims = kill_now_and_then(lab, end)
        said, complaints = fio.communicate(timeout=90)
    assert (fio.returncode, complaints) == (0, "")
    for job in json.loads(said)["jobs"]:
        assert job["error"] == 0
        assert job["read"]["total_ios"] > 100
    assert readers[0].result() >= 1
    readers[1].result()
    assert len(victims) >= ENOUGH_DEATHS
    lab.wait_for_workers(2, without=victims)
    for victim in victims:
        lab.log.expect(rf"worker {victim} ended \(SIGKILL\): it is replaced")
    assert len(lab.log.lines()) == len(victims)
    print(f"{len(victims)} workers were killed")


def kill_now_and_then(lab: SealedLab, end: float) -> list[int]:
    """Kill a random worker every 200 ms; returns whom."""
    victims = []
    choice = random.Random(1)
    while time.monotonic() < end:
        time.sleep(KILL_EVERY)
        workers = lab.workers
        if workers:
            victim = choice.choice(workers)
            os.kill(victim, signal.SIGKILL)
            victims.append(victim)
    return victims


READ_BY_MANY = [["--workers", "1"], ["--workers", "3"], ["--workers", "2", "--loop-device"]]


@pytest.mark.parametrize("options", READ_BY_MANY)
@pytest.mark.parametrize("act", [Act.DIE, Act.DIE_UNSEEN])
def test_what_a_dead_worker_had_in_hand_is_done_by_another(
    lab: SealedLab, act: Act, options: list[str]
) -> None:
    switch = lab.use_faulty_workers()
    lab.mount(*options)
    switch.set(act, 5)
    assert fresh(lab.mountpoint / "large") == (lab.tree / "large").read_bytes()
    assert switch.left == 0
    wait_until(lambda: len(lab.log.lines()) >= 5, "each death is logged")
    lab.log.expect("it is replaced")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGSEGV])
def test_any_signal_to_a_worker_is_its_own_affair(lab: SealedLab, number: signal.Signals) -> None:
    lab.mount("--workers", "2")
    supervisor, victims = lab.supervisor, lab.workers
    lab.kill(*victims, number=number)
    lab.wait_for_workers(2, without=victims)
    assert lab.supervisor == supervisor
    assert fresh(lab.mountpoint / "large") == (lab.tree / "large").read_bytes()
    lab.log.expect(rf"{number.name}.*it is replaced")


def test_hung_workers_are_replaced_and_the_read_goes_on(lab: SealedLab) -> None:
    switch = lab.use_faulty_workers()
    lab.mount("--workers", "2", "--worker-timeout", "1")
    before = lab.workers
    switch.set(Act.HANG, 2)
    assert fresh(lab.mountpoint / "large") == (lab.tree / "large").read_bytes()
    lab.wait_for_workers(2, without=before[:1])
    lab.log.expect(r"has not answered for 1 s: it is replaced")
    lab.log.expect(r"SIGKILL")


def test_stopped_workers_are_replaced(lab: SealedLab) -> None:
    lab.mount("--workers", "2", "--worker-timeout", "1")
    before = lab.workers
    lab.kill(*before, number=signal.SIGSTOP)
    assert fresh(lab.mountpoint / "large") == (lab.tree / "large").read_bytes()
    lab.wait_for_workers(2, without=before)
    for pid in before:
        lab.log.expect(rf"worker {pid} has not answered for 1 s: it is replaced")
        lab.log.expect(rf"worker {pid} ended \(SIGKILL\)")


def test_an_unforeseen_exception_costs_one_read(lab: SealedLab) -> None:
    switch = lab.use_faulty_workers()
    lab.mount("--workers", "1")
    before = lab.workers
    switch.set(Act.RAISE, 2)  # the second if the kernel makes another attempt of its own
    with fails(errno.EIO):
        layers.block(lab.mountpoint / "large", 0)
    switch.set(Act.ANSWER, 0)
    assert fresh(lab.mountpoint / "large") == (lab.tree / "large").read_bytes()
    assert lab.workers == before
    lab.log.expect("unexpected error in request")
    lab.log.expect("KeyError: 'unforeseen'")
    lab.log.allow(r"^(Traceback|  )")


# ---- requests that cannot be helped


@pytest.mark.parametrize("act", [Act.DIE, Act.HANG])
def test_a_request_that_no_worker_survives(lab: SealedLab, act: Act) -> None:
    """Its reader gets an error in the end, as nobody can wait for ever; others are served."""
    switch = lab.use_faulty_workers()
    lab.mount("--workers", "1", "--worker-timeout", "0.1")
    small = fresh(lab.mountpoint / "small")
    switch.set(act, ALWAYS)
    reader = Child(lambda: layers.block(lab.mountpoint / "large", 0), patience=60)
    with fails(errno.EIO):
        reader.result()
    switch.set(Act.ANSWER, 0)
    assert fresh(lab.mountpoint / "small") == small
    lab.umount()
    lab.log.expect("it is replaced")
    lab.log.allow("")


def test_workers_that_cannot_live_are_given_up(lab: SealedLab) -> None:
    lab.use_faulty_workers("stillborn")
    code, said = lab.refused(*lab.mount_words("--workers", "2"))
    assert code == 17
    assert "the workers" in said
    lab.wait_for_end()
    assert not lab.is_mounted
    lab.log.expect("it is replaced")
    assert len(lab.log.lines()) < 70


# ---- a kernel that cannot send requests again


@pytest.mark.parametrize("act", [Act.DIE, Act.HANG])
def test_without_resending_the_reads_in_hand_fail(lab: SealedLab, act: Act) -> None:
    switch = lab.use_faulty_workers("no-resend")
    lab.mount("--workers", "2", "--worker-timeout", "0.5")
    for _ in range(2):
        switch.set(act, ALWAYS)  # also if the kernel makes another attempt of its own
        reader = Child(lambda: layers.block(lab.mountpoint / "large", 0), patience=60)
        with fails(errno.EIO):
            reader.result()
        switch.set(Act.ANSWER, 0)
        assert fresh(lab.mountpoint / "large") == (lab.tree / "large").read_bytes()
    wait_until(lambda: len(lab.log.having("it is replaced")) >= 2, "each death is logged")
    lab.log.allow("it is replaced")
    lab.log.expect(r"cannot send requests again.*6\.9")
    assert len(lab.log.having(r"Linux 6\.9")) == 1


def test_without_resending_idle_workers_cost_nothing(lab: SealedLab) -> None:
    lab.use_faulty_workers("no-resend")
    lab.mount("--workers", "2")
    victims = lab.workers
    lab.kill(*victims)
    lab.wait_for_workers(2, without=victims)
    assert fresh(lab.mountpoint / "large") == (lab.tree / "large").read_bytes()
    lab.log.expect("it is replaced")
    lab.log.expect(r"Linux 6\.9")


# ---- the death of the supervisor


@pytest.fixture(params=[[], ["--loop-device"]], ids=["file", "loop"])
def dead(lab: SealedLab, request: pytest.FixtureRequest) -> SealedLab:
    """A mount whose supervisor was killed while others were waiting for reads."""
    switch = lab.use_faulty_workers()
    lab.mount("--workers", "2", *request.param)
    switch.set(Act.HANG, ALWAYS)
    places = [lab.mountpoint / name for name in ("large", "fio")]
    waiting = [Child(partial(layers.block, place, 0)) for place in places]
    wait_until(lambda: all(map(is_waiting, waiting)), "both wait for their reads")
    killed = time.monotonic()
    lab.kill(lab.supervisor)
    for reader in waiting:
        with fails(*DEAD):
            reader.result()
    lab.wait_for_end()
    print(f"all was over {time.monotonic() - killed:.2f} s after the kill")
    lab.program = command()
    return lab


def is_waiting(child: Child) -> bool:
    """Whether a process waits for a disk, or what passes for one."""
    stat = Path(f"/proc/{child.pid}/stat").read_text()
    return stat.rpartition(")")[2].split()[0] == "D"


def test_when_the_supervisor_is_killed_nothing_hangs_and_umount_cleans_up(dead: SealedLab) -> None:
    with fails(*DEAD):
        fresh(dead.mountpoint / "large")
    assert linux.mounts_below(dead.base)
    dead.umount()
    assert not dead.is_mounted
    assert dead.records() == []


def test_when_the_supervisor_is_killed_the_next_mount_cleans_up(dead: SealedLab) -> None:
    fd = os.open(dead.mountpoint / "large", os.O_RDONLY)  # in use, too
    dead.mount()
    assert fresh(dead.mountpoint / "large") == (dead.tree / "large").read_bytes()
    assert len(linux.mounts_below(dead.base)) == 1
    os.close(fd)


def test_when_everybody_is_killed_the_same_is_true(lab: SealedLab) -> None:
    lab.mount()
    lab.kill(*serving(lab.base))
    with fails(*DEAD):
        fresh(lab.mountpoint / "large")
    lab.mount()
    assert fresh(lab.mountpoint / "large") == (lab.tree / "large").read_bytes()
    lab.kill(*serving(lab.base))
    lab.umount()
    assert lab.records() == []


def test_the_record_of_a_dead_mount_is_not_taken_for_that_of_another(lab: SealedLab) -> None:
    """The kernel uses device numbers again, perhaps for a mount that is none of ours."""
    lab.mount()
    lab.kill(*serving(lab.base))
    (record,) = lab.records()
    linux.umount(lab.mountpoint, linux.MNT_DETACH)
    plain = lab.base / "plain"
    plain.mkdir()
    words = ["mount", "-t", "erofs", "-o", "ro", str(lab.material.image), str(plain)]
    assert lab.run(words).returncode == 0
    try:
        assert lab.refused("umount", plain)[0] == 17
        assert linux.Mounted(plain, "erofs") in linux.mounts_below(lab.base)
    finally:
        linux.umount(plain)
    Path(record.rpartition(": ")[0]).unlink(missing_ok=True)


def test_a_supervisor_killed_as_soon_as_the_mount_shows(lab: SealedLab) -> None:
    """Whatever the moment, what it leaves is known as ours and cleaned up."""
    for _ in range(3):
        with subprocess.Popen(
            [*lab.program, *map(str, lab.mount_words("--workers", "1"))],
            env=environment(),
            stderr=subprocess.DEVNULL,
        ) as mounting:
            while not linux.mounts_below(lab.base):
                assert mounting.poll() is None
            for pid in serving(lab.base):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            mounting.wait(30)
        lab.wait_for_end()
        lab.mount("--workers", "1")
        lab.umount()
        assert not lab.is_mounted
