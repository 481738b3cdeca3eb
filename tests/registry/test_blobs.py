"""Reading parts of blobs, and noticing what is no such part."""

from __future__ import annotations

import pytest

from cisfs.errors import (
    NotFoundError,
    RangeIgnoredError,
    RegistryError,
    UnreachableError,
    WrongContentError,
)
from cisfs.registry.blobs import blob_size
from cisfs.registry.descriptor import Descriptor
from cisfs.registry.patience import Patience
from tests.registry.conftest import Open
from tests.registry.content import MIB, TYPE, blob, pushed_blob
from tests.registry.harness.faults import Answer, Fault, Rule
from tests.registry.harness.proxy import Proxy

GET = r"GET .*/blobs/sha256"


def test_sizes_and_parts(front: Proxy, opened: Open) -> None:
    repository = opened(front.name)
    descriptor, content = blob(300_000)
    assert blob_size(repository.session, descriptor.digest) is None
    assert not repository.has_blob(descriptor)
    repository.upload_bytes(descriptor, content)
    assert blob_size(repository.session, descriptor.digest) == 300_000
    for start, stop in ((0, 300_000), (0, 1), (299_999, 300_000), (1000, 200_000), (7, 7)):
        with repository.open_range(descriptor, start, stop) as pieces:
            assert b"".join(pieces) == content[start:stop]
    assert sum(s.sent for s in front.requests(GET)) == 300_000 + 1 + 1 + 199_000
    with pytest.raises(ValueError, match="of 300000"), repository.open_range(descriptor, 5, 4):
        pass
    assert repository.read_blob(descriptor, 300_000) == content
    with pytest.raises(WrongContentError, match="more than 299999"):
        repository.read_blob(descriptor, 299_999)


def test_connections_are_used_again(front: Proxy, opened: Open) -> None:
    repository = opened(front.name)
    descriptor, _ = pushed_blob(repository, 1000)
    for start in range(10):
        assert repository.has_blob(descriptor)
        with repository.open_range(descriptor, start) as pieces:
            assert sum(map(len, pieces)) == 1000 - start
    assert len(front.seen) >= 20
    assert front.connections <= 2  # the first finds out that there is no TLS


def test_a_blob_that_is_not_there(front: Proxy, opened: Open) -> None:
    repository = opened(front.name)
    descriptor, _ = blob(10)
    with pytest.raises(NotFoundError) as found, repository.open_range(descriptor):
        pass
    assert str(found.value).startswith(f"{repository.name}: blob {descriptor.digest[:19]}: ")
    assert found.value.exit_code == 22


def test_a_registry_that_ignores_ranges(front: Proxy, opened: Open) -> None:
    repository = opened(front.name)
    descriptor, content = pushed_blob(repository, 1000)
    front.rules = [Rule(GET, Fault(ignore_range=True))]
    with pytest.raises(RangeIgnoredError), repository.open_range(descriptor, 0, 999):
        pass
    with repository.open_range(descriptor) as pieces:
        assert b"".join(pieces) == content


OTHER_PART = [("Content-Range", "bytes 0-99/1000"), ("Content-Length", "100")]


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (Answer(206, OTHER_PART, bytes(100)), "another part"),
        (Answer(206, [("Content-Range", "bytes 100-199/1001")], bytes(100)), "another part"),
        (Answer(206, [("Content-Range", "bytes */1000")], bytes(100)), "which part"),
        (Answer(206, [], bytes(100)), "which part"),
        (Answer(206, [("Content-Range", "bytes 100-199/1000")], bytes(99)), "99 bytes instead"),
        (Answer(206, [("Content-Range", "bytes 100-199/*")], bytes(101)), "101 bytes instead"),
        (
            Answer(
                206,
                [("Content-Range", "bytes 100-199/1000"), ("Content-Encoding", "gzip")],
                bytes(100),
            ),
            "compresses",
        ),
        (Answer(416), "answered 416"),
        (Answer(204), "answered 204"),
    ],
)
def test_wrong_parts(front: Proxy, opened: Open, answer: Answer, words: str) -> None:
    repository = opened(front.name)
    descriptor, _ = pushed_blob(repository, 1000)
    front.rules = [Rule(GET, answer)]
    with pytest.raises(RegistryError, match=words), repository.open_range(descriptor, 100, 200):
        pass


@pytest.mark.parametrize("length", [None, "4611686018427387904"])
def test_an_endless_blob(front: Proxy, opened: Open, length: str | None) -> None:
    repository = opened(front.name)
    descriptor, _ = pushed_blob(repository, MIB)
    headers = [] if length is None else [("Content-Length", length)]
    front.rules = [Rule(GET, Answer(200, headers, bytes(65536), repeat=True))]
    with pytest.raises(WrongContentError), repository.open_range(descriptor) as pieces:
        for _ in pieces:
            pass
    with pytest.raises(RegistryError):
        repository.read_blob(descriptor, MIB)
    assert front.requests(GET)[0].sent < 8 * MIB


def test_a_body_that_ends_early(front: Proxy, opened: Open) -> None:
    repository = opened(front.name)
    descriptor, _ = pushed_blob(repository, MIB)
    for fault in (Fault(truncate_at=1000), Fault(cut_answer_at=1000)):
        front.rules = [Rule(GET, fault)]
        with pytest.raises(UnreachableError), repository.open_range(descriptor) as pieces:
            for _ in pieces:
                pass
    front.rules = [Rule(GET, Fault(truncate_at=1000, without_headers=("content-length",)))]
    with pytest.raises(UnreachableError), repository.open_range(descriptor) as pieces:
        for _ in pieces:
            pass


def test_other_bytes_in_a_small_blob(front: Proxy, opened: Open) -> None:
    repository = opened(front.name)
    descriptor, _ = pushed_blob(repository, 1000)
    front.rules = [Rule(GET, Fault(alter=lambda piece: bytes(len(piece))))]
    with pytest.raises(WrongContentError, match="other bytes"):
        repository.read_blob(descriptor, 1000)


def test_a_size_that_is_none(front: Proxy, opened: Open) -> None:
    repository = opened(front.name)
    descriptor, _ = pushed_blob(repository, 1000)
    for value in ("", "-1", "1e3", str(1 << 60)):
        front.rules = [Rule("HEAD", Answer(200, [("Content-Length", value)]))]
        with pytest.raises(RegistryError):
            blob_size(repository.session, descriptor.digest)


def test_a_silent_registry(front: Proxy, opened: Open) -> None:
    impatient = Patience(connect=5, idle=0.3, attempts=2, longest_wait=0.1)
    repository = opened(front.name, patience=impatient)
    descriptor = Descriptor(TYPE, f"sha256:{'0' * 64}", 5)
    front.rules = [Rule("", Fault(silent=True))]
    with pytest.raises(UnreachableError, match="no answer in time"):
        blob_size(repository.session, descriptor.digest)
    assert len(front.requests("HEAD")) == 2


def test_a_registry_that_creeps(front: Proxy, opened: Open) -> None:
    """A few bytes now and then keep no one for ever."""
    impatient = Patience(idle=0.5, slowest=10_000_000, attempts=1)
    repository = opened(front.name, patience=impatient)
    descriptor, _ = pushed_blob(repository, 4 * MIB)
    front.limit(1_000_000)
    with (
        pytest.raises(UnreachableError, match=f"blob {descriptor.digest[:19]}: too slow"),
        repository.open_range(descriptor) as pieces,
    ):
        for _ in pieces:
            pass
    assert front.sent < 2 * MIB


def test_nobody_listens(front: Proxy, opened: Open) -> None:
    repository = opened(front.name)
    front.stop()
    try:
        with pytest.raises(UnreachableError) as found:
            blob_size(repository.session, f"sha256:{'0' * 64}")
    finally:
        front.resume()
    assert front.name in str(found.value)
    assert blob_size(repository.session, f"sha256:{'0' * 64}") is None
