"""A file that `cisfs save` wrote, into the local store: every blob is checked by its digest.

Does not know registries; the layers' origin is noted as the file names it.  Nothing but whole
layers gets into the store.  One thread; any number of processes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cisfs.build.archive import Archive
from cisfs.errors import FormatError, UsageError, WrongContentError
from cisfs.format.slotarea import SlotText
from cisfs.layer.lazy import is_partial
from cisfs.layer.origin import Origin
from cisfs.layer.pulled import LAYER, directory_of
from cisfs.layer.writing import write_at
from cisfs.registry import artifacts, image, manifest
from cisfs.registry.artifacts import IDENTITY, KEYS_ARTIFACT, PushedLayer
from cisfs.registry.descriptor import Descriptor, digest_of, short
from cisfs.registry.layout import MARKER, NAME_ANNOTATION, Layout
from cisfs.registry.manifest import Index, Manifest
from cisfs.registry.pull import Pulled, install, renew_slots
from cisfs.registry.reference import Reference
from cisfs.runtime.images.files import File, Files

_PIECE = 1 << 20

# Told the identity of a layer and its key slots, before it is taken: raises what refuses it.
Check = Callable[[str, SlotText], None]


@dataclass(frozen=True, slots=True)
class _Layer:
    pushed: PushedLayer
    text: SlotText


class Bundle:
    """An opened file; `archive` was not read yet and stays the caller's to close."""

    def __init__(self, archive: Archive) -> None:
        """Raises FormatError for what is no such file, UsageError, OSError."""
        self._files = Files(archive)
        archive.finish()
        self._files.find(MARKER)
        index = manifest.parse(self._files.read("index.json"), manifest.OCI_INDEX)
        if not isinstance(index, Index):
            raise FormatError("its index.json is no index")
        named = [each for each in index.manifests if NAME_ANNOTATION in each.annotations]
        if len(named) != 1:
            raise FormatError(f"it names {len(named)} images and not one: cisfs save writes one")
        self._index = index
        self.reference = _reference(named[0].annotations[NAME_ANNOTATION])
        self.manifest = self._manifest(named[0])
        self._config = self._small(self.manifest.config, image.MAX_CONFIG)
        self.identities = [each.rpartition("@")[2] for each in image.named_in(self._config)]
        self._layers = [self._layer(identity) for identity in self.identities]

    def load(self, store: Path, check: Check) -> list[Pulled]:
        """Put the sealed layers into `store`; layers that are there only get their key slots.

        `check` is asked about each before any of them is taken.  Raises what it raises,
        FormatError, WrongContentError, BusyError, OSError.
        """
        for layer in self._layers:
            check(layer.pushed.identity, layer.text)
        return [
            self._loaded(layer, directory_of(store, layer.pushed.identity))
            for layer in self._layers
        ]

    @property
    def has_base(self) -> bool:
        """Whether the public layers are in it."""
        return all(self._has(each.digest) for each in self.manifest.layers)

    def store_base(self, layout: Layout, name: str) -> None:
        """Put the public image into a layout.  Raises UsageError if it is not there."""
        if not self.has_base:
            raise UsageError("the public image is not in it: save it again, with --with-base")
        for blob in self.manifest.layers:
            if not layout.has(blob.digest):
                layout.store(self._pieces(blob), blob.media_type, blob)
        layout.put(self._config, self.manifest.config.media_type)
        layout.add(layout.put_manifest(self.manifest), name)

    def _loaded(self, layer: _Layer, directory: Path) -> Pulled:
        identity, path = layer.pushed.identity, directory / LAYER
        if path.exists():
            if is_partial(path):
                raise UsageError(
                    f"layer {identity} is here in part only: remove {directory}, and load it again"
                )
            renew_slots(path, layer.text, "the file")
            return Pulled(identity, path, fetched=False)
        parts = tuple((part.digest, part.size) for part in layer.pushed.parts)
        source = Origin(self.reference.registry, self.reference.repository, parts, is_loaded=True)
        fetch = partial(self._copy, layer.pushed)
        install(directory, layer.pushed, layer.text, source, fetch)
        return Pulled(identity, path, fetched=True)

    def _copy(self, layer: PushedLayer, fd: int) -> None:
        offset = 0
        for part in layer.parts:
            for piece in self._pieces(part):
                write_at(fd, piece, offset)
                offset += len(piece)

    def _layer(self, identity: str) -> _Layer:
        """Find a sealed layer and its key slots."""
        for each in self._index.manifests:
            said = each.annotations.get(IDENTITY)
            if each.artifact_type == KEYS_ARTIFACT and said == identity:
                blob, holder = artifacts.keys_in(self._manifest(each), identity)
                text = artifacts.parse_keys(self._small(blob, artifacts.MAX_KEYS))
                for pushed in artifacts.layers_in(self._manifest(holder)):
                    if pushed.identity == identity:
                        return _Layer(pushed, text)
        raise FormatError(f"it does not hold the sealed layer {identity} that its image names")

    def _manifest(self, descriptor: Descriptor) -> Manifest:
        body = self._small(descriptor, manifest.MAX_SIZE)
        found = manifest.parse(body, descriptor.media_type)
        if not isinstance(found, Manifest):
            raise FormatError(f"{short(descriptor.digest)} is an index and no manifest")
        return found

    def _small(self, descriptor: Descriptor, limit: int) -> bytes:
        file = self._file(descriptor)
        if file.size > limit:
            raise FormatError(f"{short(descriptor.digest)} has more than {limit} bytes")
        content = file.read(0, file.size)
        if digest_of(content) != descriptor.digest:
            raise WrongContentError(f"{short(descriptor.digest)} is not what its name says")
        return content

    def _pieces(self, descriptor: Descriptor) -> Iterator[bytes]:
        """Yield a large blob; the last piece only if all of it is what the digest names."""
        file, digest, held = self._file(descriptor), hashlib.sha256(), b""
        for offset in range(0, file.size, _PIECE):
            piece = file.read(offset, min(_PIECE, file.size - offset))
            digest.update(piece)
            if held:
                yield held
            held = piece
        if f"sha256:{digest.hexdigest()}" != descriptor.digest:
            raise WrongContentError(f"{short(descriptor.digest)} is not what its name says")
        yield held

    def _file(self, descriptor: Descriptor) -> File:
        file = self._files.find(_place(descriptor.digest))
        if file.size != descriptor.size:
            raise WrongContentError(f"{short(descriptor.digest)} has another size than it should")
        return file

    def _has(self, digest: str) -> bool:
        try:
            self._files.find(_place(digest))
        except FormatError:
            return False
        return True


def _place(digest: str) -> str:
    return f"blobs/{digest.replace(':', '/')}"


def _reference(name: str) -> Reference:
    try:
        return Reference.parse(name)
    except UsageError as error:
        raise FormatError(f"its image has no proper name: {error}") from None
