"""A container's own user namespace: which ids of the host it gets, and whether it can have one.

All of its root, and each volume, is then mounted with the owners moved (`cisfs.mount.idmap`): what
is stored has the same owners as without.  Does not know how a container is run.  Forks, so it is
for processes with one thread.

Each container gets 65536 ids that no account of the host has: some of 524288 to 1879048191, which
systemd sets aside for containers (systemd.io/UIDS-GIDS), chosen by the container's random id, and
none that /etc/subuid or /etc/subgid gives to anybody.  That two containers have the same ids is
unlikely, and leaves them as far apart as two without user namespaces are.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

from cisfs.errors import EngineError
from cisfs.mount import idmap, syscalls
from cisfs.mount.idmap import SIZE, Owners
from cisfs.runtime.account import Account
from cisfs.runtime.isolation import Isolation, Wish

_FIRST, _END = 524_288, 1_879_048_192
_PLACES = (_END - _FIRST) // SIZE
_GIVEN_AWAY = (Path("/etc/subuid"), Path("/etc/subgid"))
_PIPE = "pipe:"  # what the kernel calls one that has no name, proc(5)


def choose(identifier: str, given_away: str) -> int:
    """Return the first of the ids for the container of a hexadecimal `identifier`.

    `given_away` is the text of subuid(5) and subgid(5); what cannot be read in it is skipped.
    Raises EngineError if it leaves none.
    """
    taken = list(_ranges(given_away.splitlines()))
    start = int(identifier, 16) % _PLACES
    for number in range(_PLACES):
        first = _FIRST + (start + number) % _PLACES * SIZE
        if not any(first < end and begin < first + SIZE for begin, end in taken):
            return first
    raise EngineError("/etc/subuid and /etc/subgid give all ids away")


def _ranges(lines: Iterable[str]) -> Iterator[tuple[int, int]]:
    for line in lines:
        words = line.split(":")
        if len(words) == 3 and all(word.isascii() and word.isdigit() for word in words[1:]):
            first, count = map(int, words[1:])
            yield first, first + count


@dataclass(frozen=True, slots=True)
class Terms:
    """What is asked of a user namespace.

    `user` is whom the command is to run as; `places` are on the file systems of the root.
    """

    isolation: Isolation
    user: str | None
    identifier: str
    places: Sequence[Path]


def attempt(terms: Terms, undo: ExitStack) -> Owners | None:
    """Return the owners of a container, None for no user namespace; standard error then says why.

    `undo` lets the namespace go.  Raises EngineError if it must have one and cannot.
    """
    wish = terms.isolation.user_namespace
    if wish is Wish.NONE:
        return None
    with ExitStack() as mine:
        try:
            _check_user(terms.user or "")
            owners = _made(terms.identifier, mine)
            for place in terms.places:
                _try_out(owners, place, recursive=False)
            for volume in terms.isolation.volumes:
                _try_out(owners, Path(volume.source), recursive=True)
        except EngineError as error:
            if wish is Wish.NEEDED:
                raise EngineError(f"--userns auto: no user namespace: {error}") from None
            print(f"cisfs: note: no user namespace: {error}", file=sys.stderr, flush=True)
            return None
        undo.push(mine.pop_all())
    return owners


def _check_user(user: str) -> None:
    """Refuse numbers that it has no ids for; what a name stands for is not known yet."""
    for word in user.split(":"):
        if word.isascii() and word.isdigit() and int(word) >= SIZE:
            raise EngineError(f"--user {user}: it would have the ids 0 to {SIZE - 1}")


def _made(identifier: str, undo: ExitStack) -> Owners:
    first = choose(identifier, "".join(map(_text, _GIVEN_AWAY)))
    try:
        return undo.enter_context(idmap.moved(first))
    except OSError as error:
        raise EngineError(f"the kernel makes none ({error.strerror})") from None


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace") + "\n"
    except OSError:
        return ""  # most hosts without rootless containers have none


def _try_out(owners: Owners, place: Path, *, recursive: bool) -> None:
    try:
        os.close(owners.clone(place, recursive=recursive))
    except OSError as error:
        within = " or something mounted in it" if recursive else ""
        raise EngineError(
            f"{place}{within} cannot be mounted with other owners ({error.strerror})"
        ) from None


def enter(place: Path, owners: Owners) -> None:
    """Let the container's root, of the host nobody, go through its workspace to what is in it."""
    # The directory above stays unreadable; who knows a name in it finds a locked door.
    place.parent.chmod(0o711)
    os.chown(place, 0, owners.first)
    place.chmod(0o710)


def prepared(isolation: Isolation, place: Path, owners: Owners, undo: ExitStack) -> Isolation:
    """Mount what the container shows of the host, below `place`; return what names it there.

    Volumes have their owners moved.  Raises OSError.
    """
    place.mkdir()
    found = []
    for number, volume in enumerate(isolation.volumes):
        mountpoint = place / str(number)
        if os.path.isdir(volume.source):
            mountpoint.mkdir()
        else:
            mountpoint.touch()
        owners.mount(volume.source, mountpoint, recursive=True)
        undo.callback(syscalls.unmount, str(mountpoint), syscalls.MNT_DETACH)
        found.append(replace(volume, source=str(mountpoint)))
    sysfs = place / "sys" if isolation.host_network else None
    if sysfs is not None:
        sysfs.mkdir()
        # Without what is mounted below, which a user namespace could not take off it.
        syscalls.mount("/sys", str(sysfs), flags=syscalls.MS_BIND)
        undo.callback(syscalls.unmount, str(sysfs), syscalls.MNT_DETACH)
    return replace(isolation, volumes=tuple(found), sysfs=str(sysfs) if sysfs else None)


def check(account: Account) -> None:
    """Refuse an account that the namespace has no ids for.  Raises EngineError."""
    if any(number >= SIZE for number in (account.uid, account.gid, *account.groups)):
        raise EngineError(
            f"--user: {account.uid}:{account.gid} is beyond the ids 0 to {SIZE - 1} of a user "
            "namespace; use --userns host"
        )


def hand_over_pipes(account: Account, owners: Owners) -> None:
    """Make the standard streams that are pipes the command's own, so that it may open them anew.

    runc does that as the container's root, which may not change what somebody else has.
    """
    for descriptor in (0, 1, 2):
        try:
            if os.readlink(f"/proc/self/fd/{descriptor}").startswith(_PIPE):
                os.fchown(descriptor, owners.first + account.uid, owners.first + account.gid)
        except OSError:
            pass  # closed
