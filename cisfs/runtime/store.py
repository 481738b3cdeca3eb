"""The scratches of this host, below the store: made new, or found again under their names.

    STORE/scratch         where ephemeral ones are, in files without a name
    STORE/scratch/NAME    a persistent one: a vault that holds its image

A persistent scratch is opened by its own key if it is unlocked, or else by any of the layers above
which it lies, as long as the one that it was made with is among them.

Does not know how one is served or mounted.  One thread.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cisfs.crypto.keys import SecretKey
from cisfs.errors import NoKeyError, NotAVaultError, WrongKeyError
from cisfs.keys.credentials import Opener, RawKey
from cisfs.layer import unlocked
from cisfs.layer.scratch import BlockImage, EphemeralImage
from cisfs.runtime.ownership import owned
from cisfs.runtime.scratch import DEFAULT_SIZE, Kind, Scratch

if TYPE_CHECKING:
    from cisfs.layer.opening import Layer

STORE = Path("/var/lib/cisfs")
SCRATCHES = "scratch"  # the directory in it


def scratch_place(wanted: Scratch, store: Path) -> Path | None:
    """Return where a scratch is, or will be, found again; None unless it is a persistent one."""
    return store / SCRATCHES / wanted.name if wanted.kind is Kind.PERSISTENT else None


def scratch_image(wanted: Scratch, store: Path, layers: Sequence[Layer]) -> BlockImage:
    """Return the image of an ephemeral or persistent scratch; `layers` are those of the container.

    Raises NoKeyError, WrongKeyError, BusyError, other CisfsErrors, OSError.
    """
    directory = store / SCRATCHES
    owned(store, 0o755)
    owned(directory, 0o700)
    size = wanted.size or DEFAULT_SIZE
    if wanted.kind is Kind.EPHEMERAL:
        return EphemeralImage(directory, size)
    from cisfs.layer.scratch_persistent import PersistentImage

    path = directory / wanted.name
    keys = [RawKey(layer.scratch_key().reveal()) for layer in layers]
    if path.exists():
        return _found(path, keys)
    if not keys:
        raise NoKeyError(f"the new scratch {wanted.name} takes a layer, whose key is to open it")
    return PersistentImage.create(path, keys[0], size)


def hand_over_scratches(store: Path, old: SecretKey, new: SecretKey) -> None:
    """Let scratches that a layer's old scratch key opens be opened by its new one, too.

    Raises CisfsError, OSError.
    """
    from cisfs.layer import keyslots, vault

    directory = store / "scratch"
    for path in sorted(directory.iterdir()) if directory.is_dir() else []:
        before, after = RawKey(old.reveal()), RawKey(new.reveal())
        with contextlib.suppress(WrongKeyError, NotAVaultError):
            vault.master_key(path, before)
            try:
                vault.master_key(path, after)
            except WrongKeyError:
                keyslots.add(path, before, after)


def _found(path: Path, keys: Sequence[RawKey]) -> BlockImage:
    from cisfs.layer.scratch_persistent import PersistentImage

    own = unlocked.find(path)
    openers: list[Opener] = [*([own] if own else []), *keys]
    for opener in openers:
        try:
            return PersistentImage.open(path, opener)
        except WrongKeyError:
            continue
    raise NoKeyError(
        f"scratch {path} was made with another layer: name that one, too, or unlock the scratch "
        f"with: cisfs unlock {path}"
    )
