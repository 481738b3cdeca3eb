"""Many files, and a kernel that forgets everything again and again while they are used.

The server once died in such a sequence.  Its pid must be the same at the end as at the beginning.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.mount.harness.lab import Lab
from tests.mount.harness.linux import drop_caches
from tests.mount.harness.processes import files_and_directories, wait_until
from tests.mount.harness.trees import assert_same, snapshot

pytestmark = [pytest.mark.fuse, pytest.mark.root]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some 1,600 files of many sizes, in 60 directories, with links and long names."""
    root, chance = tmp_path_factory.mktemp("source") / "tree", random.Random(11)
    for number in range(60):
        directory = root / f"{number % 7}" / f"dir{number}"
        directory.mkdir(parents=True)
        for file in range(25):
            size = chance.choice([0, 10, 900, 5000, 40_000, 90_000])
            (directory / f"file{file}").write_bytes(chance.randbytes(size))
        (directory / ("n" * 200)).symlink_to("file1")
        os.link(directory / "file2", directory / "hard")
    return root


@contextlib.contextmanager
def forgetting(what: int) -> Iterator[None]:
    """Meanwhile, let the kernel drop its caches all the time."""
    over = threading.Event()

    def drop() -> None:
        while not over.wait(0.05):
            drop_caches(what, sync=False)

    thread = threading.Thread(target=drop)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(60)


def run(*words: str | Path) -> None:
    subprocess.run(words, check=True, timeout=120, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("what", [2, 3])
def test_a_tree_is_copied_read_and_removed_while_caches_are_dropped(
    lab: Lab, source: Path, what: int
) -> None:
    root = lab.mount()
    server, before = lab.server, lab.open_files()
    with forgetting(what):
        run("cp", "-a", source, root / "one")
        run(
            "dd",
            "if=/dev/zero",
            f"of={root}/big",
            "bs=1M",
            "count=128",
            "conv=fsync",
            "status=none",
        )
        run("cat", root / "big")
        for _ in range(2):
            run("tar", "-cf", "/dev/null", "--directory", root, "one")
        run("find", root, "-ls")
        run("cp", "-a", root / "one", root / "two")
        run("rm", "-rf", root / "one")
    assert lab.server == server
    assert_same(snapshot(root / "two", times=True), snapshot(source, times=True))
    run("rm", "-rf", root / "two", root / "big")
    assert os.listdir(root) == []
    lab.judge_descriptors(before)


def test_clients_that_are_interrupted_and_killed(lab: Lab, source: Path) -> None:
    root, chance = lab.mount(), random.Random(5)
    server = lab.server
    run("cp", "-a", source, root / "tree")
    for round_number in range(10):
        clients = [
            subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            for words in (
                ["tar", "-cf", "/dev/null", "--directory", str(root), "tree"],
                ["cp", "-a", str(source), str(root / f"copy{round_number}")],
                ["dd", "if=/dev/zero", f"of={root}/big", "bs=1M", "count=200"],
                ["find", str(root), "-ls"],
            )
        ]
        with contextlib.suppress(subprocess.TimeoutExpired):
            clients[1].wait(chance.uniform(0.02, 0.3))
        for client in clients:
            client.send_signal(chance.choice([signal.SIGINT, signal.SIGKILL]))
        for client in clients:
            client.wait(60)
        drop_caches(2)
        run("rm", "-rf", root / f"copy{round_number}")
    assert lab.server == server
    assert_same(snapshot(root / "tree", times=True), snapshot(source, times=True))


def test_parallel_writers_readers_and_removers(lab: Lab, source: Path) -> None:
    root = lab.mount()
    server = lab.server
    with forgetting(3):
        clients = [
            subprocess.Popen(
                [
                    "sh",
                    "-ec",
                    'cp -a "$1" "$2"; tar -cf /dev/null --directory "$2" .; rm -rf "$2"',
                    "sh",
                    str(source),
                    f"{root}/t{number}",
                ]
            )
            for number in range(4)
        ]
        assert [client.wait(120) for client in clients] == [0] * 4
    assert lab.server == server
    assert os.listdir(root) == []
    drop_caches(3)
    wait_until(
        lambda: files_and_directories(server)[1] < 20, "removed directories are let go of", 20
    )
