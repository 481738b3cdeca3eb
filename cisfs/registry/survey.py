"""What an image in a registry shows to anyone who may pull it: its public part, and of the rest who
can open it, who has signed it, and samples.

Takes no key and changes nothing.  Does not know how it is shown.  One thread.
"""

from __future__ import annotations

from dataclasses import dataclass

from cisfs.format.config import SlotFields
from cisfs.format.sealed import LayerHeader
from cisfs.format.signatures import Signature
from cisfs.registry import samples
from cisfs.registry.artifacts import PushedLayer
from cisfs.registry.descriptor import Descriptor
from cisfs.registry.found import find_artifact, find_header, find_image, find_keys
from cisfs.registry.manifest import Manifest
from cisfs.registry.ocicrypt import packets
from cisfs.registry.ocicrypt.mediatypes import is_encrypted
from cisfs.registry.repository import Repository
from cisfs.registry.samples import Samples


@dataclass(frozen=True, slots=True)
class Sealed:
    """A sealed layer: `header` is what the identity names; nobody vouches for `slots` but a key."""

    layer: PushedLayer
    header: LayerHeader
    slots: tuple[SlotFields, ...]
    signatures: tuple[Signature, ...]
    samples: Samples


@dataclass(frozen=True, slots=True)
class Encrypted:
    """A layer that ocicrypt encrypted; `recipients` counts them by the kind of their keys."""

    blob: Descriptor
    recipients: dict[str, int]
    samples: Samples


@dataclass(frozen=True, slots=True)
class Survey:
    """An image; its layers of every kind, the lowest first, but `sealed` with the topmost first."""

    manifest: Manifest
    config: bytes
    public: tuple[Descriptor, ...]
    encrypted: tuple[Encrypted, ...]
    sealed: tuple[Sealed, ...]

    @property
    def in_clear(self) -> list[str]:
        """What layers should be ciphertext and look like something else."""
        return [
            *(each.layer.identity for each in self.sealed if each.samples.random is False),
            *(each.blob.digest for each in self.encrypted if each.samples.random is False),
        ]


def survey(repository: Repository, manifest: Manifest) -> Survey:
    """Look at an image.

    Raises WrongContentError for a sealed layer that is not what its identity names, NotFoundError
    for one that is not there, FormatError, RegistryError.
    """
    found = find_image(repository, manifest)
    pushed = find_artifact(repository, found) if found.identities else []
    return Survey(
        manifest,
        found.config,
        tuple(each for each in manifest.layers if not is_encrypted(each.media_type)),
        tuple(_encrypted(repository, e) for e in manifest.layers if is_encrypted(e.media_type)),
        tuple(_sealed(repository, each) for each in pushed),
    )


def _encrypted(repository: Repository, blob: Descriptor) -> Encrypted:
    recipients = packets.recipients(blob.annotations)
    return Encrypted(blob, recipients, samples.of_blob(repository, blob))


def _sealed(repository: Repository, layer: PushedLayer) -> Sealed:
    text = find_keys(repository, layer.identity).text
    header = find_header(repository, layer)
    found = samples.of_sealed(repository, layer.parts, header)
    return Sealed(layer, header, text.slots, text.signatures, found)
