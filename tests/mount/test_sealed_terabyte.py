"""A sealed layer of 1 TiB is mounted, and read from, for what a small one costs.

Counted in bytes read and bytes held, never in seconds; the seconds are printed.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from cisfs.cli.main import main
from tests.mount.harness import layers
from tests.mount.harness.layers import Material, fresh
from tests.mount.harness.processes import Child
from tests.mount.harness.sealed import SealedLab, counted, lab_in
from tests.unit import sealed_terabyte
from tests.unit.sealed_terabyte import TIB, UNIT

pytestmark = [pytest.mark.fuse, pytest.mark.root]

MIB = 1 << 20
FILE = 4 * MIB
FRONT = 131_072  # header, key slots and reserved area


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Material]:
    """A layer whose image begins with a small file system; it takes half a GiB of disk."""
    base = tmp_path_factory.mktemp("material")
    made = Material(base / "tree", base / "image.erofs", base / "layer.cis", base / "key")
    made.tree.mkdir()
    (made.tree / "file").write_bytes(os.urandom(FILE))
    made.key.touch(0o600)
    made.key.write_bytes(os.urandom(32))
    layers.make_image(made.tree, made.image)
    content = made.image.read_bytes()
    content += bytes(-len(content) % UNIT)
    sealed_terabyte.build(made.layer, made.credential, content=content)
    yield made
    made.layer.unlink()


@pytest.fixture
def lab(tmp_path: Path, material: Material) -> Iterator[SealedLab]:
    with lab_in(tmp_path, material) as made:
        yield made


def peak_memory(pid: int) -> int:
    """The most resident memory that a process has had, in bytes."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def test_it_is_mounted_and_read(lab: SealedLab) -> None:
    assert lab.layer.stat().st_size > TIB
    begun, before = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    lab.mount("--workers", "1")
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    print(f"mounted in {time.monotonic() - begun:.2f} s, {seconds:.2f} s of them of a processor")
    (worker,) = lab.workers
    to_mount = counted(worker, "rchar")
    assert to_mount < 4 * MIB
    assert fresh(lab.mountpoint / "file") == (lab.tree / "file").read_bytes()
    to_read = counted(worker, "rchar") - to_mount
    assert FILE <= to_read < 2 * FILE
    print(f"read {to_mount} bytes to mount it, {to_read} for a file of {FILE}")
    for pid in (lab.supervisor, worker):
        print(f"peak memory of process {pid}: {peak_memory(pid) // 1024} KiB")
        assert peak_memory(pid) < 100 * MIB


@pytest.mark.parametrize("command", ["mount", "inspect"])
def test_what_the_command_itself_reads(lab: SealedLab, command: str) -> None:
    """Without what Python reads of itself: the command is run twice, the first time in vain."""
    every: dict[str, list[str | Path]] = {
        "mount": lab.mount_words("--workers", "1"),
        "inspect": ["inspect", lab.layer],
    }
    words = [str(word) for word in every[command]]

    def run() -> tuple[int, int]:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        read = 0
        for _ in range(2):
            before = counted(os.getpid(), "rchar")
            assert main(words) == 0
            read = counted(os.getpid(), "rchar") - before
            if command == "mount":
                assert main(["umount", str(lab.mountpoint)]) == 0
        return read, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    read, memory = Child(run).result()
    print(f"{command}: {read} bytes read, {memory // 1024} KiB at most")
    assert FRONT <= read < 2 * FRONT + MIB  # the mount table is of any length
    assert memory < 100 * MIB + peak_memory(os.getpid())  # forked from the tests' own process
