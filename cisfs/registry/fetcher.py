"""The fetcher of a layer that is not all here: a process that fetches what readers wait for.

There is one for each layer and host, for all who have it mounted.  They tell it which units they
need over a socket in the layer's directory; it never has a key.  It reads logins and opens what it
needs as the user who started it, then goes on as nobody.  It ends when all is here, or when nobody
has been connected for a while.  Killed at any moment, it leaves nothing that is not true.

One thread for the readers, a few that fetch, one that makes durable what has come.
"""

from __future__ import annotations

import argparse
import logging
import os
import selectors
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from time import monotonic

from setproctitle import setproctitle

from cisfs.errors import CisfsError, FormatError, UnreachableError
from cisfs.format.wants import MAX_SIZE, Want, pack_here
from cisfs.layer import eviction, lazy
from cisfs.layer.filling import Filler
from cisfs.layer.origin import Origin
from cisfs.layer.pulled import store_of
from cisfs.mount import process
from cisfs.registry.artifacts import LAYER_TYPE
from cisfs.registry.descriptor import Descriptor
from cisfs.registry.fetcher_plan import Plan, Waiter
from cisfs.registry.fetcher_work import Work
from cisfs.registry.logins import Login, find_login
from cisfs.registry.parts import pieces, placed
from cisfs.registry.patience import Patience
from cisfs.registry.repository import Repository
from cisfs.registry.session import Access

_THREADS = 4
_QUIET = 1.0  # seconds without a reader's wish before the rest is fetched
_EXPECT = 5.0  # seconds to stay until somebody connects
_LINGER = 2.0  # seconds to stay when nobody is connected any more
_SETTLE = 5.0  # seconds between two times that what has come is made durable
_TICK = 0.5
_CONNECTIONS = 1024
_MOST_UNITS = 1 << 19  # for one reader: more than all reads that a worker can put aside take
# Failures are ours to repeat, as readers' wishes may have changed meanwhile.
_PATIENCE = Patience(connect=5.0, idle=10.0, attempts=1, longest_wait=5.0)

log = logging.getLogger(__name__)


class RegistryBlob:
    """The parts at the registry that it was pulled from, as one."""

    def __init__(self, source: Origin, plan: Plan) -> None:
        """Read the login, and the authorities.  Raises UsageError."""
        ca_file = Path(source.ca_file) if source.ca_file else None
        access = Access(ca_file=ca_file, plain_http=source.plain_http, patience=_PATIENCE)
        login = _login(source)
        self._repository = Repository(
            access.transport(), source.registry, source.repository, login=lambda: login
        )
        self._parts = [Descriptor(LAYER_TYPE, digest, size) for digest, size in source.parts]
        self._plan = plan

    @contextmanager
    def open(self, start: int, stop: int) -> Iterator[Iterator[bytes]]:
        """See `fetcher_work.Blob`."""
        yield pieces(self._repository, self._parts, start, stop)

    def download(self, fd: int) -> None:
        """See `fetcher_work.Blob`."""
        for part, offset in placed(self._parts):
            self._repository.download_part(part, fd, offset, self._report)

    def _report(self, _more: int) -> None:
        if self._plan.is_closed:
            raise UnreachableError("nobody needs it any more")


class Service:
    """The end of the socket that readers connect to."""

    def __init__(self, listener: socket.socket, filler: Filler, plan: Plan) -> None:
        self._listener = listener
        self._filler = filler
        self._plan = plan
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        self._waiters: dict[socket.socket, list[Waiter]] = {}
        self._alone_until = monotonic() + _EXPECT

    def serve(self) -> None:
        """Answer until all is here, nobody needs it any more, or the plan is closed."""
        with self._selector:
            while not self._is_over():
                for key, _ in self._selector.select(_TICK):
                    if key.fileobj is self._listener:
                        self._accept()
                    elif isinstance(key.fileobj, socket.socket):
                        self._receive(key.fileobj)
            for reader in list(self._waiters):
                self._leave(reader)

    def _is_over(self) -> bool:
        now = monotonic()
        if self._waiters:
            self._alone_until = now + _LINGER
        return now > self._alone_until or self._plan.is_closed or self._filler.is_full

    def _accept(self) -> None:
        with suppress(OSError):
            made, _ = self._listener.accept()
            made.setblocking(False)
            if len(self._waiters) >= _CONNECTIONS:
                made.close()
                return
            self._waiters[made] = []
            self._selector.register(made, selectors.EVENT_READ)

    def _receive(self, reader: socket.socket) -> None:
        try:
            data = reader.recv(MAX_SIZE + 1)
            if not data:
                raise ConnectionResetError
            want = Want.parse(data, self._filler.geometry.unit_count)
        except BlockingIOError:
            return
        except (OSError, FormatError):
            self._leave(reader)
            return
        try:
            if want.doubtful:
                self._filler.doubt(want.units)
        except OSError as error:
            log.warning("cannot look at what is damaged: %s", error)
        waiters = [waiter for waiter in self._waiters[reader] if waiter.left]
        self._waiters[reader] = waiters
        if sum(len(waiter.left) for waiter in waiters) + len(want.units) > _MOST_UNITS:
            self._leave(reader)  # who has given some up connects anew, and asks for the rest
            return
        waiters.append(self._plan.want(want.units, partial(_tell, reader, want.number)))

    def _leave(self, reader: socket.socket) -> None:
        for waiter in self._waiters.pop(reader):
            self._plan.forget(waiter)
        self._selector.unregister(reader)
        reader.close()


def fetch(directory: Path, claimed: int) -> None:
    """Be the fetcher of the layer in `directory`; returns when it is not needed any more.

    `claimed` is from `cisfs.layer.filling.claim`.  Raises CisfsError, OSError.
    """
    filler = Filler(directory, claimed)
    plan = Plan(filler, quiet=_QUIET)
    blob = RegistryBlob(Origin.read(directory), plan)
    with tempfile.TemporaryFile(dir=directory) as spare:
        listener = _listen(claimed)
        _make_room(directory, filler)
        process.drop_privileges()
        work = Work(filler, plan, blob, spare.fileno())
        for number in range(_THREADS):
            threading.Thread(
                target=partial(work.run, rest=number == 0), daemon=True, name=f"fetch {number}"
            ).start()
        threading.Thread(target=_settle, args=(filler, plan), daemon=True).start()
        try:
            Service(listener, filler, plan).serve()
        finally:
            plan.close()
            filler.settle()


def _make_room(directory: Path, filler: Filler) -> None:
    """Keep the store within its limit, with all of this layer in it."""
    missing = filler.geometry.stored_size - os.fstat(filler.fd).st_blocks * 512
    try:
        eviction.make_room(store_of(directory), max(0, missing))
    except (CisfsError, OSError) as error:
        log.warning("the store cannot be kept within its limit: %s", error)


def _settle(filler: Filler, plan: Plan) -> None:
    """Make what has come durable, now and then."""
    pause = threading.Event()
    while not plan.is_closed:
        pause.wait(_SETTLE)
        try:
            filler.settle()
        except OSError as error:
            log.warning("%s: what was fetched cannot be made durable: %s", filler.name, error)


def _tell(reader: socket.socket, number: int) -> None:
    """Say that units are here; who does not listen looks for himself."""
    with suppress(OSError, ValueError):
        reader.send(pack_here(number))


def _listen(directory: int) -> socket.socket:
    """Listen in the layer's directory, by a short path."""
    path = f"/proc/self/fd/{directory}/{lazy.SOCKET}"
    with suppress(FileNotFoundError):
        os.unlink(path)  # of one that has ended: there is only one of us
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    listener.bind(path)
    os.chmod(path, 0o666)  # noqa: S103 - who gets into the directory may ask
    listener.listen(_CONNECTIONS)
    listener.setblocking(False)
    return listener


def _login(source: Origin) -> Login | None:
    try:
        return find_login(source.registry, source.repository)
    except CisfsError as error:
        log.warning("%s; trying without a login", error)
        return None


def main(words: list[str]) -> int:
    """Be a fetcher; return the exit code."""
    parser = argparse.ArgumentParser(prog="cisfs-fetcher")
    parser.add_argument("directory", type=Path)
    parser.add_argument("claimed", type=int)
    parser.add_argument("--log-file", type=Path)
    args = parser.parse_args(words)
    os.set_inheritable(args.claimed, False)
    process.leave_home()
    process.shed_descriptors(keep_stderr=False)
    process.start_logging(args.log_file, to_stderr=False)
    setproctitle(f"cisfs: fetcher {args.directory}")
    try:
        fetch(args.directory, args.claimed)
    except (CisfsError, OSError) as error:
        log.error("%s: %s", args.directory.name, error)
        return 1
    except Exception:
        log.exception("the fetcher failed")
        return 1
    finally:
        logging.shutdown()
    os._exit(0)  # threads may still be waiting for the registry


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
