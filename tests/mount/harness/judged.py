"""A lab that is closed, and judged, at the end of a test."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Protocol, TypeVar


class Closable(Protocol):
    """What says in `close`, by AssertionError, what a test has left behind."""

    def close(self) -> None: ...


Lab = TypeVar("Lab", bound=Closable)


@contextlib.contextmanager
def judged(lab: Lab) -> Iterator[Lab]:
    """Yield `lab`, and close it; a failure inside is not hidden by what closing it says."""
    try:
        yield lab
    except BaseException:
        with contextlib.suppress(AssertionError, OSError):
            lab.close()
        raise
    lab.close()
