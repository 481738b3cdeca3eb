"""Pulling: sealed layers from a repository into the local store, whole, checked, resumable.

    STORE/sealed/sha256:HEX/layer.cis     a layer, HEX of its identity
    STORE/sealed/sha256:HEX/part          one on its way
    STORE/sealed/sha256:HEX/source.json   the repository and blob that it came from

A layer is there as a whole or not at all (but see `cisfs.layer.lazy`).  Any number of processes may
pull; one layer is pulled by one at a time.  Threads of its own while it downloads.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cisfs.errors import WrongContentError
from cisfs.format.slotarea import SlotText
from cisfs.layer import origin, slotarea
from cisfs.layer.origin import Origin
from cisfs.registry.artifacts import PushedLayer
from cisfs.registry.bare import complete
from cisfs.registry.descriptor import Descriptor
from cisfs.registry.download import Report
from cisfs.registry.found import Keys, find_keys, find_layer
from cisfs.registry.repository import Repository
from cisfs.registry.session import Access
from cisfs.registry.transfer import Job, Progress, transfer

LAYER, PART = "layer.cis", "part"


@dataclass(frozen=True, slots=True)
class Pulled:
    """A layer in the store; `fetched`: its data was not there before."""

    identity: str
    path: Path
    fetched: bool


def place(store: Path, identity: str) -> Path:
    """Return the directory of a pulled layer."""
    return store / "sealed" / identity


def pull(
    repository: Repository,
    identities: Sequence[str],
    store: Path,
    access: Access,
    progress: Progress | None = None,
) -> list[Pulled]:
    """Pull sealed layers; what is there already gets the key slots that the registry has now.

    Raises RegistryError, FormatError, BusyError while another pulls one of them, OSError.
    """
    jobs, pulled = [], []
    for identity in identities:
        keys = find_keys(repository, identity)
        layer = find_layer(repository, identity, keys)
        directory = place(store, identity)
        path = directory / LAYER
        fetch = not path.exists()
        pulled.append(Pulled(identity, path, fetch))
        if fetch:
            source = origin_of(repository, layer.blob, access)
            jobs.append(_job(repository, directory, layer, keys.text, source))
        else:
            renew_slots(path, keys)
    transfer(jobs, progress)
    return pulled


def renew_slots(path: Path, keys: Keys) -> None:
    """Give a layer that is here the key slots that the registry has.

    Whoever opens it checks whether they are authentic.  Raises WrongContentError if they are older
    than those that it has, FormatError, OSError.
    """
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        slotarea.update(fd, partial(_newer, keys.text))
    finally:
        os.close(fd)


def _newer(found: SlotText, here: SlotText) -> SlotText:
    if found.revision < here.revision:
        raise WrongContentError(
            f"the registry has older key slots (revision {found.revision}) than there are here "
            f"({here.revision}): somebody may have put them back"
        )
    return found


def origin_of(repository: Repository, blob: Descriptor, access: Access) -> Origin:
    """Return where a layer is from, for whoever fetches more of it later."""
    session = repository.session
    ca_file = str(access.ca_file.absolute()) if access.ca_file else ""
    return Origin(
        session.registry,
        session.repository,
        blob.digest,
        blob.size,
        access.plain_http,
        ca_file,
    )


def _job(
    repository: Repository, directory: Path, layer: PushedLayer, text: SlotText, source: Origin
) -> Job:
    def run(report: Report) -> None:
        with _claimed(directory) as fd:
            if (directory / LAYER).exists():  # by another, meanwhile
                report(layer.blob.size)
                return
            repository.download(layer.blob, fd, report)
            complete(fd, layer.identity, text)
            _note(directory, source)
            os.rename(directory / PART, directory / LAYER)
            _sync(directory)

    return Job(layer.blob.size, run)


@contextmanager
def _claimed(directory: Path) -> Iterator[int]:
    """Yield a descriptor of the file that a layer is downloaded to, by nobody else meanwhile."""
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    while True:
        fd = os.open(directory / PART, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(fd), os.lstat(directory / PART)):
                    yield fd
                    return
            if (directory / LAYER).exists():
                yield fd
                return
        finally:
            os.close(fd)


def _note(directory: Path, source: Origin) -> None:
    temporary = directory / f"{origin.NAME}.new"
    temporary.write_bytes(source.pack())
    temporary.rename(directory / origin.NAME)


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
