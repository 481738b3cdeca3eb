"""What refers to a manifest, with the referrers API and with the tag that stands in for it."""

from __future__ import annotations

import json
import threading

import pytest

from cisfs.errors import RegistryError
from cisfs.registry.descriptor import EMPTY, Descriptor
from cisfs.registry.documents import Json
from cisfs.registry.manifest import OCI_INDEX, Manifest, build_index
from cisfs.registry.referrers import fallback_tag
from cisfs.registry.repository import Repository
from cisfs.registry.session import Ask
from tests.registry.conftest import Open
from tests.registry.content import pushed_artifact
from tests.registry.harness.debian import DebianRegistry
from tests.registry.harness.faults import Answer, Fault, Rule, Seen
from tests.registry.harness.modern import ModernRegistry
from tests.registry.harness.proxy import Proxy, proxy

KIND, OTHER = "application/vnd.tests.slots+json", "application/vnd.tests.signature"


def subject_in(repository: Repository) -> Descriptor:
    subject = pushed_artifact(repository, "application/vnd.tests.image")
    repository.put_manifest(subject, "image")
    return subject.descriptor


def digests(found: list[Descriptor]) -> set[str]:
    return {each.digest for each in found}


@pytest.fixture(params=["debian", "modern"])
def registry(
    request: pytest.FixtureRequest, debian: DebianRegistry, modern: ModernRegistry
) -> DebianRegistry | ModernRegistry:
    modern.page = 2
    return debian if request.param == "debian" else modern


def test_put_list(registry: DebianRegistry | ModernRegistry, opened: Open) -> None:
    repository = opened(registry.name)
    subject = subject_in(repository)
    assert repository.referrers(subject.digest) == []
    slots = [pushed_artifact(repository, KIND, subject, str(n)) for n in range(3)]
    signature = pushed_artifact(repository, OTHER, subject)
    for each in (*slots, signature):
        repository.put_referrer(each)
        repository.put_referrer(each)  # once more changes nothing
    everything = digests([each.descriptor for each in (*slots, signature)])
    assert digests(repository.referrers(subject.digest)) == everything
    assert len(repository.referrers(subject.digest)) == 4
    assert digests(repository.referrers(subject.digest, OTHER)) == {signature.descriptor.digest}


def test_the_tag_is_used_only_without_the_api(modern: ModernRegistry, opened: Open) -> None:
    repository = opened(modern.name)
    subject = subject_in(repository)
    repository.put_referrer(pushed_artifact(repository, KIND, subject))
    assert repository.digest_at(fallback_tag(subject.digest)) is None


def test_entries_of_others_stay_as_they_are(debian: DebianRegistry, opened: Open) -> None:
    """With members that we know nothing of."""
    repository = opened(debian.name)
    subject = subject_in(repository)
    other = pushed_artifact(repository, OTHER, subject)
    repository.put_manifest(other)
    entry: dict[str, Json] = {
        **other.descriptor.as_json(),
        "data": "e30=",
        "x-of-others": {"a": [1, None]},
    }
    tag = fallback_tag(subject.digest)
    repository.put_manifest(build_index([entry], annotations={"of": "others"}), tag)
    repository.put_referrer(pushed_artifact(repository, KIND, subject))
    index = json.loads(repository.manifest(tag).body)
    assert index["manifests"][0] == entry
    assert index["annotations"] == {"of": "others"}
    assert len(index["manifests"]) == 2


def test_many_at_once(debian: DebianRegistry, opened: Open) -> None:
    """Nobody's entry is lost, though there is no lock."""
    subject = subject_in(opened(debian.name))
    repositories = [opened(debian.name) for _ in range(6)]
    artifacts = [
        pushed_artifact(repository, KIND, subject, f"number {number}")
        for number, repository in enumerate(repositories)
    ]
    failed: list[BaseException] = []

    def put(repository: Repository, artifact: Manifest) -> None:
        try:
            repository.put_referrer(artifact)
        except BaseException as error:  # noqa: BLE001 - said below
            failed.append(error)

    threads = [
        threading.Thread(target=put, args=pair)
        for pair in zip(repositories, artifacts, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    expected = digests([each.descriptor for each in artifacts])
    assert digests(repositories[0].referrers(subject.digest)) == expected


def test_somebody_writes_between_our_read_and_write(debian: DebianRegistry, opened: Open) -> None:
    other = opened(debian.name)
    subject = subject_in(other)
    theirs = pushed_artifact(other, OTHER, subject)
    other.put_manifest(theirs)
    tag = fallback_tag(subject.digest)

    def interfere(_: object) -> Fault:
        other.put_manifest(build_index([theirs.descriptor.as_json()]), tag)
        return Fault()

    with proxy((debian.host, debian.port)) as front:
        # The look before the write, and the write itself: only a second look helps there.
        for target in (f"HEAD .*/{tag}", f"GET .*/{tag}"):
            front.rules = [Rule(target, interfere, times=1)]
            ours = opened(front.name)
            mine = pushed_artifact(ours, KIND, subject, target)
            ours.put_referrer(mine)
            assert front.rules[0].used == 1
            found = digests(other.referrers(subject.digest))
            assert {mine.descriptor.digest, theirs.descriptor.digest} <= found


def test_overwritten_after_our_write(debian: DebianRegistry, opened: Open) -> None:
    """By one that read before it, and wrote after we had looked at it once."""
    other = opened(debian.name)
    subject = subject_in(other)
    theirs = pushed_artifact(other, OTHER, subject)
    other.put_manifest(theirs)
    tag = fallback_tag(subject.digest)
    looks: list[Seen] = []

    with proxy((debian.host, debian.port)) as front:

        def look(seen: Seen) -> Fault:
            if front.requests(f"PUT .*/{tag}"):
                looks.append(seen)
            if len(looks) == 2:
                other.put_manifest(build_index([theirs.descriptor.as_json()]), tag)
            return Fault()

        front.rules = [Rule(f"GET .*/{tag}", look)]
        ours = opened(front.name)
        mine = pushed_artifact(ours, KIND, subject)
        ours.put_referrer(mine)
        assert len(front.requests(f"PUT .*/{tag}")) == 2
    expected = {mine.descriptor.digest, theirs.descriptor.digest}
    assert digests(other.referrers(subject.digest)) == expected


def test_an_entry_whose_manifest_is_gone(debian: DebianRegistry, opened: Open) -> None:
    """Debian's takes no index with one: it is left out."""
    repository = opened(debian.name)
    subject = subject_in(repository)
    dead = pushed_artifact(repository, OTHER, subject)
    alive = pushed_artifact(repository, OTHER, subject, "alive")
    repository.put_referrer(dead)
    repository.put_referrer(alive)
    path = f"manifests/{dead.descriptor.digest}"
    repository.session.fetch(Ask("DELETE", path, "a manifest", (202,)))
    mine = pushed_artifact(repository, KIND, subject)
    repository.put_referrer(mine)
    expected = {mine.descriptor.digest, alive.descriptor.digest}
    assert digests(repository.referrers(subject.digest)) == expected


def test_the_tag_is_no_index(debian: DebianRegistry, opened: Open) -> None:
    repository = opened(debian.name)
    subject = subject_in(repository)
    mine = pushed_artifact(repository, KIND, subject)
    repository.put_manifest(mine, fallback_tag(subject.digest))
    with pytest.raises(RegistryError, match="no index of referrers"):
        repository.referrers(subject.digest)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b'{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json"}',
        json.dumps(
            {"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [EMPTY.as_json()] * 5000}
        ).encode(),
    ],
)
def test_a_list_that_is_none(modern_front: Proxy, opened: Open, body: bytes) -> None:
    repository = opened(modern_front.name)
    modern_front.rules = [Rule("referrers", Answer(200, [("Content-Type", OCI_INDEX)], body))]
    with pytest.raises(RegistryError):
        repository.referrers(f"sha256:{'0' * 64}")


def test_a_list_without_end(modern_front: Proxy, opened: Open) -> None:
    entries = [{**EMPTY.as_json(), "digest": f"sha256:{at:064x}"} for at in range(1000)]
    body = build_index(entries).body
    headers = [("Content-Type", OCI_INDEX), ("Link", '</v2/x/referrers/again>; rel="next"')]
    modern_front.rules = [Rule("referrers", Answer(200, headers, body))]
    with pytest.raises(RegistryError, match="too many referrers"):
        opened(modern_front.name).referrers(f"sha256:{'0' * 64}")


def test_what_has_no_subject(debian: DebianRegistry, opened: Open) -> None:
    repository = opened(debian.name)
    with pytest.raises(ValueError, match="subject"):
        repository.put_referrer(pushed_artifact(repository, KIND))
