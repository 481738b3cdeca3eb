"""Reading blobs: whether one is there, and any part of one, as a stream of bytes.

What a registry says about lengths and ranges is checked, bytes are not: who reads a whole blob
checks its digest (`cisfs.registry.download`), who reads a part has hashes of its own.  For several
threads, as the session is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from cisfs.errors import NotFoundError, RangeIgnoredError, UnreachableError, WrongContentError
from cisfs.registry.descriptor import MAX_SIZE, Descriptor, short
from cisfs.registry.session import Ask, Session
from cisfs.registry.transport import Response

_CONTENT_RANGE = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)")  # RFC 9110, 14.4


def blob_size(session: Session, digest: str) -> int | None:
    """Return a blob's size in bytes as the registry says it, None if it has no such blob.

    Raises WrongContentError where it says no size, and what `Session.fetch` does.
    """
    what = _what(digest)
    try:
        reply = session.fetch(Ask("HEAD", f"blobs/{digest}", what, (200,)))
    except NotFoundError:
        return None
    length = reply.header("content-length") or ""
    if not re.fullmatch(r"[0-9]{1,16}", length) or int(length) > MAX_SIZE:
        raise WrongContentError(f"{session.name}: {what}: the registry does not say its size")
    return int(length)


def read_blob(session: Session, blob: Descriptor, limit: int) -> bytes:
    """Return a whole small blob, checked.  Raises WrongContentError, what `Session.fetch` does."""
    what = _what(blob.digest)
    if blob.size > limit:
        raise WrongContentError(f"{session.name}: {what} has {blob.size} bytes, more than {limit}")
    reply = session.fetch(Ask("GET", f"blobs/{blob.digest}", what, (200,)), blob.size)
    if Descriptor.of(reply.body, blob.media_type).digest != blob.digest:
        raise WrongContentError(f"{session.name}: {what}: the registry sent other bytes")
    return reply.body


@contextmanager
def open_range(
    session: Session, blob: Descriptor, start: int = 0, stop: int | None = None
) -> Iterator[Iterator[bytes]]:
    """Yield the bytes of a blob from `start` up to `stop`, in pieces as they come, unchecked.

    There are exactly as many as were asked for, or the iteration raises UnreachableError (the
    connection broke) or WrongContentError (too many).  Raises RangeIgnoredError when the registry
    begins to send the whole blob instead of a part, and what `Session.stream` does.
    """
    stop = blob.size if stop is None else stop
    if not 0 <= start <= stop <= blob.size:
        raise ValueError(f"bytes {start} to {stop} of {blob.size}")
    if start == stop:
        yield iter(())
        return
    whole = (start, stop) == (0, blob.size)
    headers = {} if whole else {"Range": f"bytes={start}-{stop - 1}"}
    what = _what(blob.digest)
    expected = (200,) if whole else (200, 206)
    with session.stream(Ask("GET", f"blobs/{blob.digest}", what, expected, headers)) as response:
        where = f"{session.name}: {what}"
        _check(response, blob, start, stop, where)
        yield _exactly(response, stop - start, where)


def _check(response: Response, blob: Descriptor, start: int, stop: int, where: str) -> None:
    """Refuse an answer whose headers say that it is something else."""
    if response.header("content-encoding") not in (None, "", "identity"):
        raise WrongContentError(f"{where}: the registry compresses what it was asked for as it is")
    if response.status == 200 and (start, stop) != (0, blob.size):
        raise RangeIgnoredError(f"{where}: the registry cannot send a part of it")
    if response.status == 206:
        match = _CONTENT_RANGE.fullmatch(response.header("content-range") or "")
        if match is None:
            raise WrongContentError(f"{where}: the registry does not say which part it sends")
        first, last, total = match.groups()
        if (int(first), int(last)) != (start, stop - 1) or total not in ("*", str(blob.size)):
            raise WrongContentError(f"{where}: the registry sends another part than asked for")
    if response.length not in (None, stop - start):
        raise WrongContentError(
            f"{where}: the registry announces {response.length} bytes instead of {stop - start}"
        )


def _exactly(response: Response, size: int, where: str) -> Iterator[bytes]:
    left = size
    try:
        for piece in response.chunks():
            left -= len(piece)
            if left < 0:
                raise WrongContentError(f"{where}: the registry sends more than {size} bytes")
            yield piece
    except UnreachableError as error:
        raise UnreachableError(f"{where}: {error}") from error.__cause__
    if left:
        raise UnreachableError(f"{where}: the registry stopped {left} bytes before the end")


def _what(digest: str) -> str:
    return f"blob {short(digest)}"
