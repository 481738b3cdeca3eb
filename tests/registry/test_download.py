"""Whole blobs into files, whatever happens on the way."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cisfs.errors import UnreachableError, WrongContentError
from cisfs.registry.descriptor import Descriptor
from tests.registry.conftest import Open
from tests.registry.content import MIB, pushed_blob
from tests.registry.harness.faults import Fault, RandomCuts, Rule
from tests.registry.harness.proxy import Proxy

GET = r"GET .*/blobs/sha256"


class File:
    """A file on disk, open."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path.open("w+b", buffering=0)
        self.fd = self.file.fileno()
        self.reported: list[int] = []

    @property
    def content(self) -> bytes:
        return self.path.read_bytes()


@pytest.fixture
def file(tmp_path: Path) -> Iterator[File]:
    made = File(tmp_path / "file")
    yield made
    made.file.close()


def test_whole(front: Proxy, opened: Open, file: File) -> None:
    repository = opened(front.name)
    descriptor, content = pushed_blob(repository, 3 * MIB + 1)
    repository.download(descriptor, file.fd, file.reported.append)
    assert file.content == content
    assert sum(file.reported) == 3 * MIB + 1
    front.forget()
    repository.download(descriptor, file.fd)
    assert front.seen == []  # it was there


@pytest.mark.parametrize("there", [0, 1, 70_000, MIB])
def test_a_part_of_a_file_that_has_its_length(
    front: Proxy, opened: Open, file: File, there: int
) -> None:
    """What was never written is not read, and what was is not sent again but for its end."""
    repository = opened(front.name)
    descriptor, content = pushed_blob(repository, 2 * MIB)
    file.file.truncate(6 * MIB)
    os.pwrite(file.fd, content[:there], MIB)
    front.forget()
    repository.download_part(descriptor, file.fd, MIB, file.reported.append)
    assert file.content == bytes(MIB) + content + bytes(3 * MIB)
    assert min(file.reported) > 0
    assert front.sent < 2 * MIB - there + 80_000


def test_empty(front: Proxy, opened: Open, file: File) -> None:
    repository = opened(front.name)
    descriptor, _ = pushed_blob(repository, 0)
    repository.download(descriptor, file.fd)
    assert file.content == b""


def test_cut_at_fifty_random_places(front: Proxy, opened: Open, file: File) -> None:
    """All but what a cut took with it is sent once."""
    repository = opened(front.name)
    descriptor, content = pushed_blob(repository, 16 * MIB)
    front.forget()
    front.cuts = RandomCuts(seed=2026, count=50, span=200_000)
    repository.download(descriptor, file.fd, file.reported.append)
    assert front.cuts.left == 0
    assert file.content == content
    assert sum(file.reported) == 16 * MIB
    assert len(front.requests(GET)) >= 51
    starts = [s.header("range") for s in front.seen]
    assert starts[0] is None
    assert None not in starts[1:]


def test_what_is_there_already_is_gone_on_with(front: Proxy, opened: Open, file: File) -> None:
    repository = opened(front.name)
    descriptor, content = pushed_blob(repository, MIB)
    file.file.write(content[:1_000_000])
    front.forget()
    repository.download(descriptor, file.fd, file.reported.append)
    assert file.content == content
    assert front.sent == MIB - 1_000_000
    assert sum(file.reported) == MIB


@pytest.mark.parametrize("size", [1000, MIB, 2 * MIB])
def test_something_else_is_there(front: Proxy, opened: Open, file: File, size: int) -> None:
    repository = opened(front.name)
    descriptor, content = pushed_blob(repository, MIB)
    file.file.write(bytes(size))
    repository.download(descriptor, file.fd, file.reported.append)
    assert file.content == content
    assert sum(file.reported) == MIB


def test_other_bytes(front: Proxy, opened: Open, file: File) -> None:
    repository = opened(front.name)
    descriptor, _ = pushed_blob(repository, MIB)
    front.rules = [Rule(GET, Fault(alter=lambda piece: piece[:-1] + b"\0"))]
    with pytest.raises(WrongContentError, match="other bytes than this digest names"):
        repository.download(descriptor, file.fd, file.reported.append)
    assert file.content == b""
    assert sum(file.reported) == 0


def test_ranges_are_ignored(front: Proxy, opened: Open, file: File) -> None:
    """After a cut it all comes again, and what is there is not written anew."""
    repository = opened(front.name)
    descriptor, content = pushed_blob(repository, MIB)
    front.rules = [
        Rule(GET, Fault(cut_answer_at=500_000), times=1),
        Rule(GET, Fault(ignore_range=True)),
    ]
    repository.download(descriptor, file.fd, file.reported.append)
    assert file.content == content
    assert sum(file.reported) == MIB
    assert min(file.reported) > 0


def test_ranges_are_ignored_now_and_then(front: Proxy, opened: Open, file: File) -> None:
    repository = opened(front.name)
    descriptor, content = pushed_blob(repository, MIB)
    front.rules = [
        Rule(GET, Fault(cut_answer_at=500_000), times=1),
        Rule(GET, Fault(ignore_range=True), times=1),
        Rule(GET, Fault(cut_answer_at=800_000), times=1),
    ]
    repository.download(descriptor, file.fd)
    assert file.content == content


def test_patience_comes_to_its_end(front: Proxy, opened: Open, file: File) -> None:
    """Attempts that bring next to nothing are counted; what came stays, for the next time."""
    repository = opened(front.name)
    descriptor, content = pushed_blob(repository, MIB)
    front.forget()
    front.rules = [Rule(GET, Fault(cut_answer_at=1000))]
    with pytest.raises(UnreachableError, match=descriptor.digest[:19]):
        repository.download(descriptor, file.fd)
    assert len(front.requests(GET)) == 4
    assert content.startswith(file.content)
    front.rules = []
    repository.download(descriptor, file.fd)
    assert file.content == content


def test_the_descriptor_is_too_small(front: Proxy, opened: Open, file: File) -> None:
    repository = opened(front.name)
    descriptor, _ = pushed_blob(repository, MIB)
    smaller = Descriptor(descriptor.media_type, descriptor.digest, MIB - 1)
    with pytest.raises(WrongContentError, match=f"announces {MIB} bytes"):
        repository.download(smaller, file.fd)
