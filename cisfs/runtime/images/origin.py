"""An image that is to be divided: its configuration, and its layers where they are.

Everything is checked by digest before it is used.  Does not know which layers are chosen.  A
context manager; one thread.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol, Self

from cisfs.build import layers as build
from cisfs.build.archive import Archive
from cisfs.build.decompress import Readable
from cisfs.build.opening import open_archive, open_stream
from cisfs.errors import FormatError, UsageError
from cisfs.registry.descriptor import Descriptor, short
from cisfs.registry.documents import parse_object
from cisfs.registry.image import MAX_CONFIG, listed
from cisfs.registry.layout import Layout
from cisfs.registry.manifest import Index, Manifest
from cisfs.registry.ocicrypt import mediatypes
from cisfs.runtime.images import division

_PIECE = 1 << 20


class Decrypt(Protocol):
    """What makes a readable stream, already verified, of an encrypted layer of the image."""

    def __call__(self, descriptor: Descriptor, ciphertext: Callable[[], BinaryIO]) -> Readable:
        """Return the layer's tar, perhaps compressed.  Raises CisfsError, OSError."""


class Layer(Protocol):
    """One layer of an image."""

    @property
    def digest(self) -> str:
        """The blob's digest, or the tar's where there is no blob."""

    def open(self, max_size: int, scratch_directory: Path) -> Archive:
        """Open the tar (`cisfs.build.layers.OpenLayer`)."""

    def store(self, layout: Layout) -> Descriptor:
        """Put the layer as it is into another layout.  Raises CisfsError, OSError."""


@dataclass(frozen=True, slots=True)
class Origin:
    """The image; `layers` are as many as the `diff_ids` of the configuration `document`."""

    label: str
    document: division.Json
    layers: tuple[Layer, ...]
    undo: ExitStack

    @property
    def diff_ids(self) -> tuple[str, ...]:
        """The digests of the layers, as tars."""
        return listed(self.document)

    def tars(self, first: int, end: int) -> list[build.Layer]:
        """Return the layers from `first` up to `end`, as what is sealed is made of."""
        return [
            build.Layer(f"layer {short(diff_id)}", diff_id, layer.open)
            for diff_id, layer in zip(self.diff_ids[first:end], self.layers[first:end], strict=True)
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.undo.close()


def from_layout(
    path: Path, name: str | None, platform: tuple[str, str], decrypt: Decrypt | None = None
) -> Origin:
    """Return an image of the layout at `path`, for a `platform` (system, architecture).

    `decrypt` is for encrypted layers.  Raises UsageError, FormatError, OSError.
    """
    layout = Layout.open(path)
    manifest = _image(layout, layout.find(name), platform)
    layers = tuple(_Blob(layout, each, decrypt) for each in manifest.layers)
    try:
        config = parse_object(layout.read(manifest.config, MAX_CONFIG), "its configuration")
        check_number(listed(config), layers)
        return Origin(str(path), config, layers, ExitStack())
    except FormatError as error:
        raise FormatError(f"image {name or ''} in {path}: {error}") from None


def check_number(diff_ids: Sequence[str], layers: Sequence[object]) -> None:
    """Raise FormatError if a configuration lists more or fewer layers than there are."""
    if len(diff_ids) != len(layers):
        raise FormatError("its configuration lists another number of layers than it has")


def _image(layout: Layout, descriptor: Descriptor, platform: tuple[str, str]) -> Manifest:
    """Return the manifest that a name stands for, by way of an index or not."""
    found = layout.manifest(descriptor)
    if isinstance(found, Index):
        fitting = [each for each in found.manifests if _is_for(each, platform)]
        if not fitting:
            raise UsageError(f"{layout.path}: no image for {'/'.join(platform)}")
        found = layout.manifest(fitting[0])
    if isinstance(found, Index) or found.artifact_type is not None:
        raise FormatError(f"{layout.path}: {short(descriptor.digest)} is no image")
    return found


def _is_for(descriptor: Descriptor, platform: tuple[str, str]) -> bool:
    said = descriptor.platform or {}
    return (said.get("os"), said.get("architecture")) == platform


@dataclass(frozen=True, slots=True)
class _Blob:
    """A layer that is a blob of a layout."""

    layout: Layout
    descriptor: Descriptor
    decrypt: Decrypt | None

    @property
    def digest(self) -> str:
        """See `Layer`."""
        return self.descriptor.digest

    def open(self, max_size: int, scratch_directory: Path) -> Archive:
        """See `Layer`."""
        if mediatypes.is_encrypted(self.descriptor.media_type):
            if self.decrypt is None:
                raise UsageError("it is encrypted: give a key that opens it, with -i")
            stream = self.decrypt(self.descriptor, self._ciphertext)
            return open_stream(stream, max_size, scratch_directory, hashed=True)
        fd = self.layout.open_blob(self.descriptor)
        try:
            label = f"layer {short(self.digest)}"
            return open_archive(fd, label, max_size, scratch_directory, hashed=True)
        finally:
            os.close(fd)

    def store(self, layout: Layout) -> Descriptor:
        """See `Layer`."""
        said = self.descriptor
        media_type = mediatypes.oci(said.media_type)
        described = Descriptor(media_type, said.digest, said.size, said.annotations)
        if not layout.has(said.digest):
            layout.store(self.layout.pieces(said), media_type, described)
        return described

    def _ciphertext(self) -> BinaryIO:
        return os.fdopen(self.layout.open_blob(self.descriptor), "rb")


class Hashed:
    """The pieces of a tar; FormatError in the place of the end if its digest is not as wanted."""

    def __init__(self, source: Readable, wanted: str) -> None:
        self._source = source
        self._wanted = wanted

    def __iter__(self) -> Iterator[bytes]:
        found = hashlib.sha256()
        while piece := self._source.read(_PIECE):
            found.update(piece)
            yield piece
        if f"sha256:{found.hexdigest()}" != self._wanted:
            raise FormatError(f"layer {short(self._wanted)} has another content than its name says")
