"""Blobs into a repository: skipped when there, mounted from another repository, or sent.

A large one is sent in chunks, and after a broken connection the registry is asked how far it came
(OCI distribution-spec, "Pushing a blob in chunks"), so that nothing is sent twice but what it lost.
What it answers is believed only within what was sent; the digest that ends an upload is what
counts.  Registries that forget an upload when a connection breaks (distribution, up to version 3:
its GET of the status wants an offset that only a finished PATCH tells) get all of the blob again:
who wants to lose less there uploads smaller blobs.  Does not know what the blobs are.  One thread
for each blob.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

from cisfs.errors import NotFoundError, RegistryError, UnreachableError, WrongContentError
from cisfs.registry.blobs import blob_size
from cisfs.registry.descriptor import Descriptor, short
from cisfs.registry.download import ENOUGH, Report, silent
from cisfs.registry.request import Body
from cisfs.registry.session import PULL, PUSH, Ask, Reply, Session
from cisfs.registry.source import Source

CHUNK = 8 << 20  # bytes, the most that is sent twice after a broken connection
MAX_CHUNK = 1 << 30  # bytes; a registry may ask for larger ones than ours, within reason
_PIECE = 1 << 18  # bytes that are in memory at a time
_RANGE = re.compile(r"(?:bytes=)?0-([0-9]{1,18})")
_BYTES = {"Content-Type": "application/octet-stream"}


def upload(
    session: Session,
    blob: Descriptor,
    source: Source,
    *,
    mount_from: str | None = None,
    chunk: int = CHUNK,
    report: Report = silent,
) -> bool:
    """Make sure that the repository has `blob`; tells whether its bytes had to be sent.

    `source` has to have the bytes that its digest and size describe.  `mount_from` is another
    repository of the same registry that may have it.  `report` hears of all its bytes, sent or
    not; a negative number takes back what the registry lost.

    Raises UnreachableError when patience is at its end, WrongContentError when the registry got
    other bytes than the digest names, and what `Session.fetch` does.
    """
    if source.size != blob.size:
        raise ValueError(f"a source of {source.size} bytes for a blob of {blob.size}")
    if has(session, blob):
        report(blob.size)
        return False
    return _Upload(session, blob, source, chunk, report).run(mount_from)


def has(session: Session, blob: Descriptor) -> bool:
    """Tell whether the repository has `blob`, with the right size."""
    return blob_size(session, blob.digest) == blob.size


def mount(session: Session, blob: Descriptor, from_repository: str) -> bool:
    """Have the registry take `blob` over from another of its repositories; False if it will not."""
    begun = _begin(session, blob, from_repository)
    if begun.status == 201:
        return True
    _cancel(session, session.location(begun, _what(blob)))
    return False


def _begin(session: Session, blob: Descriptor, from_repository: str | None) -> Reply:
    """Open an upload; 201 instead of 202 says that the blob was mounted."""
    path, scopes = "blobs/uploads/", {session.scope(PUSH)}
    if from_repository is not None:
        path += f"?mount={blob.digest}&from={from_repository}"
        scopes.add(session.scope(PULL, from_repository))
    return session.fetch(
        Ask("POST", path, _what(blob), (201, 202), body=Body.of(b""), scopes=frozenset(scopes))
    )


def _cancel(session: Session, location: str) -> None:
    """Best effort: registries throw old uploads away by themselves."""
    try:
        session.fetch(Ask("DELETE", location, "an upload", (204,), repeatable=False))
    except RegistryError:
        pass  # nothing depends on it


class _LostError(Exception):
    """The registry has forgotten the upload, or holds something else than what was sent."""

    def __init__(self, reason: RegistryError) -> None:
        super().__init__(str(reason))
        self.reason = reason


class _Upload:
    def __init__(
        self, session: Session, blob: Descriptor, source: Source, chunk: int, report: Report
    ) -> None:
        self._session, self._blob, self._source = session, blob, source
        self._what = _what(blob)
        self._chunk = chunk
        self._report = report
        self._location = ""
        self._known = 0  # bytes that the registry is known to have
        self._sent = 0  # bytes that may have reached it: it cannot have more
        self._resumed = False
        self._told = 0  # what `report` has heard of

    def run(self, mount_from: str | None) -> bool:
        patience = self._session.patience
        for attempt in range(1, patience.attempts + 1):
            begun = _begin(self._session, self._blob, mount_from)
            if begun.status == 201:
                self._tell(self._blob.size)
                return False
            self._start(begun)
            try:
                self._send()
                return True
            except _LostError as lost:
                if attempt == patience.attempts:
                    raise lost.reason from None
            time.sleep(patience.wait(attempt))
        raise ValueError("patience for no attempt at all")

    def _start(self, begun: Reply) -> None:
        self._location = self._session.location(begun, self._what)
        self._known = self._sent = 0
        self._resumed = False
        self._tell(0)
        least = begun.header("oci-chunk-min-length") or ""
        if re.fullmatch(r"[0-9]{1,12}", least):
            self._chunk = min(max(self._chunk, int(least)), MAX_CHUNK)

    def _send(self) -> None:
        """Send everything, and go on from where the registry got to when a connection breaks."""
        failures = 0
        while True:
            before = self._known
            try:
                self._chunks()
                self._finish()
                return
            except NotFoundError as error:
                raise _LostError(error) from None
            except UnreachableError as error:
                if self._sent == self._blob.size and has(self._session, self._blob):
                    return  # it was only the last answer that got lost
                failures += 1
                if failures >= self._session.patience.attempts:
                    raise
                time.sleep(self._session.patience.wait(failures))
                self._ask(error)
            if self._known - before >= ENOUGH:
                failures = 0

    @property
    def _small(self) -> bool:
        """Whether the request that ends the upload may carry all of it."""
        return self._blob.size <= self._chunk

    def _chunks(self) -> None:
        while not self._small and self._known < self._blob.size:
            start, stop = self._known, min(self._known + self._chunk, self._blob.size)
            headers = {**_BYTES, "Content-Range": f"{start}-{stop - 1}"}
            done = self._session.fetch(
                Ask(
                    "PATCH",
                    self._location,
                    self._what,
                    (202, 204, 416),
                    headers,
                    self._body(start, stop),
                    repeatable=False,
                )
            )
            if done.status == 416:  # it was still busy with what came before a connection broke
                raise UnreachableError(f"{self._session.name}: {self._what}: another part is due")
            self._location = self._session.location(done, self._what)
            self._believe(done, stop)

    def _finish(self) -> None:
        """Say that this was all, and what it has to be."""
        start = 0 if self._small else self._blob.size
        url = f"{self._location}{'&' if '?' in self._location else '?'}digest={self._blob.digest}"
        body = self._body(start, self._blob.size)
        ask = Ask("PUT", url, self._what, (201, 204, 400), _BYTES, body, repeatable=False)
        if self._session.fetch(ask).status != 400:
            self._tell(self._blob.size)
            return
        error = WrongContentError(
            f"{self._session.name}: {self._what}: the registry got other bytes than this digest "
            "names, or too many"
        )
        if self._resumed:
            raise _LostError(error)
        raise error

    def _ask(self, error: UnreachableError) -> None:
        """Find out how far the registry got.  A small blob is rather begun anew."""
        if self._small:
            raise _LostError(error)
        ask = Ask("GET", self._location, self._what, (200, 202, 204))
        try:
            found = self._session.fetch(ask)
        except NotFoundError:
            raise _LostError(error) from None
        self._resumed = True
        if found.header("location"):
            self._location = self._session.location(found, self._what)
        self._believe(found, None)

    def _believe(self, reply: Reply, otherwise: int | None) -> None:
        """Take over what a registry says it has, as far as that can be."""
        match = _RANGE.fullmatch(reply.header("range") or "")
        if match is None and otherwise is None:
            raise _LostError(
                RegistryError(f"{self._session.name}: {self._what}: lost, and nobody knows where")
            )
        known = int(match[1]) + 1 if match else otherwise or 0
        if known == 1:  # "0-0" is said for nothing, too
            known = 0
        if known > self._sent:
            raise RegistryError(
                f"{self._session.name}: {self._what}: the registry claims {known} bytes, "
                f"more than the {self._sent} that were sent"
            )
        self._known = self._sent = known
        self._tell(known)

    def _body(self, start: int, stop: int) -> Body:
        return Body(stop - start, lambda: self._pieces(start, stop))

    def _pieces(self, start: int, stop: int) -> Iterator[bytes]:
        while start < stop:
            piece = self._source.read(start, min(_PIECE, stop - start))
            if not piece:
                raise ValueError(f"a source that ends at {start} instead of {self._blob.size}")
            self._sent = max(self._sent, start + len(piece))
            yield piece
            start += len(piece)
            self._tell(start)

    def _tell(self, known: int) -> None:
        if known != self._told:
            self._report(known - self._told)
            self._told = known


def _what(blob: Descriptor) -> str:
    return f"blob {short(blob.digest)}"
