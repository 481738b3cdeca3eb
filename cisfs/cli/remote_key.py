"""`cisfs key list|add|remove docker://IMAGE`: the key slots of sealed layers in a registry.

Calls `cisfs.registry.remote_keys`, prints.  Their data is not moved.  One call per process.
"""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cisfs.keys.credentials import Opener
    from cisfs.registry.reference import Reference
    from cisfs.registry.repository import Repository


def run(args: argparse.Namespace) -> int:
    """List or change the slots; return 0."""
    from cisfs.cli.registries import reference_of, repository_of
    from cisfs.errors import UsageError

    if args.action == "rotate":
        raise UsageError("what is in a registry is not rotated: rotate the layer, and push it")
    reference = reference_of(args.layer)
    with repository_of(args, reference) as repository:
        identities = _identities(repository, reference)
        {"list": _list, "add": _add, "remove": _remove}[args.action](repository, identities, args)
    return 0


def _identities(repository: Repository, reference: Reference) -> tuple[str, ...]:
    """Return the layer that a reference names by its identity, or those of the image that it is."""
    from cisfs.cli.registries import machine
    from cisfs.errors import NotFoundError, UsageError
    from cisfs.registry.found import choose, find_image
    from cisfs.registry.remote_keys import has_keys

    if reference.digest is not None and has_keys(repository, reference.digest):
        return (reference.digest,)
    try:
        found = repository.manifest(reference.target)
    except NotFoundError:
        if reference.digest is None:
            raise
        raise NotFoundError(
            f"{repository.name} has neither an image nor a sealed layer {reference.digest}"
        ) from None
    image = find_image(repository, choose(found, repository.described, machine()))
    if not image.identities:
        raise UsageError(f"{reference} has no sealed layers")
    return image.identities


def _list(repository: Repository, identities: tuple[str, ...], args: argparse.Namespace) -> None:
    from cisfs.cli.slot_list import print_slots
    from cisfs.keys.slots import describe_slots
    from cisfs.registry import remote_keys

    slots = {each: remote_keys.slots(repository, each) for each in identities}
    if args.json:
        layers = [
            {"identity": each, "slots": describe_slots(found)} for each, found in slots.items()
        ]
        print(json.dumps({"repository": repository.name, "layers": layers}, indent=2))
        return
    for identity, found in slots.items():
        if len(slots) > 1:
            print(f"{identity}:")
        print_slots(found)


def _add(repository: Repository, identities: tuple[str, ...], args: argparse.Namespace) -> None:
    from cisfs.cli.slot_list import print_slots
    from cisfs.format.config import SlotFields
    from cisfs.keys import options
    from cisfs.layer import keyslots
    from cisfs.registry import remote_keys

    recipients, opener = options.recipients(args), _opener(repository, args)
    for identity in identities:
        added: list[SlotFields] = []
        change = keyslots.adding(f"{repository.name}@{identity}", recipients, added)
        remote_keys.change_slots(repository, identity, opener, change)
        print_slots(added)


def _remove(repository: Repository, identities: tuple[str, ...], args: argparse.Namespace) -> None:
    from cisfs.cli.slot_list import print_removed
    from cisfs.errors import UsageError
    from cisfs.format.config import SlotFields
    from cisfs.layer import keyslots
    from cisfs.registry import remote_keys

    if len(identities) > 1:
        raise UsageError(
            "the image has several sealed layers, whose slots have ids of their own: name one, as "
            f"docker://{repository.name}@sha256:..."
        )
    removed: list[SlotFields] = []
    (identity,) = identities
    change = keyslots.removing(f"docker://{repository.name}@{identity}", args.slots, removed)
    remote_keys.change_slots(repository, identity, _opener(repository, args), change)
    print_removed(removed)


def _opener(repository: Repository, args: argparse.Namespace) -> Opener:
    """Return what opens the layers: what was named, what stands ready, or what is typed."""
    from functools import partial

    from cisfs.keys import credentials, options
    from cisfs.keys.credentials import Identities
    from cisfs.layer import unlocked

    named = options.named_opener(args)
    if named is not None:
        return named
    ask = partial(credentials.typed, f"passphrase for the sealed layers of {repository.name}")
    return Identities(unlocked.ready(), ask)
