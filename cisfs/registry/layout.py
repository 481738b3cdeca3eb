"""An OCI image layout: a directory with the blobs, manifests and names of images.

OCI image-spec 1.1, image-layout.md.  A blob gets its name only when all of it is there and durable,
and whoever reads one through `read` or `pieces` gets what its digest names or an error.  Does not
know what images are for.  Any number of processes may add to one layout; names are changed by one
at a time.
"""

from __future__ import annotations

import dataclasses
import fcntl
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from cisfs.errors import FormatError, UsageError
from cisfs.layer.writing import write_all
from cisfs.registry import manifest as forms
from cisfs.registry.descriptor import Descriptor, short
from cisfs.registry.documents import Json, parse_object
from cisfs.registry.durable import durable, replace_file
from cisfs.registry.manifest import Index, Manifest
from cisfs.registry.reference import is_digest

NAME_ANNOTATION = "org.opencontainers.image.ref.name"

MARKER = "oci-layout"
VERSION = b'{"imageLayoutVersion":"1.0.0"}'
_INDEX = "index.json"
_PIECE = 1 << 20
_ALGORITHM = "sha256"
_MANIFESTS = forms.MANIFEST_TYPES + forms.INDEX_TYPES


class Layout:
    """The layout in the directory `path`."""

    def __init__(self, path: Path) -> None:
        """Used by `open` and `create` only."""
        self.path = path

    @classmethod
    def open(cls, path: Path) -> Layout:
        """Return the layout at `path`.  Raises UsageError if there is none, FormatError."""
        try:
            marker = (path / MARKER).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise UsageError(f"{path} is no OCI image layout: it has no file {MARKER}") from None
        version = parse_object(marker, f"{path / MARKER}").get("imageLayoutVersion")
        if version != "1.0.0":
            raise FormatError(f"{path} is an OCI image layout of an unknown version")
        return cls(path)

    @classmethod
    def create(cls, path: Path) -> Layout:
        """Return the layout at `path`, made if nothing but an empty directory is there.

        Raises UsageError if something else is, OSError.
        """
        if not (path / MARKER).exists():
            if path.exists() and not (path.is_dir() and not any(path.iterdir())):
                raise UsageError(f"{path} is there already, and is no OCI image layout")
            (path / "blobs" / _ALGORITHM).mkdir(parents=True, exist_ok=True)
            replace_file(path / _INDEX, forms.build_index([]).body)
            replace_file(path / MARKER, VERSION)  # last: it says that the rest is there
        return cls.open(path)

    # -- blobs ---------------------------------------------------------------------------------

    def has(self, digest: str) -> bool:
        """Whether there is a blob or manifest of that name."""
        return self.blob_path(digest).is_file()

    def blob_path(self, digest: str) -> Path:
        """Return where a blob is, or would be.  Raises FormatError for what is no digest."""
        if not is_digest(digest):
            raise FormatError(f"{self.path}: {digest!r} is no digest of sha256")
        return self.path / "blobs" / _ALGORITHM / digest.removeprefix("sha256:")

    def open_blob(self, descriptor: Descriptor) -> int:
        """Open a blob for reading; the caller closes the descriptor and checks the digest.

        Raises FormatError if it is missing, not a regular file, or of another size; OSError.
        """
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # a FIFO must not make us wait for ever
        try:
            fd = os.open(self.blob_path(descriptor.digest), flags)
        except FileNotFoundError:
            raise self._wrong(descriptor, "is missing") from None
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size != descriptor.size:
            os.close(fd)
            raise self._wrong(descriptor, f"is not a file of {descriptor.size} bytes")
        return fd

    def pieces(self, descriptor: Descriptor) -> Iterator[bytes]:
        """Yield a blob in pieces; the last comes only if all of them are what the digest names.

        Raises as `open_blob` does.
        """
        fd = self.open_blob(descriptor)
        try:
            digest, held = hashlib.sha256(), b""
            while piece := os.read(fd, _PIECE):
                digest.update(piece)
                if held:
                    yield held
                held = piece
            if f"sha256:{digest.hexdigest()}" != descriptor.digest:
                raise self._wrong(descriptor, "has another content than its name says")
            if held:
                yield held
        finally:
            os.close(fd)

    def read(self, descriptor: Descriptor, limit: int = forms.MAX_SIZE) -> bytes:
        """Return a small blob, checked.  Raises FormatError, also if it is over `limit` bytes."""
        if descriptor.size > limit:
            raise self._wrong(descriptor, f"has more than {limit} bytes")
        return b"".join(self.pieces(descriptor))

    def store(
        self, pieces: Iterable[bytes], media_type: str, expected: Descriptor | None = None
    ) -> Descriptor:
        """Store a blob, and return what describes it: `expected`, if that is given.

        Raises FormatError when it is not what is expected, as soon as it is longer; nothing is left
        then.  What `pieces` raises, OSError.
        """
        digest, size = hashlib.sha256(), 0
        directory = self.path / "blobs" / _ALGORITHM
        with durable(directory) as (fd, publish):
            for piece in pieces:
                digest.update(piece)
                size += len(piece)
                if expected is not None and size > expected.size:
                    raise self._wrong(expected, f"is longer than {expected.size} bytes")
                write_all(fd, piece)
            found = Descriptor(media_type, f"sha256:{digest.hexdigest()}", size)
            if expected is not None and (found.digest, size) != (expected.digest, expected.size):
                raise self._wrong(expected, "has another content than its name says")
            publish(self.blob_path(found.digest))
        return found if expected is None else expected

    def put(self, content: bytes, media_type: str) -> Descriptor:
        """Store a small blob that is at hand.  Raises OSError."""
        return self.store([content], media_type, Descriptor.of(content, media_type))

    def put_manifest(self, made: Manifest | Index) -> Descriptor:
        """Store a manifest or index, and describe it as an index lists it.  Raises OSError."""
        self.put(made.body, made.media_type)
        return made.descriptor

    # -- manifests and names -------------------------------------------------------------------

    def manifest(self, descriptor: Descriptor) -> Manifest | Index:
        """Return a manifest or index, checked.  Raises FormatError, OSError."""
        body = self.read(descriptor)
        try:
            return forms.parse(body, descriptor.media_type)
        except FormatError as error:
            raise self._wrong(descriptor, f"will not do: {error}") from None

    def entries(self) -> tuple[Descriptor, ...]:
        """Return what the layout's own index lists, in order.  Raises FormatError, OSError."""
        return self._index().manifests

    def find(self, name: str | None) -> Descriptor:
        """Return the image of that name, or with None the only one.

        Artifacts that refer to an image do not count as one without a name.  Raises UsageError,
        FormatError, OSError.
        """
        entries = self.entries()
        if name is not None:
            found = [each for each in entries if each.annotations.get(NAME_ANNOTATION) == name]
            if not found and is_digest(name):
                found = [each for each in entries if each.digest == name]
            if not found:
                raise UsageError(f"{self.path} has no image {name!r}")
            return found[-1]  # as others read it: what was added last
        images = [each for each in entries if self._is_image(each)]
        if len(images) != 1:
            raise UsageError(
                f"{self.path} has {len(images)} images: name one, as in oci:{self.path}:NAME"
            )
        return images[0]

    def referrers(self, subject: str, artifact_type: str) -> list[Descriptor]:
        """Return the artifacts of a type that refer to the manifest with the digest `subject`."""
        found = []
        for each in self.entries():
            held = self.manifest(each)
            if held.subject is None or held.subject.digest != subject:
                continue
            if artifact_type in (held.artifact_type, each.artifact_type):
                found.append(each)
        return found

    def add(self, descriptor: Descriptor, name: str | None = None) -> list[Descriptor]:
        """List a manifest, which is there; another of the same `name` is listed no more.

        Returns what is not, whose blobs stay (`remove_unreferred`).  Raises FormatError, OSError.
        """
        annotations = {**descriptor.annotations, **({NAME_ANNOTATION: name} if name else {})}
        wanted = dataclasses.replace(descriptor, annotations=annotations).as_json()
        with self._one_at_a_time():
            index = self._index()
            kept = [each for each in forms.entries(index) if not _is_same(each, wanted, name)]
            made = forms.build_index([*kept, wanted], annotations=index.annotations)
            replace_file(self.path / _INDEX, made.body)
        return [each for each in index.manifests if each not in made.manifests]

    def remove_unreferred(self, images: Iterable[Descriptor]) -> None:
        """Remove the blobs of manifests that were listed, but for those that what is listed has.

        Not for when others store images that share blobs with them.  Raises FormatError, and
        removes nothing, if what is listed does not say what it has; OSError.
        """
        with self._one_at_a_time():
            gone = self._reached(images) - self._reached(self.entries())
            for digest in gone:
                self.blob_path(digest).unlink(missing_ok=True)

    def _reached(self, roots: Iterable[Descriptor]) -> set[str]:
        """Return the digests of manifests and of all that they refer to, there or not."""
        waiting, found = [*roots], set[str]()
        while waiting:
            each = waiting.pop()
            is_new = each.digest not in found
            found.add(each.digest)
            if is_new and each.media_type in _MANIFESTS and self.has(each.digest):
                waiting += _referred(self.manifest(each))
        return found

    def _index(self) -> Index:
        path = self.path / _INDEX
        with path.open("rb") as file:
            body = file.read(forms.MAX_SIZE + 1)
        try:
            index = forms.parse(body, forms.OCI_INDEX)
        except FormatError as error:
            raise FormatError(f"{path}: {error}") from None
        if not isinstance(index, Index):
            raise FormatError(f"{path} is no index")
        return index

    def _is_image(self, descriptor: Descriptor) -> bool:
        held = self.manifest(descriptor)
        return held.subject is None and held.artifact_type is None

    @contextmanager
    def _one_at_a_time(self) -> Iterator[None]:
        fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _wrong(self, descriptor: Descriptor, how: str) -> FormatError:
        return FormatError(f"{self.path}: {short(descriptor.digest)} {how}")


def _referred(held: Manifest | Index) -> Iterator[Descriptor]:
    if held.subject is not None:
        yield held.subject
    if isinstance(held, Index):
        yield from held.manifests
    else:
        yield from (held.config, *held.layers)


def _is_same(entry: Mapping[str, Json], wanted: Mapping[str, Json], name: str | None) -> bool:
    """Whether an entry has to make place for another."""
    annotations = entry.get("annotations")
    named = annotations.get(NAME_ANNOTATION) if isinstance(annotations, dict) else None
    if name is not None and named == name:
        return True
    return named == name and entry.get("digest") == wanted["digest"]
