"""`cisfs key rotate`: chooses whom the new key is for, shows progress, reports.

Does not know how anything is rotated (`cisfs.layer.rotation`).  One call per process.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from cisfs.cli.interruption import interruptible
from cisfs.cli.reporting import progress_line, show

if TYPE_CHECKING:
    from cisfs.crypto.keys import SecretKey
    from cisfs.format.config import SlotFields
    from cisfs.keys.credentials import Credential, Opener
    from cisfs.keys.wrapping import Recipient
    from cisfs.layer.rotation_request import Rotated


def run(path: Path, args: argparse.Namespace) -> int:
    """Rotate; return 0, or 128+N when signal N ended it."""
    advice = "; it is as it was, and the same command goes on"
    return interruptible(lambda: _run(path, args), f"rotating {path}", advice)


def _run(path: Path, args: argparse.Namespace) -> int:
    _report(path, args, _rotate(path, args))
    return 0


def _rotate(path: Path, args: argparse.Namespace) -> Rotated:
    from cisfs.keys.reopening import asking_once
    from cisfs.layer import unlocked
    from cisfs.layer.rotation import rotate
    from cisfs.runtime.store import STORE, close_scratches

    opener = asking_once(unlocked.opener(path, args))  # what is typed counts as given
    with progress_line(args, "encrypting") as shown:
        return rotate(
            path,
            opener,
            partial(_recipients, path, args, opener),
            workers=args.workers,
            progress=partial(show, shown, "encrypting"),
            switching=_switching,
            switched=partial(close_scratches, STORE),
        )


def _switching(old: SecretKey, new: SecretKey) -> None:
    from cisfs.build import interrupts
    from cisfs.runtime.store import STORE, hand_over_scratches

    hand_over_scratches(STORE, old, new)
    interrupts.settle()  # in a moment it is not as it was, and only the old one is left to go


def _recipients(
    path: Path, args: argparse.Namespace, opener: Opener, slots: Sequence[SlotFields]
) -> list[Credential | Recipient]:
    from cisfs.errors import UsageError
    from cisfs.keys import options
    from cisfs.keys.reopening import secret_of, secrets_of
    from cisfs.keys.rewrapping import recipients_of
    from cisfs.keys.slots import slot_id
    from cisfs.layer.opening import key_id

    ids = {slot_id(slot) for slot in slots}
    for each in args.drop:
        if each not in ids:
            raise UsageError(f"--drop {each}: no such key slot; see cisfs key list {path}")
    added = options.recipients(args)
    given = (secret_of(each) for each in added)
    secrets = [*secrets_of(opener), *(each for each in given if each is not None)]
    kept = recipients_of(slots, secrets, bytes.fromhex(key_id(path)), args.drop)
    found = [*kept, *(each for each in added if each not in kept)]
    if not found:
        raise UsageError("nobody could open it afterwards: keep a key slot, or name a recipient")
    return found


def _report(path: Path, args: argparse.Namespace, rotated: Rotated) -> None:
    if args.json:
        document = {
            "path": str(path),
            "id": rotated.key_id,
            "identity": rotated.identity,
            "continued": rotated.continued,
        }
        print(json.dumps(document, indent=2))
        return
    identity = f", {rotated.identity}" if rotated.identity else ""
    print(
        f"rotated {path}{identity}; who was removed or dropped can open neither it nor what is "
        "written to it"
    )
