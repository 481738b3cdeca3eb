"""Several blobs at a time."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from cisfs.errors import NotFoundError
from cisfs.registry.descriptor import Descriptor
from cisfs.registry.download import Report
from cisfs.registry.source import BytesSource, FileSource, PartSource
from cisfs.registry.transfer import Job, transfer
from tests.registry.conftest import Open
from tests.registry.content import MIB, TYPE, blob
from tests.registry.harness.faults import RandomCuts
from tests.registry.harness.proxy import Proxy


def test_there_and_back(modern_front: Proxy, opened: Open, tmp_path: Path) -> None:
    """Through a line that breaks, with one account of all."""
    repository = opened(modern_front.name)
    blobs = [blob(size, seed=size) for size in (3 * MIB, 2 * MIB, 700_000, 1, 0)]
    total = sum(descriptor.size for descriptor, _ in blobs)
    told: list[tuple[int, int]] = []

    def up(number: int) -> Job:
        descriptor, content = blobs[number]
        source = BytesSource(content)
        return Job(descriptor.size, lambda r: repository.upload(descriptor, source, report=r))

    def down(number: int) -> Job:
        descriptor, _ = blobs[number]

        def run(report: Report) -> None:
            with (tmp_path / str(number)).open("w+b") as file:
                repository.download(descriptor, file.fileno(), report)

        return Job(descriptor.size, run)

    for direction in (up, down):
        modern_front.cuts = RandomCuts(seed=5, count=5, span=500_000)
        transfer([direction(n) for n in range(5)], lambda *now: told.append(now), workers=3)
        assert told[-1] == (total, total)
    for number, (_, content) in enumerate(blobs):
        assert (tmp_path / str(number)).read_bytes() == content


PART = MIB


def test_one_file_in_parts(front: Proxy, opened: Open, tmp_path: Path) -> None:
    """Where the registry forgets uploads that were cut, no more than a part is sent again."""
    repository = opened(front.name)
    _, content = blob(8 * PART + 5, seed=31)
    (tmp_path / "from").write_bytes(content)
    offsets = range(0, len(content), PART)
    parts = [(at, Descriptor.of(content[at : at + PART], TYPE)) for at in offsets]

    with (tmp_path / "from").open("rb") as file:
        whole = FileSource(file.fileno())

        def up(at: int, part: Descriptor) -> Job:
            source = PartSource(whole, at, part.size)
            return Job(part.size, lambda r: repository.upload(part, source, report=r))

        front.cuts = RandomCuts(seed=7, count=6, span=PART)
        transfer([up(*each) for each in parts])
    assert front.cuts.left == 0
    assert front.received <= len(content) + 6 * PART

    (tmp_path / "to").write_bytes(b"x" * (len(content) + 3))  # others' bytes after ours
    with (tmp_path / "to").open("r+b") as to:

        def down(at: int, part: Descriptor) -> Job:
            return Job(part.size, lambda r: repository.download_part(part, to.fileno(), at, r))

        told: list[int] = []
        front.cuts = RandomCuts(seed=8, count=6, span=PART)
        transfer([down(*each) for each in parts], lambda done, _: told.append(done))
        assert told[-1] == len(content)
        assert (tmp_path / "to").read_bytes() == content + b"xxx"

        front.forget()
        with (tmp_path / "to").open("r+b") as spoiling:
            spoiling.seek(3 * PART + 100)
            spoiling.write(b"spoiled")
        transfer([down(*each) for each in parts])
        assert (tmp_path / "to").read_bytes() == content + b"xxx"
        assert front.sent == PART  # all others were there


def test_parts_of_a_source() -> None:
    part = PartSource(BytesSource(b"0123456789"), 3, 4)
    assert part.size == 4
    assert part.read(0, 100) == b"3456"
    assert part.read(2, 1) == b"5"
    assert part.read(4, 5) == b""
    for offset, size in ((-1, 2), (9, 2), (0, 11), (5, -1)):
        with pytest.raises(ValueError, match="of 10"):
            PartSource(BytesSource(b"0123456789"), offset, size)


def test_they_run_at_the_same_time() -> None:
    meeting = threading.Barrier(3, timeout=30)
    transfer([Job(0, lambda _: meeting.wait())] * 3, workers=3)
    transfer([])


def test_the_first_error_ends_the_others() -> None:
    started = threading.Event()
    ended: list[bool] = []

    def endless(report: Report) -> None:
        started.set()
        try:
            while True:
                report(1)
        finally:
            ended.append(True)

    def failing(_: Report) -> None:
        started.wait()
        raise NotFoundError("gone")

    with pytest.raises(NotFoundError, match="gone"):
        transfer([Job(5, endless), Job(1, failing), Job(0, endless)], workers=2)
    assert ended == [True]


def test_an_interrupt_ends_all() -> None:
    def interrupt(done: int, _: int) -> None:
        if done == 5:
            raise KeyboardInterrupt

    def counting(report: Report) -> None:
        while True:
            report(1)

    with pytest.raises(KeyboardInterrupt):
        transfer([Job(10, counting)] * 2, interrupt, workers=2)
