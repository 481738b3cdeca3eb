"""What a rotation is asked for and what comes of it, whether of a sealed layer or of a vault.

Knows neither.  Immutable values; safe anywhere.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cisfs.crypto.keys import SecretKey
from cisfs.errors import CisfsError
from cisfs.format.config import SlotFields
from cisfs.keys.credentials import Opener, Recipients

Progress = Callable[[int, int], None]  # bytes done, bytes in all; of a vault both are estimates
Switching = Callable[[SecretKey, SecretKey], None]

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})


@dataclass(frozen=True, slots=True)
class Request:
    """How to rotate.

    `recipients` open the new one; a function is given the old one's authentic key slots.
    `switching` is called with the scratch keys of the old and the new one when that is durable and
    about to take the old one's place; if it raises, nothing has changed yet.  It may be called
    again, with the same keys, when a rotation was interrupted just then.  `switched` is called with
    them once it has that place; it is not called again, and must not raise.
    """

    opener: Opener
    recipients: Recipients | Callable[[Sequence[SlotFields]], Recipients]
    workers: int | None
    progress: Progress
    switching: Switching
    switched: Switching

    def recipients_after(self, slots: Sequence[SlotFields]) -> Recipients:
        """Return whom the new one is for.  Raises what the caller's function raises."""
        return self.recipients(slots) if callable(self.recipients) else self.recipients


@dataclass(frozen=True, slots=True)
class Rotated:
    """What there is now.

    `key_id` is the new id in hexadecimal, `identity` that of a sealed layer.  `continued`: an
    earlier run had begun it.
    """

    key_id: str
    identity: str | None
    continued: bool


@contextmanager
def naming_full_disks(path: Path, partial: Path) -> Iterator[None]:
    """Say of a full disk what was being done, and what can be."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        left = f", or give up and remove {partial}" if partial.exists() else ""
        raise CisfsError(
            f"no space left to rotate {path}, which is as it was: the new one is made beside it "
            f"and takes as much again; make room and rotate it again{left}"
        ) from None
