"""A sealed layer on disk: opening one with a key, and reading its image.

docs/FORMAT.md, sections 8 to 11.  Does not know what is in the image, nor FUSE.  An opened layer
survives fork and holds a shared lock, which goes with the last copy.  A reader belongs to one
thread of one process: make it after the fork.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from hmac import compare_digest
from hmac import digest as hmac_digest
from pathlib import Path
from typing import Self

from cisfs.crypto.keys import LayerKeys, SecretKey
from cisfs.crypto.units import XtsCipher
from cisfs.errors import BusyError, IntegrityError
from cisfs.format import sealed as form
from cisfs.format.config import SlotFields
from cisfs.format.sealed import LayerHeader
from cisfs.format.slotarea import SlotText
from cisfs.keys.credentials import Opener
from cisfs.keys.signing import describe_signatures
from cisfs.keys.slots import SlotChange, describe_slots, open_slots, unauthentic
from cisfs.layer import lazy, slotarea
from cisfs.layer.candidate import Admission, Candidate
from cisfs.layer.image_reader import ImageReader
from cisfs.layer.lazy import LazyReader, PartialLayer
from cisfs.layer.pulled import is_stored
from cisfs.layer.sealed_file import (
    naming,
    open_file,
    read_header,
    read_locked,
    stored,
    update_slots,
)

KEPT_UNITS = 32  # 2 MiB for each reader, with units of 64 KiB


def describe(path: Path) -> dict[str, object]:
    """Return what a sealed layer says to anyone, for `inspect`; nothing is authenticated.

    Raises NotAVaultError, FormatError or UnsupportedVersionError, OSError.
    """
    header, text = stored(path)
    here = lazy.units_here(path)
    return {
        "type": "sealed layer",
        "path": str(path),
        "version": header.version,
        "layer_id": header.layer_id.hex(),
        "identity": header.identity,
        "content": "EROFS",
        "cipher": "AES-256-XTS",
        "hashes": "BLAKE3, 256 bits per unit",
        "unit_size": header.unit_size,
        "image_size": header.image_size,
        "stored_size": header.geometry.stored_size,
        **({"units_here": f"{here[0]} of {here[1]}"} if here is not None else {}),
        "base": None if header.base == form.UNBOUND else f"sha256:{header.base.hex()}",
        "slots": describe_slots(text.slots),
        "signatures": describe_signatures(text.signatures, header.identity),
    }


def identifier(path: Path, *, whole: bool = True) -> bytes:
    """Return the 16-byte id of the layer at `path`; nothing is authenticated.

    `whole`: what is damaged behind its header has none.  Raises as `describe` does.
    """
    if whole:
        return stored(path)[0].layer_id
    fd = open_file(path)
    try:
        with naming(path):
            return read_header(fd).layer_id
    finally:
        os.close(fd)


def master_key(path: Path, opener: Opener) -> SecretKey:
    """Return the layer key of the layer at `path`.  Raises as `SealedLayer.open` does.

    Opened layers do not hold it: their workers have no use for it.
    """
    header, text = stored(path)
    return _opened(path, header, text, opener)[0]


def slots(path: Path) -> tuple[SlotFields, ...]:
    """Return the key slots of the layer at `path`; nothing is authenticated.

    Raises as `describe` does.
    """
    return stored(path)[1].slots


def change_slots(path: Path, opener: Opener, change: SlotChange) -> None:
    """Put others in the place of the key slots; the layer may be mounted meanwhile.

    Data and identity stay, and so do signatures; the layer can be opened at every instant
    (`cisfs.layer.slotarea`).  Raises as `SealedLayer.open` does, what `change` raises, UsageError
    if there is no room, BusyError if another layer takes its place meanwhile.
    """
    header, text = stored(path)
    update_slots(path, header.identity, _changing(path, header, text, opener, change))


def changed_text(
    where: str, header: LayerHeader, text: SlotText, opener: Opener, change: SlotChange
) -> SlotText:
    """Return what `change` makes of the key slots of a layer that is elsewhere, `where` in words.

    Raises what opening it raises, what `change` raises, UsageError if there is no room.
    """
    changed = _changing(where, header, text, opener, change)(text)
    slotarea.packed(changed)  # or whoever pulls it could not write it
    return changed


def slots_mac(text: SlotText, keys: LayerKeys) -> bytes:
    """Return the code over the slots; b"" where none is needed (docs/FORMAT.md, section 10)."""
    if not text.needs_mac:
        return b""
    return hmac_digest(keys.slots_mac, text.body(), "sha256")


class SealedLayer:
    """An opened layer: its header, its keys, its descriptor with the lock."""

    def __init__(
        self,
        path: Path,
        fd: int,
        header: LayerHeader,
        slots: tuple[SlotFields, ...],
        keys: LayerKeys,
        partial: PartialLayer | None,
    ) -> None:
        """Used by `open` only."""
        self.path = path
        self.fd = fd
        self.header = header
        self.slots = slots
        self.geometry = header.geometry
        self.identity = header.identity
        self.partial = partial  # what is known of it while it is not all here
        self._keys = keys

    @classmethod
    def open(
        cls,
        path: Path,
        credential: Opener | Callable[[], Opener],
        admission: Admission | None = None,
    ) -> Self:
        """Open the layer at `path`, locked against changes; of the image nothing is read yet.

        `credential` may be a function, called only when the layer is there and as it should be, and
        when `admission`, which is asked before, has let it in.  Raises NotAVaultError, FormatError,
        UnsupportedVersionError, BusyError, WrongKeyError, IntegrityError, OSError, what `admission`
        raises.
        """
        with ExitStack() as undo:
            fd = open_file(path)
            undo.callback(os.close, fd)
            header, text = read_locked(fd, path)
            # Before anybody is asked for a passphrase: what is found is about what was opened.
            partial = lazy.find(path, header)
            if partial is not None:
                undo.callback(partial.close)
            if is_stored(path) and not os.path.samestat(os.stat(path), os.fstat(fd)):
                raise BusyError(f"layer {path} was replaced just now; try again")
            if admission is not None:
                admission(Candidate(path, fd, header.identity, text.signatures))
            offered = credential() if callable(credential) else credential
            _, keys = _opened(path, header, text, offered)
            undo.pop_all()
        return cls(path.absolute(), fd, header, text.slots, keys, partial)

    @property
    def image_size(self) -> int:
        """Bytes in the image."""
        return self.header.image_size

    def scratch_key(self) -> SecretKey:
        """Return the key of persistent scratches made for this layer's containers."""
        return self._keys.scratch

    def rebound(self, base: bytes) -> LayerHeader:
        """Return what the header would be if the layer were bound to another base."""
        header = replace(self.header, base=base)
        return replace(header, mac=hmac_digest(self._keys.header_mac, header.body(), "sha256"))

    def reader(
        self,
        *,
        kept_units: int = KEPT_UNITS,
        before_waiting: Callable[[], None] = lambda: None,
    ) -> ImageReader:
        """Return a new reader of the image, for this process; at most `kept_units` stay decrypted.

        It reads from the layer's descriptor, which stays open meanwhile, and calls `before_waiting`
        each time before it waits for data that is not in memory.  While the layer is `partial`,
        reading raises AbsentError for what is not here.
        """
        xts = XtsCipher(self._keys.units)
        if self.partial is None:
            return ImageReader(self, xts, kept_units, before_waiting)
        return LazyReader(self, xts, kept_units, before_waiting, self.partial.presence)

    def close(self) -> None:
        """Close this process's descriptor; the lock goes with the last copy.  Raises OSError."""
        if self.partial is not None:
            self.partial.close()
        os.close(self.fd)

    def abandon(self) -> None:
        """Close this process's copy of a layer that a forked process serves on."""
        self.close()


def _opened(
    path: Path | str, header: LayerHeader, text: SlotText, opener: Opener
) -> tuple[SecretKey, LayerKeys]:
    """Return the layer key that `opener` gives, and the keys made of it.

    Header and slots are authentic under them.
    """
    with naming(path):
        master = open_slots(text.slots, opener, header.layer_id)
        keys = LayerKeys.derive(master, header.layer_id)
        if not compare_digest(hmac_digest(keys.header_mac, header.body(), "sha256"), header.mac):
            raise unauthentic(opener, path, "its header was altered by someone without the key")
        _check_slots(text, keys)
    return master, keys


def _changing(
    path: Path | str, header: LayerHeader, text: SlotText, opener: Opener, change: SlotChange
) -> Callable[[SlotText], SlotText]:
    """Open the layer, and return what makes a changed text of an authentic one."""
    master, keys = _opened(path, header, text, opener)
    make = change(master, header.layer_id)

    def changed(found: SlotText) -> SlotText:
        _check_slots(found, keys)
        after = replace(found, slots=make(found.slots), mac=b"", revision=found.revision + 1)
        return replace(after, mac=slots_mac(after, keys))

    return changed


def _check_slots(text: SlotText, keys: LayerKeys) -> None:
    if not compare_digest(slots_mac(text, keys), text.mac):
        raise IntegrityError("its key slots were altered by someone without the key")
