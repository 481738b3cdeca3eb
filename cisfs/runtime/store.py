"""The scratches of this host, below the store: made new, or found again under their names.

    STORE/scratch         where ephemeral ones are, in files without a name
    STORE/scratch/NAME    a persistent one: a vault that holds its image

A persistent scratch is opened by its own key if it is unlocked, or else by any of the layers above
which it lies, as long as the one that it was made with is among them.

Does not know how one is served or mounted.  One thread.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cisfs.crypto.keys import SecretKey
from cisfs.errors import (
    BusyError,
    CisfsError,
    FormatError,
    IntegrityError,
    NoKeyError,
    NotAVaultError,
    UsageError,
    WrongKeyError,
)
from cisfs.format.config import SlotFields
from cisfs.format.scratch_geometry import whole_units
from cisfs.keys.credentials import Opener, RawKey
from cisfs.layer import unlocked
from cisfs.layer.block_image import BlockImage
from cisfs.layer.scratch import EphemeralImage
from cisfs.runtime.ownership import owned
from cisfs.runtime.scratch import DEFAULT_SIZE, Kind, Scratch

if TYPE_CHECKING:
    from cisfs.layer.opening import Layer

STORE = Path("/var/lib/cisfs")
SCRATCHES = "scratch"  # the directory in it

log = logging.getLogger(__name__)


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
        return _checked(_found(path, keys), wanted)
    if not keys:
        raise NoKeyError(f"the new scratch {wanted.name} takes a layer, whose key is to open it")
    return PersistentImage.create(path, keys[0], size)


def hand_over_scratches(store: Path, old: SecretKey, new: SecretKey) -> None:
    """Let scratches that a layer's old scratch key opens be opened by its new one, too.

    Those that we may not look at are passed over, and so is one that is damaged, which is logged.
    Raises CisfsError, OSError.
    """
    for path in _places(store):
        try:
            _hand_over(path, RawKey(old.reveal()), RawKey(new.reveal()))
        except (FormatError, IntegrityError) as error:
            log.warning("scratch %s does not follow: %s", path, error)


def close_scratches(store: Path, old: SecretKey, new: SecretKey) -> None:
    """Let scratches that were handed over be opened by the new key only.

    For when the new layer has its place: before, the old key may be all that there is.  What fails
    is logged.
    """
    for path in _places(store):
        try:
            _close(path, RawKey(old.reveal()), RawKey(new.reveal()))
        except (CisfsError, OSError) as error:
            log.warning(
                "scratch %s may still be opened with the old key of the layer: %s", path, error
            )


def _places(store: Path) -> list[Path]:
    """Where the persistent scratches are; none where we may not look."""
    try:
        return sorted((store / SCRATCHES).iterdir())
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []


def _hand_over(path: Path, old: RawKey, new: RawKey) -> None:
    from cisfs.layer import keyslots, vault

    with contextlib.suppress(WrongKeyError, NotAVaultError):
        vault.master_key(path, old)
        try:
            vault.master_key(path, new)
        except WrongKeyError:
            keyslots.add(path, old, new)


def _close(path: Path, old: RawKey, new: RawKey) -> None:
    from cisfs.keys.slots import slot_id
    from cisfs.layer import keyslots, vault

    # Of one that is damaged it was said when it was to be handed over.
    with contextlib.suppress(NotAVaultError, FormatError, IntegrityError):
        of = vault.identifier(path)
        gone = [slot_id(slot) for slot in vault.slots(path) if _opens(slot, old, of)]
        if gone:
            _hand_over(path, old, new)  # it may have been made just now
            keyslots.remove(path, new, gone)


def _opens(slot: SlotFields, key: RawKey, identifier: bytes) -> bool:
    from cisfs.keys.slots import open_slots

    try:
        open_slots([slot], key, identifier)
    except CisfsError:
        return False
    return True


def _checked(image: BlockImage, wanted: Scratch) -> BlockImage:
    """Return an image that has the size that was asked for, if one was."""
    if wanted.size is None or whole_units(wanted.size) == image.size:
        return image
    image.close()
    raise UsageError(
        f"scratch {wanted.name} has a size already, {image.size} bytes, which does not change: "
        "leave size= out"
    )


def _found(path: Path, keys: Sequence[RawKey]) -> BlockImage:
    from cisfs.layer.scratch_persistent import PersistentImage

    own = unlocked.find(path)
    openers: list[Opener] = [*([own] if own else []), *keys]
    for opener in openers:
        try:
            return PersistentImage.open(path, opener)
        except WrongKeyError:
            continue
        except BusyError:
            raise BusyError(
                f"scratch {path} is in use, by another container or a command: end that first"
            ) from None
    raise NoKeyError(
        f"scratch {path} was made with another layer: name that one, too, or unlock the scratch "
        f"with: cisfs unlock {path}"
    )
