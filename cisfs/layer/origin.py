"""Where a layer in the local store came from: the file `source.json` beside it.

Does not know registries.  Immutable values; safe anywhere.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from cisfs.errors import FormatError

NAME = "source.json"
_LONGEST = 1 << 16  # bytes


@dataclass(frozen=True, slots=True)
class Origin:
    """The blobs in a repository that a layer is made of, and how the registry is reached.

    `parts` are digests and sizes in bytes, in the order of the file.  `ca_file` names a file of
    further authorities, "" for none; `plain_http`: HTTP without TLS was allowed.  `is_loaded`: it
    came in a file, and the repository may be out of reach.
    """

    registry: str
    repository: str
    parts: tuple[tuple[str, int], ...]
    plain_http: bool = False
    ca_file: str = ""
    is_loaded: bool = False

    @property
    def name(self) -> str:
        """Registry and repository, for messages."""
        return f"{self.registry}/{self.repository}"

    def pack(self) -> bytes:
        """Return the bytes of the file."""
        document = asdict(self)
        if not self.is_loaded:  # which earlier versions do not know
            del document["is_loaded"]
        return json.dumps(document, indent=2).encode() + b"\n"

    @classmethod
    def read(cls, directory: Path) -> Origin:
        """Read the file in a layer's directory.  Raises FormatError, OSError."""
        path = directory / NAME
        with path.open("rb") as file:
            data = file.read(_LONGEST)
        try:
            return _parsed(json.loads(data))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise FormatError(f"{path} is damaged: pull the layer again") from None


def _parsed(found: dict[str, object]) -> Origin:
    """Return the origin in a document.  Raises any of the errors that `read` expects."""
    texts = [found[name] for name in ("registry", "repository", "ca_file")]
    listed, plain_http = found["parts"], found["plain_http"]
    is_loaded = found.setdefault("is_loaded", False)
    if not all(isinstance(text, str) for text in texts):
        raise TypeError
    if not isinstance(plain_http, bool) or not isinstance(is_loaded, bool):
        raise TypeError
    if not isinstance(listed, list) or not listed or len(found) != len(fields(Origin)):
        raise ValueError
    parts = tuple((digest, size) for digest, size in listed)
    if not all(isinstance(each, str) and type(size) is int and size > 0 for each, size in parts):
        raise ValueError
    registry, repository, ca_file = map(str, texts)
    return Origin(registry, repository, parts, plain_http, ca_file, is_loaded)
