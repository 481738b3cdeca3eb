"""Manifests of a repository, bounded and checked.

What a digest asks for has to have it; what a tag stands for is bound to a digest by what came.
Does not know what the manifests describe.  For several threads, as the session is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from cisfs.errors import FormatError, NotFoundError, RegistryError, WrongContentError
from cisfs.registry.descriptor import Descriptor, digest_of, short
from cisfs.registry.manifest import INDEX_TYPES, MANIFEST_TYPES, MAX_SIZE, Index, Manifest, parse
from cisfs.registry.reference import is_digest, is_tag
from cisfs.registry.request import Body
from cisfs.registry.session import Ask, Reply, Session

_MAX_PAGES = 1000
_NEXT = re.compile(r'<([^<>]{1,4096})>\s*;[^,]*\brel="?next"?')  # RFC 8288, as registries write it
_ACCEPT = {"Accept": ", ".join(MANIFEST_TYPES + INDEX_TYPES)}


def get(session: Session, target: str) -> Manifest | Index:
    """Return what a tag or digest stands for.

    Raises NotFoundError, WrongContentError for other bytes than asked for, RegistryError for what
    is no manifest, and what `Session.fetch` does.
    """
    what = _what(target)
    ask = Ask("GET", f"manifests/{target}", what, (200,), _ACCEPT)
    reply = session.fetch(ask, MAX_SIZE)
    digest = digest_of(reply.body)
    said = target if is_digest(target) else reply.header("docker-content-digest") or digest
    if said != digest and is_digest(said):
        raise WrongContentError(f"{session.name}: {what}: the registry sent another one")
    try:
        return parse(reply.body, _media_type(reply))
    except FormatError as error:
        raise RegistryError(f"{session.name}: {what}: {error}") from None


def get_described(session: Session, descriptor: Descriptor) -> Manifest | Index:
    """Return the manifest that a descriptor names, of the size and type that it says.

    Raises as `get` does.
    """
    found = get(session, descriptor.digest)
    if (len(found.body), found.media_type) != (descriptor.size, descriptor.media_type):
        raise WrongContentError(
            f"{session.name}: {_what(descriptor.digest)}: "
            "not of the size and type that it was announced with"
        )
    return found


def digest_at(session: Session, target: str) -> str | None:
    """Return what digest a tag stands for now, None for none, without its manifest."""
    ask = Ask("HEAD", f"manifests/{target}", _what(target), (200,), _ACCEPT)
    try:
        said = session.fetch(ask).header("docker-content-digest")
    except NotFoundError:
        return None
    return said if said and is_digest(said) else get(session, target).descriptor.digest


def put(session: Session, manifest: Manifest | Index, tag: str | None = None) -> Reply:
    """Store a manifest, under a tag too if there is one.  Its blobs have to be there.

    Raises what `Session.fetch` does.
    """
    if tag is not None and not is_tag(tag):
        raise ValueError(f"{tag!r} is no tag")
    target = tag or manifest.descriptor.digest
    headers = {"Content-Type": manifest.media_type}
    body = Body.of(manifest.body)
    ask = Ask("PUT", f"manifests/{target}", _what(target), (200, 201, 202), headers, body)
    return session.fetch(ask)


def pages(session: Session, path: str, what: str) -> Iterator[Reply]:
    """Yield the pages of a list.  Raises RegistryError when they do not end."""
    for _ in range(_MAX_PAGES):
        reply = session.fetch(Ask("GET", path, what, (200,)))
        yield reply
        match = _NEXT.search(reply.header("link") or "")
        if match is None:
            return
        path = session.transport.join(reply.url, match[1])
    raise RegistryError(f"{session.name}: {what}: more than {_MAX_PAGES} pages")


def _media_type(reply: Reply) -> str | None:
    said = reply.header("content-type")
    return said.partition(";")[0].strip() if said else None


def _what(target: str) -> str:
    return f"manifest {short(target) if is_digest(target) else target}"
