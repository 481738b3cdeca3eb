"""Key slots of layers that are in a registry, changed there: the data is not moved.

What travels is the header, the key slots and a manifest, less than 64 KiB in all.  The tag moves in
one step; of two who change it at once one may win, which both can see in the list.  One thread.
"""

from __future__ import annotations

from cisfs.errors import BusyError, RegistryError
from cisfs.format.config import SlotFields
from cisfs.format.sealed_geometry import HEADER_SIZE
from cisfs.format.slotarea import SlotText
from cisfs.keys.credentials import Opener
from cisfs.keys.slots import SlotChange
from cisfs.layer import sealed
from cisfs.registry import artifacts
from cisfs.registry.artifacts import keys_blob, keys_tag
from cisfs.registry.bare import checked_header
from cisfs.registry.descriptor import Descriptor
from cisfs.registry.found import Keys, find_keys, find_layer
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
    layer = find_layer(repository, identity, keys)
    with repository.open_range(layer.parts[0], 0, HEADER_SIZE) as pieces:
        header = checked_header(b"".join(pieces), identity)
    where = f"{repository.name}@{identity}"
    changed = sealed.changed_text(where, header, keys.text, opener, change)
    _replace(repository, identity, keys, changed)
    return changed


def _replace(repository: Repository, identity: str, keys: Keys, text: SlotText) -> None:
    content = keys_blob(text)
    blob = Descriptor.of(content, artifacts.KEYS_TYPE)
    repository.upload_bytes(blob, content)
    manifest = artifacts.keys_artifact(blob, identity, keys.layers)
    tag = keys_tag(identity)
    if repository.digest_at(tag) != keys.manifest.descriptor.digest:
        raise BusyError(f"the key slots of {identity} were changed by another just now; try again")
    repository.put_manifest(manifest, tag)
    if repository.digest_at(tag) != manifest.descriptor.digest:
        raise RegistryError(
            f"the key slots of {identity} were changed by another at the same time: look at them "
            "with cisfs key list, and try again"
        )
