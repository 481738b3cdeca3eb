"""Images whose chosen layers are encrypted: from one OCI layout into another.

What ocicrypt leaves open stays open: the configuration, with its environment, history and the
digest of each layer's tar (`rootfs.diff_ids`), and how long each layer is.  Layers that were not
chosen are copied as they are.  No chosen layer gets into the other layout in clear: where that
could happen nothing is begun.

Does not know registries.  One thread.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from cisfs.crypto.keys import SecretKey
from cisfs.errors import UsageError
from cisfs.format.config import b64
from cisfs.keys.credentials import Credential
from cisfs.keys.wrapping import Recipient
from cisfs.registry import manifest as forms
from cisfs.registry.descriptor import Descriptor, short
from cisfs.registry.documents import Json, objects, parse_object
from cisfs.registry.layout import Layout
from cisfs.registry.manifest import Manifest
from cisfs.registry.ocicrypt import mediatypes, packets
from cisfs.registry.ocicrypt.cipher import NONCE_SIZE, Encryption
from cisfs.registry.ocicrypt.options import PrivateOptions, PublicOptions

# Members of a descriptor that would give a layer in clear: its bytes, and where else they are.
_REVEALING = ("data", "urls")


@dataclass(frozen=True, slots=True)
class Encrypting:
    """How an image is encrypted: for whom, and which layers.

    `chosen` counts from 0, the lowest layer, or from -1, the topmost, downwards; None is all.
    `progress` is told how many bytes of layers are done.
    """

    recipients: Sequence[Credential | Recipient]
    chosen: Sequence[int] | None = None
    progress: Callable[[int], None] | None = None


def encrypt_image(source: Layout, image: Descriptor, target: Layout, how: Encrypting) -> Descriptor:
    """Write the image to `target` with its chosen layers encrypted; returns the new manifest's.

    It is for the caller to list it there (`Layout.add`), after which the image is complete.  Raises
    UsageError if a chosen layer would stay in clear, FormatError for a damaged layout, CisfsError
    when a device or service fails, OSError.
    """
    packets.check(how.recipients)
    manifest = source.manifest(image)
    if not isinstance(manifest, Manifest):
        raise UsageError(f"{short(image.digest)} is of several platforms: name one of its images")
    chosen = _chosen(manifest, how.chosen)
    _check_stays_secret(manifest, chosen, target)
    document = parse_object(manifest.body, "the manifest")
    layers = objects(document, "layers", "the manifest", forms.MAX_LAYERS)
    done = _Done(how.progress)
    for number, layer in enumerate(manifest.layers):
        if number in chosen:
            written = _encrypted(source, layer, target, how.recipients, done)
            layers[number] = _described(layers[number], written)
        else:
            _copy(source, layer, target, done)
            layers[number]["mediaType"] = mediatypes.oci(layer.media_type)
    _copy(source, manifest.config, target, done)
    return target.put_manifest(_rewritten(document, layers, manifest))


def _chosen(manifest: Manifest, wanted: Sequence[int] | None) -> set[int]:
    """Return the numbers of the chosen layers, all of which can be encrypted.  UsageError."""
    count = len(manifest.layers)
    numbers = range(count) if wanted is None else wanted
    for number in numbers:
        if not -count <= number < count:
            raise UsageError(f"there is no layer {number} among the image's {count}")
    chosen = {number % count for number in numbers}
    if not chosen:
        raise UsageError("no layer was chosen: all of the image would stay in clear")
    for number in chosen:
        try:
            mediatypes.encrypted(manifest.layers[number].media_type)
        except UsageError as error:
            raise UsageError(f"layer {number} cannot be encrypted: {error}") from None
    return chosen


def _check_stays_secret(manifest: Manifest, chosen: set[int], target: Layout) -> None:
    secret = {manifest.layers[number].digest: number for number in chosen}
    clear = [each for number, each in enumerate(manifest.layers) if number not in chosen]
    for digest in (each.digest for each in (*clear, manifest.config)):
        if digest in secret:
            raise UsageError(
                f"layer {secret[digest]} is also in the image where it was not chosen, and would "
                "stay in clear there: choose both"
            )
    for digest, number in secret.items():
        if target.has(digest):
            raise UsageError(f"{target.path} has layer {number} in clear: write to a new directory")


def _encrypted(
    source: Layout,
    layer: Descriptor,
    target: Layout,
    recipients: Sequence[Credential | Recipient],
    done: _Done,
) -> Descriptor:
    """Write a layer under a key of its own, and return what describes it."""
    key, nonce = SecretKey.generate(), secrets.token_bytes(NONCE_SIZE)
    private = PrivateOptions(key, layer.digest, nonce)
    annotations = packets.wrap(private.pack(), recipients)  # first: it is what may fail
    encryption = Encryption(key, nonce)
    pieces = (encryption.update(piece) for piece in done.passing(source.pieces(layer)))
    written = target.store(pieces, mediatypes.encrypted(layer.media_type))
    public = PublicOptions(encryption.mac()).pack()
    annotations[packets.PUBLIC_OPTIONS] = b64(public)
    return replace(written, annotations={**packets.without(layer.annotations), **annotations})


def _described(before: dict[str, Json], written: Descriptor) -> dict[str, Json]:
    """Return a descriptor with all of its members but those that are of the layer in clear."""
    kept = {name: value for name, value in before.items() if name not in _REVEALING}
    return {**kept, **written.as_json()}


def _copy(source: Layout, blob: Descriptor, target: Layout, done: _Done) -> None:
    """Copy a blob, unless it is where its descriptor says and not in the layout (`urls`)."""
    if target.has(blob.digest) or (
        mediatypes.is_foreign(blob.media_type) and not source.has(blob.digest)
    ):
        return
    target.store(done.passing(source.pieces(blob)), blob.media_type, blob)


def _rewritten(
    document: dict[str, Json], layers: list[dict[str, Json]], manifest: Manifest
) -> Manifest:
    """Return the manifest with other layers: OCI's, whatever it was before."""
    config = document["config"]
    if isinstance(config, dict):
        config["mediaType"] = mediatypes.oci(manifest.config.media_type)
    document |= {"mediaType": forms.OCI_MANIFEST, "layers": [*layers]}
    made = forms.parse(forms.dump(document), forms.OCI_MANIFEST)
    if not isinstance(made, Manifest):
        raise ValueError("an index came of a manifest")
    return made


class _Done:
    """How many bytes have passed."""

    def __init__(self, told: Callable[[int], None] | None) -> None:
        self._told = told
        self._bytes = 0

    def passing(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            yield piece
            self._bytes += len(piece)
            if self._told is not None:
                self._told(self._bytes)
