"""How the mount of a sealed layer ends: unmounted, asked to by a signal, or with its terminal."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.harness import layers, linux
from tests.mount.harness.lab import environment
from tests.mount.harness.layers import LARGE, Material, fresh
from tests.mount.harness.linux import fails
from tests.mount.harness.processes import Child, wait_until
from tests.mount.harness.sealed import SealedLab, counted, lab_in

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


def test_umount_in_use_is_refused_and_says_by_whom(lab: SealedLab) -> None:
    file = lab.mount() / "large"
    fd = os.open(file, os.O_RDONLY)
    code, said = lab.refused("umount", lab.mountpoint)
    assert code == 17
    assert "in use" in said
    assert f"process {os.getpid()}" in said
    assert "--lazy" in said
    assert fresh(file) == (lab.tree / "large").read_bytes()
    lab.umount("--lazy")
    assert not lab.is_mounted
    assert list(lab.mountpoint.iterdir()) == []
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    assert os.pread(fd, LARGE, 0) == (lab.tree / "large").read_bytes()
    assert lab.workers
    os.close(fd)
    lab.wait_for_end()
    assert lab.records() == []


def test_umount_leaves_nothing(lab: SealedLab) -> None:
    lab.mount()
    assert len(lab.records()) == 1
    lab.umount()
    assert not lab.is_mounted
    lab.wait_for_end()
    assert lab.records() == []
    assert lab.refused("umount", lab.mountpoint)[0] == 17


def test_umount_by_other_means_is_noticed(lab: SealedLab) -> None:
    lab.mount()
    linux.umount(lab.mountpoint)
    lab.wait_for_end()
    assert lab.records() == []


def test_umount_says_that_another_namespace_has_the_mount(lab: SealedLab) -> None:
    lab.mount()
    holding = ["unshare", "--mount", "--propagation", "private", "sh", "-c", "echo; exec sleep 60"]
    with subprocess.Popen(holding, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        ended = lab.cisfs("umount", lab.mountpoint)
        assert (ended.returncode, ended.stdout) == (0, "")
        assert "is unmounted, but" in ended.stderr
        assert "another mount namespace" in ended.stderr
        assert not lab.is_mounted
        assert lab.workers
        holder.kill()
    lab.wait_for_end()
    assert lab.records() == []


SIGNALS = [signal.SIGTERM, signal.SIGINT, signal.SIGHUP]


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_an_idle_mount(lab: SealedLab, number: signal.Signals) -> None:
    lab.mount()
    os.kill(lab.supervisor, number)
    lab.wait_for_end()
    assert not lab.is_mounted
    assert lab.records() == []


@pytest.mark.parametrize("options", [[], ["--loop-device"]])
def test_a_signal_ends_a_mount_in_use(lab: SealedLab, options: list[str]) -> None:
    path = lab.mount(*options) / "large"
    fd = os.open(path, os.O_RDONLY)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    os.kill(lab.supervisor, signal.SIGTERM)
    lab.wait_for_end()
    assert not lab.is_mounted
    with fails(errno.EIO, errno.ENOTCONN):
        os.pread(fd, LARGE, 0)
    os.close(fd)


def test_a_signal_under_load(lab: SealedLab) -> None:
    path = lab.mount() / "large"

    def read_on() -> int:
        while True:
            try:
                fresh(path)
            except OSError as error:
                return error.errno or 0

    readers = [Child(read_on) for _ in range(3)]
    wait_until(lambda: counted(lab.workers[0], "rchar") > LARGE, "they read")
    os.kill(lab.supervisor, signal.SIGTERM)
    lab.wait_for_end()
    # ENOENT and ENOTDIR: the path was gone when they came back to it.
    ends = {reader.result() for reader in readers}
    assert ends <= {errno.EIO, errno.ENOTCONN, errno.ENOENT}
    assert not lab.is_mounted


# ---- in the foreground


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether a process has a handler for a signal (proc(5))."""
    status = Path(f"/proc/{pid}/status").read_text()
    return bool(int(status.partition("SigCgt:")[2].split()[0], 16) & 1 << number - 1)


@pytest.fixture
def foreground(lab: SealedLab) -> Iterator[subprocess.Popen[str]]:
    """A mount in the foreground."""
    words = ["mount", lab.layer, lab.mountpoint, "--foreground", *lab.with_key]
    with subprocess.Popen(
        [*lab.program, *map(str, words)],
        env=environment(),
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        process_group=0,
    ) as running:
        try:
            wait_until(lambda: catches(running.pid, signal.SIGTERM), "it waits for signals")
            yield running
        finally:
            if running.poll() is None:
                running.kill()


@pytest.mark.parametrize("number", SIGNALS)
def test_ctrl_c_ends_it(
    lab: SealedLab, foreground: subprocess.Popen[str], number: signal.Signals
) -> None:
    assert (lab.mountpoint / "small").read_bytes() == b"small"
    os.killpg(foreground.pid, number)
    _, said = foreground.communicate(timeout=30)
    assert (foreground.returncode, said) == (0, "")
    assert not lab.is_mounted


def test_it_logs_to_stderr(lab: SealedLab, foreground: subprocess.Popen[str]) -> None:
    (victim, *_) = lab.workers
    lab.kill(victim)
    lab.wait_for_workers(len(os.sched_getaffinity(0)), without=[victim])
    foreground.send_signal(signal.SIGINT)
    _, said = foreground.communicate(timeout=30)
    assert f"worker {victim} ended (SIGKILL): it is replaced" in said
    assert said.count("\n") == 1


def test_it_is_unmounted_when_the_command_is_killed(
    lab: SealedLab, foreground: subprocess.Popen[str]
) -> None:
    foreground.kill()
    lab.wait_for_end()
    assert not lab.is_mounted


def test_it_can_be_unmounted_from_elsewhere(
    lab: SealedLab, foreground: subprocess.Popen[str]
) -> None:
    lab.umount()
    _, said = foreground.communicate(timeout=30)
    assert (foreground.returncode, said) == (0, "")
