"""What is known on this host of encrypted layers: unlocked or not, mounted where, used by whom.

Puts together what the keyring, the mount table and the lists of containers say, as far as this user
may see them.  Does not open any layer.  Looks anew at each call.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from cisfs.errors import CisfsError, EngineError, NotAVaultError
from cisfs.keys import keyring
from cisfs.keys.keyring import Terms
from cisfs.layer import store as layers
from cisfs.layer.opening import key_id
from cisfs.layer.pulled import LAYER, SEALED
from cisfs.mount.mounted import Mounted, mounted
from cisfs.runtime import usage
from cisfs.runtime.store import SCRATCHES, STORE
from cisfs.runtime.usage import User


@dataclass(frozen=True, slots=True)
class Status:
    """What is known of a layer, or of a key whose layer is not known here: `path` is None then.

    `key` is the hex id of its key, "" if the layer does not say, and `trouble` why.  `terms` are
    None when it is locked, `users` where only root may look.
    """

    path: Path | None
    key: str
    trouble: str
    terms: Terms | None
    mountpoints: tuple[Path, ...]
    users: tuple[User, ...] | None


def of_layers(paths: Iterable[Path]) -> list[Status]:
    """Return the status of the layers at some paths.  Raises what `key_id` raises."""
    host = _Host.seen()
    return [host.status(path.resolve(), key_id(path)) for path in paths]


def of_all() -> list[Status]:
    """Return the status of all layers that are known here, and then of keys without one.

    Known are those in the host's directory of layers, what is mounted or used by containers, and
    pulled layers and persistent scratches that are unlocked.
    """
    host = _Host.seen()
    unlocked = set(_unlocked())
    found = [each for path in sorted(host.known()) if (each := host.look(path)) is not None]
    pulled = [each / LAYER for each in _entries(layers.local() / SEALED)]
    for path in (*pulled, *_entries(STORE / SCRATCHES)):
        each = host.look(path)
        if each is not None and each.key in unlocked and each not in found:
            found.append(each)
    orphans = sorted(unlocked - {each.key for each in found})
    return found + [host.status(None, key) for key in orphans]


@dataclass(frozen=True, slots=True)
class _Host:
    """What mounts and containers there are."""

    mounts: list[Mounted]
    users: list[User] | None

    @classmethod
    def seen(cls) -> _Host:
        users: list[User] | None = None
        with contextlib.suppress(PermissionError, EngineError):
            users = usage.users()
        return cls(mounted(), users)

    def known(self) -> set[Path]:
        """Return the paths of layers."""
        held = [each for user in self.users or () for each in user.holdings]
        return {
            *(path.resolve() for path in _entries(layers.DIRECTORY)),
            *(each.layer for each in self.mounts),
            *(Path(each.path) for each in held),
        }

    def look(self, path: Path) -> Status | None:
        """Return the status of what is at a path; None if that is neither layer nor in use."""
        try:
            return self.status(path, key_id(path))
        except (CisfsError, OSError) as error:
            trouble = error.strerror if isinstance(error, OSError) else None
            found = self.status(path, "", trouble or str(error))
            is_layer = not isinstance(error, NotAVaultError)
            return found if is_layer or found.mountpoints or found.users else None

    def status(self, path: Path | None, key: str, trouble: str = "") -> Status:
        """Return what is known of a path and a key."""
        return Status(
            path=path,
            key=key,
            trouble=trouble,
            terms=keyring.terms(key) if key else None,
            mountpoints=tuple(each.mountpoint for each in self.mounts if each.layer == path),
            users=None if self.users is None else tuple(self._users(path, key)),
        )

    def _users(self, path: Path | None, key: str) -> Iterator[User]:
        return (user for user in self.users or () if user.uses(path, key))


def _unlocked() -> list[str]:
    with contextlib.suppress(CisfsError):  # where there are no keyrings, nothing is in them
        return keyring.names()
    return []


def _entries(directory: Path) -> list[Path]:
    with contextlib.suppress(OSError):  # it is not there, or not ours to see
        return sorted(directory.iterdir())
    return []
