"""Image references, as docker spells them: `[REGISTRY/]REPOSITORY[:TAG][@DIGEST]`.

Grammar and defaults are those of github.com/distribution/reference and docker's "familiar" names;
of digests only sha256.  Does not know how a registry is reached.  Immutable values and pure
functions; safe anywhere.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from cisfs.errors import UsageError

DEFAULT_REGISTRY = "docker.io"
DEFAULT_TAG = "latest"
_DEFAULT_NAMESPACE = "library"
_MOST_QUOTED = 120  # characters
_LONGEST_NAME = 255  # characters of registry and repository together
_LONGEST = 512  # characters that are looked at at all

_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_REGISTRY = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[a-fA-F0-9:]+\])(?::[0-9]{{1,5}})?")
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_IDENTIFIER = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Reference:
    """A repository at a registry, and a manifest in it by tag, by digest, or by both."""

    registry: str
    repository: str
    tag: str | None = None
    digest: str | None = None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Return what `text` names, docker's defaults filled in.  Raises UsageError."""
        if len(text) > _LONGEST:
            raise UsageError(f"an image reference has at most {_LONGEST} characters")
        name, at, digest = text.partition("@")
        name, tag = _split_tag(name)
        registry, repository = _split_registry(name)
        if not is_registry(registry):
            raise _wrong(text, f"{_quoted(registry)} is no registry")
        if not _REPOSITORY.fullmatch(repository) or _IDENTIFIER.fullmatch(text):
            raise _wrong(text, f"{_quoted(repository)} is no repository (letters must be small)")
        if len(registry) + 1 + len(repository) > _LONGEST_NAME:
            raise _wrong(text, f"longer than {_LONGEST_NAME} characters")
        if tag is not None and not is_tag(tag):
            raise _wrong(text, f"{_quoted(tag)} is no tag")
        if at and not is_digest(digest):
            raise _wrong(text, "what follows @ must be sha256: and 64 hexadecimal digits")
        if tag is None and not at:
            tag = DEFAULT_TAG
        return cls(registry, repository, tag, digest if at else None)

    @property
    def target(self) -> str:
        """What a manifest is asked for by: the digest if there is one, else the tag."""
        return self.digest or self.tag or DEFAULT_TAG

    @property
    def name(self) -> str:
        """Registry and repository."""
        return f"{self.registry}/{self.repository}"

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return self.name + tag + (f"@{self.digest}" if self.digest else "")


def is_registry(text: str) -> bool:
    """Tell whether `text` may be a registry: HOST[:PORT]."""
    return _REGISTRY.fullmatch(text) is not None


def is_digest(text: str) -> bool:
    """Tell whether `text` is a sha256 digest as the OCI image-spec writes one."""
    return _DIGEST.fullmatch(text) is not None


def is_tag(text: str) -> bool:
    """Tell whether `text` may be a tag (OCI distribution-spec, "Pulling manifests")."""
    return _TAG.fullmatch(text) is not None


def is_loopback(registry: str) -> bool:
    """Tell whether HOST[:PORT] never leaves this machine: by its name, no resolver is asked."""
    host = registry.rsplit(":", 1)[0] if re.search(r":[0-9]+$", registry) else registry
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _split_tag(name: str) -> tuple[str, str | None]:
    """A colon before the last slash belongs to a port."""
    before, colon, after = name.rpartition(":")
    return (before, after) if colon and "/" not in after else (name, None)


def _split_registry(name: str) -> tuple[str, str]:
    """What looks like a host name is one; all else is a repository of Docker Hub."""
    first, slash, rest = name.partition("/")
    if not slash or not (set(".:[") & set(first) or first == "localhost" or first.lower() != first):
        first, rest = DEFAULT_REGISTRY, name
    if first == f"index.{DEFAULT_REGISTRY}":
        first = DEFAULT_REGISTRY
    if first == DEFAULT_REGISTRY and "/" not in rest:
        rest = f"{_DEFAULT_NAMESPACE}/{rest}"
    return first, rest


def _wrong(text: str, why: str) -> UsageError:
    return UsageError(f"{_quoted(text)} is no image reference: {why}; write [REGISTRY/]NAME[:TAG]")


def _quoted(text: str) -> str:
    """Return a user's words, or the beginning of many, for a message."""
    quoted = repr(text)
    return quoted if len(quoted) <= _MOST_QUOTED else f"{quoted[: _MOST_QUOTED - 3]}..."
