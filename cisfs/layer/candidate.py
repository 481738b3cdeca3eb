"""A vault or sealed layer that was found and locked, before any key is asked for.

What decides whether it may be used (`cisfs.layer.admission`) is told this much and no more.  Does
not know who decides.  Immutable values; safe anywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cisfs.format.signatures import Signature


@dataclass(frozen=True, slots=True)
class Candidate:
    """What is about to be opened, through a descriptor that is going to be served from.

    `identity` is that of the header which was read there, and "" of a vault; `signatures` are those
    that are embedded, not yet checked.
    """

    path: Path  # as it was named
    fd: int
    identity: str = ""
    signatures: tuple[Signature, ...] = ()


Admission = Callable[[Candidate], None]  # raises UntrustedError for what may not be used
