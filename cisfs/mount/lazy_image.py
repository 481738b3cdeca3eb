"""Serving an image that is not all here: reads of what is missing are put aside, others go on.

The fetcher is asked for what they need; when it is here they are answered, and when it does not
come in time they fail with EIO.  What a dead worker had put aside is sent again by the kernel, as
what it had in hand is (`cisfs.mount.workers`).

Does not know who fetches.  One thread; any number of processes may read the same device, which must
not wait (O_NONBLOCK).
"""

from __future__ import annotations

import errno
import logging
import select
from dataclasses import dataclass
from time import monotonic

from cisfs.errors import AbsentError
from cisfs.format.wants import Want
from cisfs.layer.presence import Presence
from cisfs.mount import wire
from cisfs.mount.absent import RETRY, Line
from cisfs.mount.board import ASIDE, Seat
from cisfs.mount.image import ImageServer, Readable, Shape
from cisfs.mount.session import Answer
from cisfs.mount.watch import Watch

_LOOK = 1.0  # seconds after which what is here is looked at without being told

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Aside:
    """A read that waits for units until `deadline` (monotonic), in a place at the seat."""

    request: wire.Request
    wanted: wire.ReadRequest
    units: range
    deadline: float
    place: int
    doubtful: bool
    why: str


class LazyImageServer(ImageServer):
    """Answers requests for an image that is not all here."""

    background = ASIDE  # what waits for a registry must not keep others from asking

    def __init__(
        self,
        device: int,
        image: Readable,
        shape: Shape,
        seat: Seat,
        watch: Watch,
        *,
        presence: Presence,
        line: Line,
        patience: float,
    ) -> None:
        """`patience` is in seconds: for how long a read waits for what is missing."""
        super().__init__(device, image, shape, seat, watch)
        self._presence = presence
        self._line = line
        self._fetch_patience = patience
        self._asides: dict[int, _Aside] = {}  # by the number of the want
        self._free = list(range(ASIDE))
        self._device_poll = select.poll()
        self._device_poll.register(device, select.POLLIN)
        self._device = device
        self._last = 0
        self._complained = False

    def serve(self) -> None:
        """Answer until the file system is gone.  Raises OSError when the device fails."""
        session = self._session
        while not session.ended:
            if not self._asides:
                self._watch.take()
                if not session.look():
                    self._device_poll.poll()
            elif not self._wait():
                continue
            self._answer_next()
        self._line.close()

    # -- waiting for units -------------------------------------------------------------------

    def _wait(self) -> bool:
        """With reads put aside: wait for anything, and see to them; tells of a new request.

        Only who has the watch waits for one.
        """
        ready = select.poll()
        if self._watch.try_take():
            ready.register(self._device, select.POLLIN)
        if self._line.fd >= 0:
            ready.register(self._line.fd, select.POLLIN)
        found = [fd for fd, _ in ready.poll(self._time_to_wait() * 1000)]
        for number in self._line.answers():
            self._take_up(number)
        self._look_at_all()
        return self._device in found

    def _time_to_wait(self) -> float:
        """Seconds until something is to be done."""
        first = min(aside.deadline for aside in self._asides.values()) - monotonic()
        return max(0.0, min(first, _LOOK if self._line.fd >= 0 else RETRY))

    def _look_at_all(self) -> None:
        """Take up what can be answered though nobody said so, and what nobody waits for longer."""
        now = monotonic()
        for number, aside in list(self._asides.items()):
            if now >= aside.deadline:
                self._fail(number)
            elif not aside.doubtful and self._presence.has_all(aside.units):
                self._take_up(number)

    # -- putting aside and taking up ---------------------------------------------------------

    def _read(self, request: wire.Request) -> Answer | None:
        wanted = wire.parse_read(self._session.request)
        try:
            return super()._read(request)
        except AbsentError as absent:
            self._put_aside(request, wanted, absent, monotonic() + self._fetch_patience)
            return None

    def _put_aside(
        self,
        request: wire.Request,
        wanted: wire.ReadRequest,
        absent: AbsentError,
        deadline: float,
    ) -> None:
        """Ask for what a read needs; it is answered later."""
        if not self._free:
            raise OSError(errno.EIO, "too many reads wait for what is missing")
        self._last += 1
        place = self._free.pop()
        self._seat.put_aside(place, request.unique)
        self._asides[self._last] = _Aside(
            request, wanted, absent.units, deadline, place, absent.doubtful, str(absent)
        )
        self._line.ask(Want(self._last, absent.units, absent.doubtful))

    def _take_up(self, number: int) -> None:
        """Answer a read that was put aside."""
        aside = self._remove(number)
        if aside is None:
            return
        self._complained = False

        def read(_request: wire.Request) -> Answer | None:
            try:
                return [self._image.read(aside.wanted.offset, aside.wanted.size)]
            except AbsentError as absent:
                if absent.doubtful and aside.doubtful:
                    raise  # fetched anew, and still damaged: the disk, or the memory
                self._put_aside(aside.request, aside.wanted, absent, aside.deadline)
                return None

        self._seat.take(aside.request.unique)
        self._session.answer(aside.request, read)
        self._seat.rest()

    def _fail(self, number: int) -> None:
        """Answer a read that has waited for too long; one line says so until there is progress."""
        aside = self._remove(number)
        if aside is None:
            return
        if not self._complained:
            self._complained = True
            log.error(
                "%s, nor has it come within %g s: reads of what is missing fail until it can be "
                "fetched",
                aside.why,
                self._fetch_patience,
            )
        self._session.send(aside.request, errno.EIO)

    def _remove(self, number: int) -> _Aside | None:
        aside = self._asides.pop(number, None)
        if aside is not None:
            self._seat.take_up(aside.place)
            self._free.append(aside.place)
            self._line.forget(number)
        return aside
