"""Keys for the start of a container of a daemon: lent to the kernel's keyring, and taken back.

The runtime, which the daemon starts, finds them there.  Does not know where they come from.  Not
for several threads at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from cisfs.crypto.keys import SecretKey
from cisfs.keys import keyring

_SECONDS = 60  # should nobody come to take a key back


class Loan:
    """Master keys by their ids; lent only where none is there already."""

    def __init__(self, keys: Mapping[str, SecretKey]) -> None:
        """Touch nothing yet."""
        self._keys = keys

    def give(self) -> list[str]:
        """Store the keys, each for a minute; return the ids of those that were not there."""
        lent = [name for name in self._keys if keyring.find(name) is None]
        for name in lent:
            keyring.store(name, self._keys[name], _SECONDS)
        return lent

    @contextmanager
    def given(self) -> Iterator[None]:
        """Lend for the time of the `with` block."""
        lent = self.give()
        try:
            yield
        finally:
            for name in lent:
                keyring.forget(name)
