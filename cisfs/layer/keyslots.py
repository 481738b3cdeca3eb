"""Key slots added to and taken from a vault or sealed layer, while it may be mounted.

Does not know how they are stored nor what a slot holds.  Any number of processes: each change is
made to what is there at that instant.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from cisfs.crypto.keys import SecretKey
from cisfs.errors import UsageError
from cisfs.format.config import MAX_SLOTS, SlotFields
from cisfs.keys.credentials import Opener, Recipients
from cisfs.keys.slots import SlotChange, Slots, new_slots, slot_id
from cisfs.layer import sealed, vault
from cisfs.layer.opening import is_sealed

_LEAST_DIGITS = 4  # of an id: a shorter beginning is a typing mistake more often than not


def slots(path: Path) -> Slots:
    """Return the key slots of the layer at `path`; nothing is authenticated.

    Raises as `cisfs.layer.opening.describe` does.
    """
    return sealed.slots(path) if is_sealed(path) else vault.slots(path)


def add(path: Path, opener: Opener, recipients: Recipients) -> list[SlotFields]:
    """Let each of `recipients` open the layer, too; returns their slots.

    Raises UsageError when there is no room, what opening the layer raises, CisfsError when a device
    or service fails.
    """
    added: list[SlotFields] = []
    _change(path, opener, adding(str(path), recipients, added))
    return added


def remove(path: Path, opener: Opener, wanted: Sequence[str]) -> list[SlotFields]:
    """Take away the slots whose ids begin as `wanted` say, each one; returns them.

    Raises UsageError, with nothing changed, for an id that is not there or not only once, and when
    none would be left; what opening the layer raises.
    """
    removed: list[SlotFields] = []
    _change(path, opener, removing(str(path), wanted, removed))
    return removed


def adding(where: str, recipients: Recipients, added: list[SlotFields]) -> SlotChange:
    """Return the change that adds slots, and puts them into `added`, too."""

    def change(master: SecretKey, identifier: bytes) -> Callable[[Slots], Slots]:
        added[:] = new_slots(master, recipients, identifier)
        return partial(_with, where, added)

    return change


def removing(where: str, wanted: Sequence[str], removed: list[SlotFields]) -> SlotChange:
    """Return the change that takes slots away, and puts them into `removed`."""

    def without(found: Slots) -> Slots:
        removed[:] = [_named(where, found, each) for each in dict.fromkeys(wanted)]
        kept = tuple(slot for slot in found if slot not in removed)
        if not kept:
            raise UsageError(
                f"nobody could open {where} without these key slots; add another one first"
            )
        return kept

    return lambda _master, _identifier: without


def _with(where: str, added: Sequence[SlotFields], found: Slots) -> Slots:
    if len(found) + len(added) > MAX_SLOTS:
        raise UsageError(f"{where} has {len(found)} key slots; there is room for {MAX_SLOTS}")
    return (*found, *added)


def _change(path: Path, opener: Opener, change: SlotChange) -> None:
    (sealed if is_sealed(path) else vault).change_slots(path, opener, change)


def _named(where: str, found: Slots, wanted: str) -> SlotFields:
    if len(wanted) < _LEAST_DIGITS:
        raise UsageError(f"key slot {wanted!r}: give at least {_LEAST_DIGITS} digits of its id")
    named = [slot for slot in found if slot_id(slot).startswith(wanted)]
    if len(named) != 1:
        why = "two key slots of that id: give more digits" if named else "no such key slot"
        raise UsageError(f"key slot {wanted!r}: {why}; list them with: cisfs key list {where}")
    return named[0]
