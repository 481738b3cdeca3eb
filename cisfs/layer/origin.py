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
    """A blob in a repository, and how the registry is reached.

    `size` is in bytes.  `ca_file` names a file of further authorities, "" for none; `plain_http`:
    HTTP without TLS was allowed.
    """

    registry: str
    repository: str
    digest: str
    size: int
    plain_http: bool = False
    ca_file: str = ""

    @property
    def name(self) -> str:
        """Registry and repository, for messages."""
        return f"{self.registry}/{self.repository}"

    def pack(self) -> bytes:
        """Return the bytes of the file."""
        return json.dumps(asdict(self), indent=2).encode() + b"\n"

    @classmethod
    def read(cls, directory: Path) -> Origin:
        """Read the file in a layer's directory.  Raises FormatError, OSError."""
        path = directory / NAME
        with path.open("rb") as file:
            data = file.read(_LONGEST)
        try:
            found = json.loads(data)
            made = cls(**found)
        except (ValueError, TypeError, RecursionError):
            raise FormatError(f"{path} is damaged: pull the layer again") from None
        types = {"str": str, "int": int, "bool": bool}
        if any(type(getattr(made, each.name)) is not types[str(each.type)] for each in fields(cls)):
            raise FormatError(f"{path} is damaged: pull the layer again")
        return made
