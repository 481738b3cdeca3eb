"""Pulling: sealed layers from a repository into the local store, whole, checked, resumable.

    STORE/sealed/sha256:HEX/layer.cis     a layer, HEX of its identity
    STORE/sealed/sha256:HEX/part          one on its way
    STORE/sealed/sha256:HEX/source.json   the repository and blob that it came from

A layer is there as a whole or not at all (but see `cisfs.layer.lazy`: such a one is filled in).
Any number of processes may pull; one layer is pulled by one at a time.  Threads of its own while it
downloads.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cisfs.errors import BusyError, FormatError, WrongContentError
from cisfs.format.slotarea import SlotText
from cisfs.layer import lazy, origin, presence, slotarea
from cisfs.layer.locking import try_lock
from cisfs.layer.origin import Origin
from cisfs.layer.pulled import LAYER, directory_of
from cisfs.layer.renaming import is_at
from cisfs.layer.sealed_file import read_header, stored
from cisfs.layer.writing import sync_directory
from cisfs.registry.artifacts import PushedLayer
from cisfs.registry.bare import complete
from cisfs.registry.completing import alone, fill_in
from cisfs.registry.durable import replace_file
from cisfs.registry.found import find_header, find_keys, find_layer
from cisfs.registry.parts import placed
from cisfs.registry.repository import Repository
from cisfs.registry.session import Access
from cisfs.registry.transfer import Job, Progress, transfer

PART = "part"


@dataclass(frozen=True, slots=True)
class Pulled:
    """A layer in the store; `fetched`: its data was not there before."""

    identity: str
    path: Path
    fetched: bool


def pull(
    repository: Repository,
    identities: Sequence[str],
    store: Path,
    access: Access,
    progress: Progress | None = None,
) -> list[Pulled]:
    """Pull sealed layers; what came from this repository before gets the key slots it has now.

    Raises RegistryError, FormatError, BusyError while another pulls one of them, OSError.
    """
    jobs: list[Job] = []
    fetched: list[_Fetched] = []
    pulled = []
    with ExitStack() as undo:
        for identity in identities:
            keys = find_keys(repository, identity)
            layer = find_layer(repository, identity, keys)
            directory = directory_of(store, identity)
            path = directory / LAYER
            text = _slots(directory, repository, keys.text) if path.exists() else keys.text
            is_here = path.exists() and not lazy.is_partial(path)
            pulled.append(Pulled(identity, path, not is_here))
            if is_here:
                continue
            fd = undo.enter_context(_claimed(directory))
            find_header(repository, layer)  # so that no more is downloaded than the layer has
            jobs += _jobs(repository, layer, fd)
            source = origin_of(repository, layer, access)
            if path.exists():  # in part, and it stays that repository's
                source = Origin.read(directory)
            fetched.append(_Fetched(directory, fd, identity, text, source))
        transfer(jobs, progress)
        for each in fetched:
            each.take_place()
    return pulled


def _slots(directory: Path, repository: Repository, found: SlotText) -> SlotText:
    """Return the key slots of a layer that is here, whole or in part, from now on.

    Only the repository that it came from renews them: another may have junk in their place.
    """
    source, session = Origin.read(directory), repository.session
    if (source.registry, source.repository) == (session.registry, session.repository):
        return renew_slots(directory / LAYER, found)
    return stored(directory / LAYER)[1]


@dataclass(frozen=True, slots=True)
class _Fetched:
    """A layer all of whose parts are here, and were checked."""

    directory: Path
    fd: int
    identity: str
    text: SlotText
    source: Origin

    def take_place(self) -> None:
        """Give it its key slots and its name, or what was attached before its data."""
        part, layer = self.directory / PART, self.directory / LAYER
        if is_new := not layer.exists():
            complete(self.fd, self.identity, self.text)
        with alone(self.directory) as claimed:
            if self._is_filled_in(claimed):
                part.unlink()
            else:
                if not is_new:
                    complete(self.fd, self.identity, self.text)
                replace_file(self.directory / origin.NAME, self.source.pack())
                os.rename(part, layer)
            for name in (lazy.SOCKET, presence.NAME):
                (self.directory / name).unlink(missing_ok=True)
            sync_directory(self.directory)

    def _is_filled_in(self, claimed: int) -> bool:
        """Fill in the layer that is there; false if there is none, or none that will do.

        It is not replaced: who has it mounted could read no more than they have read.
        """
        layer = self.directory / LAYER
        if lazy.is_partial(layer):
            return fill_in(self.directory, claimed, self.fd)
        return layer.exists()


def install(
    directory: Path,
    layer: PushedLayer,
    text: SlotText,
    source: Origin,
    fetch: Callable[[int], object],
) -> None:
    """Put a layer that is not here into its directory of the store, with the key slots `text`.

    `fetch` puts its parts into the file of a descriptor and checks their digests.  Raises what
    `fetch` and `complete` raise, BusyError, OSError.
    """
    with _claimed(directory) as fd:
        os.ftruncate(fd, layer.size)
        fetch(fd)
        _Fetched(directory, fd, layer.identity, text, source).take_place()


def _jobs(repository: Repository, layer: PushedLayer, fd: int) -> list[Job]:
    """Return what downloads the parts of a layer that are not in the file yet."""
    os.ftruncate(fd, layer.size)
    return [
        Job(part.size, partial(repository.download_part, part, fd, offset))
        for part, offset in placed(layer.parts)
    ]


def renew_slots(path: Path, text: SlotText, whose: str = "the registry") -> SlotText:
    """Give a layer that is here the key slots that the registry, or `whose` they are, has.

    Returns them.  Whoever opens it checks whether they are authentic.  Raises WrongContentError if
    they are older than those that it has, FormatError if it is another layer than its directory is
    for, OSError.
    """
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        if read_header(fd).identity != path.parent.name:
            raise FormatError(f"{path} is another layer than its directory is for: move it away")
        return slotarea.update(fd, partial(_newer, text, whose))
    finally:
        os.close(fd)


def _newer(found: SlotText, whose: str, here: SlotText) -> SlotText:
    if found.revision < here.revision:
        raise WrongContentError(
            f"{whose} has older key slots (revision {found.revision}) than there are here "
            f"({here.revision}): somebody may have put them back"
        )
    return found


def origin_of(repository: Repository, layer: PushedLayer, access: Access) -> Origin:
    """Return where a layer is from, for whoever fetches more of it later."""
    session = repository.session
    ca_file = str(access.ca_file.absolute()) if access.ca_file else ""
    return Origin(
        session.registry,
        session.repository,
        tuple((part.digest, part.size) for part in layer.parts),
        access.plain_http,
        ca_file,
    )


@contextmanager
def _claimed(directory: Path) -> Iterator[int]:
    """Yield a descriptor of the file that a layer is downloaded to, by nobody else meanwhile."""
    directory.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with suppress(FileExistsError):
        directory.mkdir(mode=0o711)
        directory.chmod(0o711)  # whatever the umask: `lazy` says what for
    fd = os.open(directory / PART, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        if not _is_ours(fd, directory / PART):
            raise BusyError(f"another command is pulling {directory.name}; try again")
        with _forgotten_if_wrong(directory):
            yield fd
    finally:
        os.close(fd)


@contextmanager
def _forgotten_if_wrong(directory: Path) -> Iterator[None]:
    """Keep what broke off, which is gone on with, but nothing of what is not as it should be."""
    try:
        yield
    except (WrongContentError, FormatError):
        (directory / PART).unlink(missing_ok=True)
        raise


def _is_ours(fd: int, path: Path) -> bool:
    """Lock a file; tells whether that worked, and it still has its name."""
    return try_lock(fd) and is_at(path, fd)
