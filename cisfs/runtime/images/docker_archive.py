"""Images in the form that `docker save` writes: a tar with a manifest.json, layers and all.

What cannot be read in place was kept in an encrypted scratch by the `Archive`.  Source: moby,
image/spec/v1.2.md, "Combined Image JSON + Filesystem Changeset Format".  Does not know where the
tar is from.  One thread.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cisfs.build.archive import Archive
from cisfs.build.decompress import Unpacked
from cisfs.build.opening import ContentReader, open_content
from cisfs.errors import FormatError, UsageError
from cisfs.registry.descriptor import Descriptor
from cisfs.registry.documents import parse_object
from cisfs.registry.image import listed
from cisfs.registry.layout import Layout
from cisfs.registry.manifest import MAX_LAYERS
from cisfs.registry.ocicrypt import mediatypes
from cisfs.registry.reference import Reference as Name
from cisfs.runtime.images.files import File, Files
from cisfs.runtime.images.origin import Hashed, Origin, check_number

_MANIFEST = "manifest.json"


def from_archive(archive: Archive, label: str, name: str | None) -> Origin:
    """Return the image of that name, or the only one; `archive` is closed with it, or on an error.

    Raises FormatError, UsageError, OSError.
    """
    with ExitStack() as undo:
        undo.callback(archive.close)
        try:
            files = Files(archive)
            archive.finish()
            image = _chosen(files.read(_MANIFEST), name)
            config, places = _parts(image)
            document = parse_object(files.read(config), "its configuration")
            layers = _tars(listed(document), [files.find(place) for place in places])
            return Origin(label, document, layers, undo.pop_all())
        except (FormatError, UsageError) as error:
            raise type(error)(f"{label}: {error}") from None


@dataclass(frozen=True, slots=True)
class _Tar:
    """A layer that is a file in the archive."""

    digest: str
    file: File

    def open(self, max_size: int, scratch_directory: Path) -> Archive:
        """See `cisfs.runtime.images.origin.Layer`."""
        return open_content(self.file, self.file.size, max_size, scratch_directory, hashed=True)

    def store(self, layout: Layout) -> Descriptor:
        """See `cisfs.runtime.images.origin.Layer`.  It is stored without compression."""
        if layout.has(self.digest):
            size = layout.blob_path(self.digest).stat().st_size
            return Descriptor(mediatypes.TAR, self.digest, size)
        source = Unpacked(ContentReader(self.file, self.file.size))
        try:
            return layout.store(Hashed(source, self.digest), mediatypes.TAR)
        finally:
            source.close()


def _tars(diff_ids: Sequence[str], contents: Sequence[File]) -> tuple[_Tar, ...]:
    check_number(diff_ids, contents)
    return tuple(map(_Tar, diff_ids, contents))


def _chosen(manifest: bytes, name: str | None) -> dict[str, Any]:
    """Return an archive's entry for an image."""
    try:
        images = json.loads(manifest)
    except (ValueError, RecursionError):
        raise FormatError(f"its {_MANIFEST} is not JSON") from None
    if not isinstance(images, list) or not all(isinstance(each, dict) for each in images):
        raise FormatError(f"its {_MANIFEST} is no list of images")
    if name is not None:
        wanted = Name.parse(name)
        images = [each for each in images if wanted in _names(each)]
        if not images:
            raise UsageError(f"it has no image {wanted}")
    if len(images) != 1:
        raise UsageError(f"it has {len(images)} images: name one, as in docker-archive:FILE:NAME")
    found: dict[str, Any] = images[0]
    return found


def _names(image: dict[str, Any]) -> Iterator[Name]:
    """Yield the names of an image, with what docker leaves out filled in."""
    tags = image.get("RepoTags")
    for tag in tags if isinstance(tags, list) else []:
        with suppress(UsageError):
            yield Name.parse(str(tag))


def _parts(image: dict[str, Any]) -> tuple[str, list[str]]:
    """Return the names of the files with configuration and layers."""
    config, layers = image.get("Config"), image.get("Layers")
    if not isinstance(config, str) or not isinstance(layers, list):
        raise FormatError(f"its {_MANIFEST} lists no configuration and layers")
    if not all(isinstance(each, str) for each in layers) or len(layers) > MAX_LAYERS:
        raise FormatError(f"its {_MANIFEST} lists layers that are none")
    return config, layers


class Chunks:
    """A stream of what an iterator yields, such as a daemon's answer."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._rest = b""

    def read(self, most: int) -> bytes:
        """Return up to `most` bytes, none only at the end.  Raises what the iterator raises."""
        while not self._rest:
            piece = next(self._pieces, None)
            if piece is None:
                return b""
            self._rest = piece
        taken, self._rest = self._rest[:most], self._rest[most:]
        return taken
