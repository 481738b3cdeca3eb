"""What refers to a manifest: by the referrers API, or the tag that stands in for it.

OCI distribution-spec 1.1, "Listing Referrers" and "Referrers Tag Schema".  That tag's index has
everybody's entries and no lock: it is read, changed, compared and written, then looked at again
after others had time to overwrite it, until it is right.  Does not know what the referrers are for.
One thread for each subject.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from urllib.parse import quote

from cisfs.errors import FormatError, LoginError, NotFoundError, RegistryError, UnreachableError
from cisfs.registry import manifests
from cisfs.registry.descriptor import Descriptor
from cisfs.registry.documents import Json
from cisfs.registry.manifest import (
    MAX_MANIFESTS,
    Index,
    Manifest,
    build_index,
    entries,
    parse,
)
from cisfs.registry.session import Session

_SETTLED = 0.2  # seconds within which one that read before us has written
_ATTEMPTS = 12

Entry = Mapping[str, Json]


def referrers(session: Session, subject: str, artifact_type: str | None = None) -> list[Descriptor]:
    """Return what refers to the manifest with the digest `subject`, of one type if that is given.

    Nobody vouches for the list: anyone who may push can be on it, and what is on it may be absent.
    Raises RegistryError, and what `Session.fetch` does.
    """
    found = _by_api(session, subject, artifact_type)
    if found is None:
        index = _fallback(session, subject)
        found = [] if index is None else list(index.manifests)
    return [each for each in found if artifact_type in (None, each.artifact_type)]


def put_referrer(session: Session, manifest: Manifest | Index) -> None:
    """Store a manifest that has a subject, and see to it that it is found there.

    Raises RegistryError, and what `Session.fetch` does.
    """
    if manifest.subject is None:
        raise ValueError("a referrer needs a subject")
    subject = manifest.subject.digest
    reply = manifests.put(session, manifest)
    if reply.header("oci-subject") == subject:
        return  # the registry keeps the list by itself
    if _by_api(session, subject, None) is not None:
        return
    _add_to_fallback(session, subject, manifest.descriptor)


def _add_to_fallback(session: Session, subject: str, added: Descriptor) -> None:
    """Change the index at the tag that stands in for the referrers API, others' entries kept.

    Raises RegistryError when others overwrite it again and again.
    """

    def change(before: list[dict[str, Json]]) -> list[Entry]:
        return [*(e for e in before if e.get("digest") != added.digest), added.as_json()]

    for _ in range(_ATTEMPTS):
        if _is_done(session, subject, change):
            time.sleep(_SETTLED * random.uniform(1.0, 2.0))  # noqa: S311 - spreads writers
            if _is_done(session, subject, change):
                return
        _write_once(session, subject, change)
        time.sleep(_SETTLED * random.uniform(0.5, 1.0))  # noqa: S311 - spreads writers
    raise RegistryError(
        f"{session.name}: others keep changing {fallback_tag(subject)}; try again later"
    )


def fallback_tag(subject: str) -> str:
    """Return the tag that stands in for the referrers API."""
    return subject.replace(":", "-")


Change = Callable[[list[dict[str, Json]]], list[Entry]]


def _is_done(session: Session, subject: str, change: Change) -> bool:
    before = _entries(_fallback(session, subject))
    return _by_digest(change(before)) == _by_digest(before)


def _write_once(session: Session, subject: str, change: Change) -> None:
    """Write the changed index, unless somebody wrote since it was read."""
    found = _fallback(session, subject)
    changed = change(_entries(found))
    if len(changed) > MAX_MANIFESTS:
        raise RegistryError(f"{session.name}: too many refer to {subject}: {len(changed)}")
    tag = fallback_tag(subject)
    if manifests.digest_at(session, tag) != (found.descriptor.digest if found else None):
        return
    annotations = found.annotations if found else None
    try:
        manifests.put(session, build_index(changed, annotations=annotations), tag)
    except (LoginError, UnreachableError):
        raise
    except RegistryError:  # some take no index with a manifest that somebody deleted
        alive = [e for e in changed if manifests.digest_at(session, str(e.get("digest")))]
        if len(alive) == len(changed):
            raise
        manifests.put(session, build_index(alive, annotations=annotations), tag)


def _by_digest(listed: list[dict[str, Json]] | list[Entry]) -> dict[Json, Entry]:
    return {str(each.get("digest")): each for each in listed}


def _entries(index: Index | None) -> list[dict[str, Json]]:
    return [] if index is None else entries(index)


def _fallback(session: Session, subject: str) -> Index | None:
    try:
        found = manifests.get(session, fallback_tag(subject))
    except NotFoundError:
        return None
    if not isinstance(found, Index):
        raise RegistryError(f"{session.name}: {fallback_tag(subject)} is no index of referrers")
    return found


def _by_api(session: Session, subject: str, artifact_type: str | None) -> list[Descriptor] | None:
    """What the registry lists, None if it has no such API."""
    query = f"?artifactType={quote(artifact_type)}" if artifact_type else ""
    found: list[Descriptor] = []
    what = f"referrers of {subject}"
    try:
        for reply in manifests.pages(session, f"referrers/{subject}{query}", what):
            index = parse(reply.body, None)
            if not isinstance(index, Index):
                raise RegistryError(f"{session.name}: the list of {what} is no index")
            found += index.manifests
            if len(found) > MAX_MANIFESTS:
                raise RegistryError(f"{session.name}: too many {what}")
    except NotFoundError:
        return None
    except FormatError as error:
        raise RegistryError(f"{session.name}: the list of {what}: {error}") from None
    return found
