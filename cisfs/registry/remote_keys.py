"""Key slots of layers that are in a registry, changed there: the data is not moved.

What travels is the header, the key slots and a manifest, less than 64 KiB in all.  The tag moves in
one step; of two who change it at once one may win, which both can see in the list.  One thread.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import reduce

from cisfs.errors import BusyError, FormatError, NotFoundError, RegistryError, UsageError
from cisfs.format.config import SlotFields
from cisfs.format.signatures import added
from cisfs.format.slotarea import SlotText
from cisfs.keys.credentials import Opener
from cisfs.keys.slots import SlotChange
from cisfs.layer import sealed
from cisfs.registry import artifacts
from cisfs.registry.artifacts import keys_blob, keys_tag
from cisfs.registry.descriptor import Descriptor
from cisfs.registry.found import find_header, find_keys, find_layer
from cisfs.registry.repository import Repository


def slots(repository: Repository, identity: str) -> tuple[SlotFields, ...]:
    """Return the key slots of a layer; nothing is authenticated.  Raises RegistryError."""
    return find_keys(repository, identity).text.slots


def has_keys(repository: Repository, identity: str) -> bool:
    """Tell whether a repository has key slots of a layer."""
    return repository.digest_at(keys_tag(identity)) is not None


def change_slots(
    repository: Repository, identity: str, opener: Opener, change: SlotChange
) -> SlotText:
    """Put others in the place of the key slots of a layer in a registry; returns what is there now.

    Raises what opening the layer raises, what `change` raises, BusyError if another changed them
    meanwhile, RegistryError.
    """
    keys = find_keys(repository, identity)
    header = find_header(repository, find_layer(repository, identity, keys))
    where = f"{repository.name}@{identity}"
    changed = sealed.changed_text(where, header, keys.text, opener, change)
    put(repository, identity, changed, keys.layers, keys.manifest.descriptor.digest)
    return changed


@dataclass(frozen=True, slots=True)
class Standing:
    """Key slots that a push leaves in a registry.

    `before` is the digest of what is there until then, None for nothing; `is_kept`: they were
    changed there since the layer that is pushed was.
    """

    text: SlotText
    before: str | None
    is_kept: bool = False


def standing(repository: Repository, identity: str, ours: SlotText) -> Standing:
    """Return what key slots a layer is to have in a registry, when it is pushed with `ours`.

    Later changes stay, as `change_slots` makes them there only; signatures of both stay.  Junk is
    replaced.  Raises UsageError if both were changed, each in its own way; RegistryError.
    """
    try:
        keys = find_keys(repository, identity)
    except NotFoundError:
        return Standing(ours, None)
    except FormatError:
        return Standing(ours, repository.digest_at(keys_tag(identity)))
    there = keys.text
    if there.revision == ours.revision and there.body() != ours.body():
        raise UsageError(
            f"the key slots of {identity} were changed in {repository.name} and in the layer that "
            f"is pushed, each in its own way (revision {ours.revision}): change those that are "
            "right once more, with cisfs key"
        )
    is_kept = there.revision > ours.revision
    signatures = reduce(added, ours.signatures, there.signatures)
    text = replace(there if is_kept else ours, signatures=signatures)
    return Standing(text, keys.manifest.descriptor.digest, is_kept)


def put(
    repository: Repository, identity: str, text: SlotText, layers: Descriptor, before: str | None
) -> None:
    """Have `text` be the key slots of a layer of the artifact `layers`.

    `before` is the digest of what they were when `text` was made, None for nothing.  Raises
    BusyError if they are something else by now, RegistryError.
    """
    content = keys_blob(text)
    blob = Descriptor.of(content, artifacts.KEYS_TYPE)
    repository.upload_bytes(blob, content)
    manifest = artifacts.keys_artifact(blob, identity, layers)
    tag = keys_tag(identity)
    if repository.digest_at(tag) != before:
        raise BusyError(f"the key slots of {identity} were changed by another just now; try again")
    repository.put_manifest(manifest, tag)
    if repository.digest_at(tag) != manifest.descriptor.digest:
        raise RegistryError(
            f"the key slots of {identity} were changed by another at the same time: look at them "
            "with cisfs key list, and try again"
        )
