"""Blobs into a repository, whatever happens on the way."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cisfs.errors import RegistryError, UnreachableError, WrongContentError
from cisfs.registry.source import BytesSource, FileSource
from tests.registry.conftest import Open
from tests.registry.content import MIB, blob, pushed_blob
from tests.registry.harness.debian import DebianRegistry
from tests.registry.harness.faults import Answer, Fault, RandomCuts, Rule
from tests.registry.harness.modern import ModernRegistry
from tests.registry.harness.proxy import Proxy

CHUNK = MIB


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 5 * CHUNK + 7])
def test_sizes(
    front: Proxy, opened: Open, debian: DebianRegistry, tmp_path: Path, size: int
) -> None:
    repository = opened(front.name)
    descriptor, content = blob(size, seed=size)
    (tmp_path / "file").write_bytes(content)
    reported: list[int] = []
    with (tmp_path / "file").open("rb") as file:
        source = FileSource(file.fileno())
        assert repository.upload(descriptor, source, chunk=CHUNK, report=reported.append)
        assert sum(reported) == size
        assert debian.blob_path(descriptor.digest).read_bytes() == content
        assert len(front.requests("PATCH")) == (0 if size <= CHUNK else -(-size // CHUNK))
        assert front.received == size
        front.forget()
        assert not repository.upload(descriptor, source, report=reported.append)
    assert [s.method for s in front.seen] == ["HEAD"]
    assert sum(reported) == 2 * size


def test_mounted_from_another_repository(front: Proxy, opened: Open) -> None:
    descriptor, content = pushed_blob(opened(front.name, "public/base"), 1000, seed=99)
    front.forget()
    one, two = opened(front.name, "tests/mount-one"), opened(front.name, "tests/mount-two")
    assert not one.upload(descriptor, BytesSource(content), mount_from="public/base")
    assert two.mount(descriptor, "public/base")
    assert front.received == 0
    assert one.read_blob(descriptor, 1000) == two.read_blob(descriptor, 1000) == content


def test_what_cannot_be_mounted_is_sent(front: Proxy, opened: Open) -> None:
    descriptor, content = blob(1000, seed=98)
    repository = opened(front.name)
    assert not repository.mount(descriptor, "public/nothing")
    assert repository.upload(descriptor, BytesSource(content), mount_from="public/nothing")
    assert front.received == 1000


def test_cut_at_fifty_random_places(modern_front: Proxy, opened: Open) -> None:
    """The registry is asked how far it came: nothing is sent twice but what it lost."""
    repository = opened(modern_front.name)
    descriptor, content = blob(16 * MIB)
    reported: list[int] = []
    modern_front.cuts = RandomCuts(seed=2026, count=50, span=200_000)
    assert repository.upload(descriptor, BytesSource(content), chunk=CHUNK, report=reported.append)
    assert modern_front.cuts.left == 0
    assert sum(reported) == 16 * MIB
    assert repository.read_blob(descriptor, 16 * MIB) == content
    assert len(modern_front.requests(r"GET .*/uploads/")) >= 40
    assert modern_front.received <= 16 * MIB + CHUNK


def test_debians_forgets_an_upload_that_was_cut(front: Proxy, opened: Open) -> None:
    """It is begun anew.  If this fails, it remembers now, and who splits blobs need not."""
    repository = opened(front.name)
    descriptor, content = blob(4 * CHUNK, seed=97)
    front.rules = [Rule("PATCH", Fault(), times=2), Rule("PATCH", Fault(cut_request_at=9), times=1)]
    assert repository.upload(descriptor, BytesSource(content), chunk=CHUNK)
    assert repository.read_blob(descriptor, 4 * CHUNK) == content
    assert len(front.requests("POST")) == 2
    assert front.received == 6 * CHUNK + 9


@pytest.mark.parametrize("size", [1000, 3 * CHUNK])
@pytest.mark.parametrize("target", ["POST", "PATCH", "PUT"])
def test_an_answer_gets_lost(front: Proxy, opened: Open, target: str, size: int) -> None:
    repository = opened(front.name)
    descriptor, content = blob(size, seed=hash(target) % 1000 + size)
    front.rules = [Rule(target, Fault(swallow_answer=True), times=1)]
    assert repository.upload(descriptor, BytesSource(content), chunk=CHUNK)
    assert repository.read_blob(descriptor, size) == content
    if target == "PUT":
        assert front.received == size


@pytest.mark.parametrize("status", [429, 500, 503])
@pytest.mark.parametrize("target", ["HEAD", "POST", "PATCH", "PUT"])
def test_not_now(modern_front: Proxy, opened: Open, target: str, status: int) -> None:
    repository = opened(modern_front.name)
    descriptor, content = blob(3 * CHUNK)
    answer = Answer(status, [("Retry-After", "0")])
    modern_front.rules = [Rule(target, answer, times=2)]
    assert repository.upload(descriptor, BytesSource(content), chunk=CHUNK)
    assert repository.read_blob(descriptor, 3 * CHUNK) == content


def test_the_registry_loses_an_upload(
    modern: ModernRegistry, modern_front: Proxy, opened: Open
) -> None:
    repository = opened(modern_front.name)
    descriptor, content = blob(3 * CHUNK)

    def forget(_: object) -> Fault:
        modern.uploads.clear()
        return Fault()

    modern_front.rules = [Rule("PATCH", Fault(), times=1), Rule("PATCH", forget, times=1)]
    assert repository.upload(descriptor, BytesSource(content), chunk=CHUNK)
    assert len(modern_front.requests("POST")) == 2
    assert repository.read_blob(descriptor, 3 * CHUNK) == content


def test_the_registry_loses_part_of_an_upload(
    modern: ModernRegistry, modern_front: Proxy, opened: Open
) -> None:
    """A registry that says less than it was sent is believed."""
    repository = opened(modern_front.name)
    descriptor, content = blob(3 * CHUNK)

    def lose(_: object) -> Fault:
        (upload,) = modern.uploads.values()
        del upload[CHUNK + 5 :]
        return Fault(cut_request_at=0)

    reported: list[int] = []
    modern_front.rules = [Rule("PATCH", Fault(), times=2), Rule("PATCH", lose, times=1)]
    assert repository.upload(descriptor, BytesSource(content), chunk=CHUNK, report=reported.append)
    assert sum(reported) == 3 * CHUNK
    assert repository.read_blob(descriptor, 3 * CHUNK) == content


def test_the_registry_claims_too_much(modern_front: Proxy, opened: Open) -> None:
    repository = opened(modern_front.name)
    descriptor, content = blob(3 * CHUNK)
    modern_front.rules = [Rule("PATCH", Fault(headers=[("Range", f"0-{2 * CHUNK}")]))]
    with pytest.raises(RegistryError, match="claims"):
        repository.upload(descriptor, BytesSource(content), chunk=CHUNK)


def test_the_registry_is_due_another_part(modern_front: Proxy, opened: Open) -> None:
    """It was still busy with what came before the connection broke: it is asked once more."""
    repository = opened(modern_front.name)
    descriptor, content = blob(3 * CHUNK)
    modern_front.rules = [Rule("PATCH", Fault(), times=1), Rule("PATCH", Answer(416), times=1)]
    assert repository.upload(descriptor, BytesSource(content), chunk=CHUNK)
    assert [s.status for s in modern_front.requests("PATCH")] == [202, 416, 202, 202]
    assert len(modern_front.requests("POST")) == 1
    assert repository.read_blob(descriptor, 3 * CHUNK) == content


def test_a_registry_with_a_least_chunk(
    modern: ModernRegistry, modern_front: Proxy, opened: Open
) -> None:
    modern.least_chunk = 2 * CHUNK
    descriptor, content = blob(3 * CHUNK)
    assert opened(modern_front.name).upload(descriptor, BytesSource(content), chunk=CHUNK)
    assert [s.received for s in modern_front.requests("PATCH")] == [2 * CHUNK, CHUNK]


def test_a_source_with_other_bytes(front: Proxy, opened: Open) -> None:
    repository = opened(front.name)
    descriptor, content = blob(3 * CHUNK, seed=96)
    with pytest.raises(WrongContentError, match="other bytes"):
        repository.upload(descriptor, BytesSource(content[:-1] + b"\0"), chunk=CHUNK)
    assert not repository.has_blob(descriptor)
    with pytest.raises(ValueError, match="a source of 9 bytes"):
        repository.upload(descriptor, BytesSource(bytes(9)))


def test_a_file_that_shrinks(front: Proxy, opened: Open, tmp_path: Path) -> None:
    repository = opened(front.name)
    descriptor, content = blob(3 * CHUNK, seed=95)
    (tmp_path / "file").write_bytes(content)
    with (tmp_path / "file").open("r+b") as file:
        source = FileSource(file.fileno())
        os.ftruncate(file.fileno(), CHUNK + 1)
        with pytest.raises(ValueError, match=f"ends at {CHUNK + 1}"):
            repository.upload(descriptor, source, chunk=CHUNK)
    assert not repository.has_blob(descriptor)


def test_patience_comes_to_its_end(front: Proxy, opened: Open) -> None:
    repository = opened(front.name)
    descriptor, content = blob(3 * CHUNK, seed=94)
    front.rules = [Rule("PATCH", Fault(cut_request_at=10))]
    with pytest.raises(RegistryError) as found:
        repository.upload(descriptor, BytesSource(content), chunk=CHUNK)
    assert descriptor.digest[:19] in str(found.value)
    assert len(front.requests("POST")) == 4


def test_the_registry_goes_away(modern_front: Proxy, opened: Open) -> None:
    repository = opened(modern_front.name)
    descriptor, content = blob(3 * CHUNK)
    modern_front.rules = [
        Rule("PATCH", Fault(), times=1),
        Rule("", Answer(503)),
    ]
    with pytest.raises(UnreachableError, match="503"):
        repository.upload(descriptor, BytesSource(content), chunk=CHUNK)


def test_no_place_to_go_on(front: Proxy, opened: Open) -> None:
    repository = opened(front.name)
    descriptor, content = blob(1000, seed=93)
    front.rules = [Rule("POST", Fault(without_headers=("location",)))]
    with pytest.raises(RegistryError, match="where to go on"):
        repository.upload(descriptor, BytesSource(content))
