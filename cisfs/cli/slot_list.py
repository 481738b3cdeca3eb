"""Key slots, printed one a line.

Does not know where they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cisfs.format.config import SlotFields


def print_slots(slots: Iterable[SlotFields]) -> None:
    """Print what each slot is known by, and for whom it is."""
    from cisfs.format.said import printable
    from cisfs.keys.slots import in_words, slot_id

    for slot in slots:
        kind = printable(str(slot["type"]))
        print(f"{slot_id(slot)}  {kind:<12}  {in_words(slot)}".rstrip())


def print_removed(slots: Iterable[SlotFields]) -> None:
    """Print which slots are gone."""
    from cisfs.format.said import printable
    from cisfs.keys.slots import slot_id

    for slot in slots:
        print(f"removed {slot_id(slot)} {printable(str(slot['type']))}")
