"""Fetching what the plan says, from a registry into a layer.

Each request brings a run of units, which are checked, written and announced one by one as they
come.  The blocks of the hash tree that they need are fetched before.  Where a registry sends whole
blobs only, the blob is fetched once and then read from this machine.

Does not know readers or sockets.  Each thread runs `Work.run`.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from time import monotonic
from typing import Protocol

from cisfs.errors import (
    CisfsError,
    IntegrityError,
    LoginError,
    RangeIgnoredError,
    UnreachableError,
    WrongContentError,
)
from cisfs.format.sealed_geometry import TREE_BLOCK_SIZE
from cisfs.layer.filling import Filler
from cisfs.registry.fetcher_plan import Piece, Plan

_SAID_AFTER = 2  # failures in a row: connections break now and then
_LOGIN_SECONDS = 60.0  # of being refused, after which another login may be there to be read
_READ = 1 << 20

log = logging.getLogger(__name__)


class Blob(Protocol):
    """Where the stored bytes of a layer are read from."""

    def open(self, start: int, stop: int) -> AbstractContextManager[Iterator[bytes]]:
        """Yield bytes `start` to `stop` in pieces, exactly so many.  Raises RegistryError."""

    def download(self, fd: int) -> None:
        """Write all of them into a file.  Raises RegistryError, OSError."""


class Work:
    """What the threads of a fetcher share."""

    def __init__(self, filler: Filler, plan: Plan, blob: Blob, spare: int) -> None:
        """`spare` is an empty file that is open, for a whole blob."""
        self._filler = filler
        self._plan = plan
        self._blob = blob
        self._spare = spare
        self._over_tree = threading.Lock()
        self._downloading = threading.Lock()
        self._is_away = False
        self._refused_since = 0.0

    def run(self, *, rest: bool) -> None:
        """Fetch until the plan is closed."""
        while (piece := self._plan.next(rest=rest)) is not None:
            self._attempt(piece)

    def _attempt(self, piece: Piece) -> None:
        """Fetch a piece, or say why not."""
        progress = _Progress()
        try:
            try:
                self._fetch(piece, progress)
            except RangeIgnoredError as error:
                self._fetch_whole(error)
            self._came(piece)
        except UnreachableError as error:
            failures = self._plan.failed(piece, progress=progress.made)
            if failures >= _SAID_AFTER:
                self._say(error)
        except (CisfsError, OSError) as error:
            self._plan.failed(piece)
            self._say(error, again=isinstance(error, IntegrityError | WrongContentError))
            if isinstance(error, LoginError):
                self._was_refused()
        except Exception:
            self._plan.failed(piece)
            log.exception("fetching failed")

    def _fetch(self, piece: Piece, progress: _Progress) -> None:
        self._fetch_tree(piece.units)
        geometry, filler = self._filler.geometry, self._filler
        last = piece.units[-1]
        start = geometry.unit_offset(piece.units[0])
        stop = geometry.unit_offset(last) + geometry.unit_length(last)
        with self._blob.open(start, stop) as pieces:
            source = _Joined(pieces)
            for unit in piece.units:
                body = source.take(geometry.unit_length(unit))
                try:
                    filler.put_unit(unit, body)
                except IntegrityError:
                    self._plan.ban(unit)
                    raise
                self._plan.arrived(unit)
                progress.made = True
                if not piece.wanted and (self._plan.is_pressing or self._plan.is_closed):
                    return

    def _fetch_tree(self, units: range) -> None:
        """Fetch the blocks of the tree that units need and that are not here."""
        if self._filler.blocks_for(units):
            with self._over_tree:  # several threads would fetch the same
                self._fetch_blocks(units)

    def _fetch_blocks(self, units: range) -> None:
        found: dict[int, bytes] = {}
        for run in self._filler.blocks_for(units):
            start = self._filler.geometry.block_offset(run.start)
            with self._blob.open(start, start + len(run) * TREE_BLOCK_SIZE) as pieces:
                source = _Joined(pieces)
                for block in run:
                    found[block] = bytes(source.take(TREE_BLOCK_SIZE))
        if found:
            self._filler.put_blocks(found)

    def _fetch_whole(self, error: RangeIgnoredError) -> None:
        """Get all of the blob, once; what was asked for is then read from here."""
        with self._downloading:
            if not isinstance(self._blob, _Local):
                log.warning("%s: all of the layer is fetched before it is read", error)
                self._blob.download(self._spare)
                self._blob = _Local(self._spare)

    # -- what came of it -----------------------------------------------------------------------

    def _came(self, piece: Piece) -> None:
        self._plan.finished(piece)
        self._refused_since = 0.0
        if self._is_away:
            self._is_away = False
            log.warning("%s: fetching goes on", self._filler.name)

    def _say(self, error: BaseException, *, again: bool = False) -> None:
        """Log why nothing comes, once until something comes, or `again`."""
        if not self._is_away or again:
            log.warning("%s: cannot fetch what is missing: %s", self._filler.name, error)
        self._is_away = True

    def _was_refused(self) -> None:
        """End when that lasts: whoever is started anew reads the logins anew."""
        now = monotonic()
        self._refused_since = self._refused_since or now
        if now - self._refused_since > _LOGIN_SECONDS:
            self._plan.close()


class _Progress:
    """Whether a piece brought anything."""

    made = False


class _Joined:
    """Pieces as they come, taken as they are needed."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._held = bytearray()

    def take(self, size: int) -> bytearray:
        """Return exactly `size` bytes.  Raises WrongContentError if there are fewer."""
        while len(self._held) < size:
            piece = next(self._pieces, None)
            if piece is None:
                raise WrongContentError("fewer bytes came than were asked for")
            self._held += piece
        taken = self._held[:size]
        del self._held[:size]
        return taken


class _Local:
    """A whole blob in a file of our own."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @contextmanager
    def open(self, start: int, stop: int) -> Iterator[Iterator[bytes]]:
        """See `Blob`."""

        def pieces() -> Iterator[bytes]:
            at = start
            while at < stop and (data := os.pread(self._fd, min(_READ, stop - at), at)):
                at += len(data)
                yield data

        yield pieces()

    def download(self, fd: int) -> None:
        """See `Blob`; it is here already."""
