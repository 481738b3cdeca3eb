"""What is sent to a server.

Immutable values, safe anywhere; does not know how it is sent (`cisfs.registry.transport`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Body:
    """`size` bytes to send; `pieces` starts anew each time it is called."""

    size: int
    pieces: Callable[[], Iterator[bytes]]

    @classmethod
    def of(cls, content: bytes) -> Body:
        """Wrap bytes that are at hand."""
        return cls(len(content), lambda: iter((content,)))


@dataclass(frozen=True, slots=True)
class Request:
    """What to send.  `authorization` is that header's value, for the host of `url` only.

    So is the body if it `is_secret`.
    """

    method: str
    url: str
    headers: Mapping[str, str] = field(default_factory=dict)
    body: Body | None = None
    authorization: str | None = field(default=None, repr=False)
    is_secret: bool = False
