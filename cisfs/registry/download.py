"""Blobs into files, or parts of files: resumed where a connection broke, checked by their digests.

A file that holds the beginning of the blob already is gone on with.  Bytes never pass through
memory but for the piece at hand.  Does not know what becomes of the file, nor makes it durable; one
that turned out wrong is empty afterwards.  One thread for each blob.
"""

from __future__ import annotations

import errno
import hashlib
import os
import time
from collections.abc import Callable, Iterator

from cisfs.errors import RangeIgnoredError, UnreachableError, WrongContentError
from cisfs.registry.blobs import open_range
from cisfs.registry.descriptor import Descriptor, short
from cisfs.registry.session import Session

ENOUGH = 1 << 16  # bytes that an attempt has to bring in order not to count as a failure
_READ = 1 << 20  # bytes

Report = Callable[[int], None]  # is told of that many bytes more; may raise to stop everything


def silent(_more: int) -> None:
    """Tell nobody."""


def download(session: Session, blob: Descriptor, fd: int, report: Report = silent) -> None:
    """Make the file at `fd` (open for reading and writing) exactly `blob`.

    `report` hears of what the file had already, too.  Raises WrongContentError for other bytes than
    the digest names, UnreachableError when patience is at its end (what came stays in the file),
    and what `Session.stream` does.
    """
    _with_own(fd, lambda own: _Download(session, blob, own, report, None).run())


def download_part(
    session: Session, blob: Descriptor, fd: int, at: int, report: Report = silent
) -> None:
    """Make the bytes of the file at `fd` from offset `at` exactly `blob`; others are not touched.

    Several parts of a file may be downloaded at a time.  One that is there already is only read.
    Raises as `download` does; the part is of no use then.
    """
    _with_own(fd, lambda own: _Download(session, blob, own, report, at).run())


def _with_own(fd: int, act: Callable[[int], None]) -> None:
    """The caller may give up and close its own while we wait for a registry."""
    own = os.dup(fd)
    try:
        act(own)
    finally:
        os.close(own)


class _Download:
    def __init__(
        self, session: Session, blob: Descriptor, fd: int, report: Report, part_at: int | None
    ) -> None:
        self._session, self._blob, self._fd, self._report = session, blob, fd, report
        self._is_part = part_at is not None
        self._start = part_at or 0
        self._hash = hashlib.sha256()
        self._at = 0  # bytes of the blob that are there
        self._ranges = True  # until the registry ignored one
        self._opened = False  # whether the last attempt got an answer

    def run(self) -> None:
        resumed = self._resume()
        self._fetch()
        if self._right():
            return
        if resumed:  # what was there before may be what is wrong: once more, from nothing
            self._restart()
            self._fetch()
            if self._right():
                return
        self._restart()
        raise WrongContentError(
            f"{self._session.name}: blob {short(self._blob.digest)}: "
            "the registry sent other bytes than this digest names"
        )

    def _right(self) -> bool:
        return f"sha256:{self._hash.hexdigest()}" == self._blob.digest

    def _resume(self) -> bool:
        """Take over what the file begins with."""
        if not self._is_part and os.fstat(self._fd).st_size > self._blob.size:
            os.ftruncate(self._fd, 0)
        stop = self._first_gap()
        while data := os.pread(self._fd, min(_READ, stop - self._at), self._start + self._at):
            self._took(data)
        return self._at > 0

    def _first_gap(self) -> int:
        """How much of the blob may be there: up to a hole of the file, which has its full length.

        A blob may be said to be larger than could be read in a lifetime.
        """
        try:
            hole = os.lseek(self._fd, self._start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno != errno.ENXIO:  # behind the end
                raise
            return 0
        status = os.fstat(self._fd)
        if hole < status.st_size:
            hole -= status.st_blksize  # what was written may have ended within the last block
        return min(max(0, hole - self._start), self._blob.size)

    def _restart(self) -> None:
        if not self._is_part:
            os.ftruncate(self._fd, 0)
        self._report(-self._at)
        self._hash, self._at = hashlib.sha256(), 0

    def _fetch(self) -> None:
        """Bring the file to its full length, in as many attempts as patience allows."""
        failures = 0
        while self._at < self._blob.size:
            before = self._at
            try:
                self._attempt()
            except RangeIgnoredError:
                if not self._ranges:
                    raise
                self._ranges = False
            except UnreachableError:
                if not self._opened:
                    raise  # the session had its patience already
                failures = 0 if self._at - before >= ENOUGH else failures + 1
                patience = self._session.patience
                if failures >= patience.attempts:
                    raise
                time.sleep(patience.wait(failures))

    def _attempt(self) -> None:
        start = self._at if self._ranges else 0
        self._opened = False
        with open_range(self._session, self._blob, start) as pieces:
            self._opened = True
            for piece in _after(pieces, self._at - start):
                self._write(piece)

    def _write(self, piece: bytes) -> None:
        rest = memoryview(piece)
        while rest:
            written = os.pwrite(self._fd, rest, self._start + self._at)
            self._took(rest[:written])
            rest = rest[written:]

    def _took(self, data: bytes | memoryview) -> None:
        self._hash.update(data)
        self._at += len(data)
        self._report(len(data))


def _after(pieces: Iterator[bytes], skip: int) -> Iterator[bytes]:
    """Leave out the first `skip` bytes."""
    for piece in pieces:
        if skip >= len(piece):
            skip -= len(piece)
        else:
            yield piece[skip:]
            skip = 0
