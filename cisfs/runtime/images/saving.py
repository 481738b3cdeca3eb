"""An image with sealed layers as one file: an OCI archive, for machines without a network.

It holds the image's manifest and configuration, the artifacts with sealed layers and key slots,
and of the public layers all or none.  What is sealed is read through `BareSource` alone, which
takes nothing but sealed layers.  Source: OCI image-spec, image-layout.md.  One thread.
"""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tarfile import TarInfo

from cisfs.errors import FormatError
from cisfs.layer.writing import write_all
from cisfs.registry.artifacts import layers_in
from cisfs.registry.bare import BareSource
from cisfs.registry.descriptor import EMPTY, EMPTY_JSON, Descriptor
from cisfs.registry.found import FoundImage, find_keys
from cisfs.registry.layout import MARKER, NAME_ANNOTATION, VERSION
from cisfs.registry.manifest import Manifest, build_index
from cisfs.registry.parts import placed
from cisfs.registry.repository import Repository
from cisfs.registry.source import BytesSource, PartSource, Source

_PIECE = 1 << 20
_BLOCK = 512


@dataclass(frozen=True, slots=True)
class Saved:
    """What is in the file: the image's digest, its sealed layers, how many public ones."""

    image: str
    identities: tuple[str, ...]
    public: int


def save(
    repository: Repository,
    name: str,
    found: FoundImage,
    layers: Sequence[Path],
    fd: int,
    *,
    with_base: bool,
) -> Saved:
    """Write the image `found` in `repository` to `fd`; `name` is how it is to be known.

    `layers` are its sealed layers in the local store, in its order.  Raises RegistryError,
    FormatError, OSError.
    """
    archive = _Archive(fd)
    archive.add(MARKER, BytesSource(VERSION))
    entries = [_listed(found.manifest, {NAME_ANNOTATION: name})]
    archive.blob(found.manifest.descriptor, BytesSource(found.manifest.body))
    archive.blob(found.manifest.config, BytesSource(found.config))
    archive.blob(EMPTY, BytesSource(EMPTY_JSON))
    for identity, path in zip(found.identities, layers, strict=True):
        entries += _add_layer(repository, archive, identity, path)
    for blob in found.manifest.layers if with_base else ():
        with repository.fetched(blob) as source:
            archive.blob(blob, source)
    archive.add("index.json", BytesSource(build_index([each.as_json() for each in entries]).body))
    archive.end()
    public = len(found.manifest.layers) if with_base else 0
    return Saved(found.manifest.descriptor.digest, tuple(found.identities), public)


def _add_layer(
    repository: Repository, archive: _Archive, identity: str, path: Path
) -> list[Descriptor]:
    """Add a sealed layer, its artifact and its keys; returns how the artifacts are listed."""
    keys = find_keys(repository, identity)
    artifact = repository.described(keys.layers)
    layer = next((each for each in layers_in(artifact) if each.identity == identity), None)
    source = BareSource(path)
    try:
        if layer is None or source.described() != layer:
            raise FormatError(f"{path} is not the layer that the registry has")
        for part, offset in placed(layer.parts):
            archive.blob(part, PartSource(source, offset, part.size))
    finally:
        source.close()
    archive.blob(keys.manifest.layers[0], BytesSource(keys.text.spelled()))
    archive.blob(keys.manifest.descriptor, BytesSource(keys.manifest.body))
    archive.blob(artifact.descriptor, BytesSource(artifact.body))
    return [_listed(artifact, {}), _listed(keys.manifest, {})]


def _listed(manifest: Manifest | object, annotations: dict[str, str]) -> Descriptor:
    assert isinstance(manifest, Manifest)  # noqa: S101 - no index holds layers
    said = manifest.descriptor
    kept = {**said.annotations, **annotations}
    return Descriptor(said.media_type, said.digest, said.size, kept, manifest.artifact_type)


class _Archive:
    """A tar that is written from its beginning to its end; each blob once."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._there: set[str] = set()

    def blob(self, descriptor: Descriptor, source: Source) -> None:
        """Add what a descriptor names, unless it is there already.  Raises as `add` does.

        Raises FormatError if it is not what is read in the end, whoever looked at it before.
        """
        if descriptor.digest in self._there:
            return
        self._there.add(descriptor.digest)
        name = f"blobs/{descriptor.digest.replace(':', '/')}"
        if self.add(name, source) != descriptor.digest:
            raise FormatError(f"{name} changed while it was read")

    def add(self, name: str, source: Source) -> str:
        """Add a file; return its digest.  Raises OSError, what `source` raises."""
        digest = hashlib.sha256()
        member = TarInfo(name)
        member.size, member.mode = source.size, 0o644
        self._write(member.tobuf(tarfile.PAX_FORMAT))
        for offset in range(0, source.size, _PIECE):
            piece = source.read(offset, min(_PIECE, source.size - offset))
            if len(piece) != min(_PIECE, source.size - offset):
                raise FormatError(f"{name} was cut short while it was read")
            digest.update(piece)
            self._write(piece)
        self._write(bytes(-source.size % _BLOCK))
        return f"sha256:{digest.hexdigest()}"

    def end(self) -> None:
        """Write what ends a tar."""
        self._write(bytes(2 * _BLOCK))

    def _write(self, data: bytes) -> None:
        write_all(self._fd, data)
