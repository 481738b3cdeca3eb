"""Descriptors: the type, digest and size of a blob or manifest (OCI image-spec, descriptor.md).

Whatever is fetched is fetched by one, so that its length is bounded and its bytes are checked.
Does not know where the bytes are.  Immutable values and pure functions; safe anywhere.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from cisfs.errors import FormatError
from cisfs.registry.documents import Json, optional_text, text, texts
from cisfs.registry.reference import is_digest

MAX_SIZE = 1 << 50  # bytes: more than any blob has, and small enough to calculate with
EMPTY_JSON = b"{}"
EMPTY_TYPE = "application/vnd.oci.empty.v1+json"

# RFC 6838, section 4.2.
_MEDIA_TYPE = re.compile(r"[A-Za-z0-9][\w!#$&^.+-]{0,126}/[A-Za-z0-9][\w!#$&^.+-]{0,126}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Descriptor:
    """`size` is in bytes; `annotations` and `platform` are as in the JSON."""

    media_type: str
    digest: str
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict)
    artifact_type: str | None = None
    platform: Mapping[str, Json] | None = None

    @classmethod
    def of(
        cls,
        content: bytes,
        media_type: str,
        *,
        annotations: Mapping[str, str] | None = None,
        artifact_type: str | None = None,
    ) -> Descriptor:
        """Describe bytes that are at hand."""
        return cls(media_type, digest_of(content), len(content), annotations or {}, artifact_type)

    @classmethod
    def parse(cls, value: Mapping[str, Json], what: str) -> Descriptor:
        """Return the descriptor in a JSON object.  Raises FormatError that calls it `what`."""
        media_type, digest = text(value, "mediaType", what), text(value, "digest", what)
        if not is_media_type(media_type):
            raise FormatError(f"{what} has a media type that is none")
        if not is_digest(digest):
            raise FormatError(f"{what} has a digest that is not of sha256")
        size = value.get("size")
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= MAX_SIZE:
            raise FormatError(f"{what} has no size from 0 to {MAX_SIZE}")
        platform = value.get("platform")
        if platform is not None and not isinstance(platform, dict):
            raise FormatError(f"{what} has a platform that is no object")
        kind = optional_text(value, "artifactType", what)
        return cls(media_type, digest, size, texts(value, "annotations", what), kind, platform)

    def as_json(self) -> dict[str, Json]:
        """Return the JSON object; what is absent is left out."""
        value: dict[str, Json] = {
            "mediaType": self.media_type,
            "digest": self.digest,
            "size": self.size,
        }
        if self.annotations:
            value["annotations"] = dict(self.annotations)
        if self.artifact_type is not None:
            value["artifactType"] = self.artifact_type
        if self.platform is not None:
            value["platform"] = dict(self.platform)
        return value


def digest_of(content: bytes) -> str:
    """Return the digest of `content`, as a descriptor writes it."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def short(digest: str) -> str:
    """Return as much of a digest as tells it from others in a message."""
    return digest[: len("sha256:") + 12]


def is_media_type(name: str) -> bool:
    """Tell whether `name` may be a media type: one without parameters."""
    return _MEDIA_TYPE.fullmatch(name) is not None


EMPTY = Descriptor.of(EMPTY_JSON, EMPTY_TYPE)
