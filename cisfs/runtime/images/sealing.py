"""Dividing an image from end to end: some layers sealed as one, the others an image of their own.

    docker-daemon:   streamed into an encrypted scratch
    docker:          fetched by skopeo into an encrypted directory
    oci:, docker-archive:    read where they are

So nothing plaintext reaches a disk that was not there before, except what is to be public.  Knows
the order of things; how each is done is known elsewhere.  One image in a process.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cisfs.build.index import Index
from cisfs.build.layers import index_layers
from cisfs.build.opening import open_archive, open_stream
from cisfs.build.progress import Progress
from cisfs.build.request import Request
from cisfs.build.room import encrypted_directory
from cisfs.build.seal import Sealed, seal
from cisfs.build.tar import Limits
from cisfs.build.workplace import Workplace
from cisfs.crypto.signatures import SigningKey
from cisfs.errors import CisfsError, EngineError, FormatError, UsageError
from cisfs.format.sealed import base_of
from cisfs.keys.credentials import Recipients
from cisfs.registry.descriptor import Descriptor
from cisfs.registry.documents import parse_object
from cisfs.registry.image import listed
from cisfs.registry.layout import NAME_ANNOTATION, Layout
from cisfs.registry.manifest import build_manifest, dump
from cisfs.registry.ocicrypt import mediatypes
from cisfs.runtime import restored
from cisfs.runtime.images import division, tools
from cisfs.runtime.images.config import ARCHITECTURES
from cisfs.runtime.images.division import Choice
from cisfs.runtime.images.docker_archive import Chunks, from_archive
from cisfs.runtime.images.origin import Decrypt, Origin, from_layout
from cisfs.runtime.images.reference import Reference
from cisfs.runtime.images.suspects import Suspect, find

_NAME = "image"  # in a layout that only this module sees


@dataclass(frozen=True, slots=True)
class Public:
    """Where the image of the layers that stay public goes: a name in an OCI layout."""

    path: Path
    name: str

    def __str__(self) -> str:
        """Return it as skopeo takes it."""
        return f"oci:{self.path}:{self.name}"

    def check(self, *, force: bool) -> None:
        """Raise UsageError if it would take another's place, and is not to."""
        if not (self.path / "index.json").exists():
            return
        names = [each.annotations.get(NAME_ANNOTATION) for each in Layout.open(self.path).entries()]
        if self.name in names and not force:
            raise UsageError(f"{self} is there already; use --force to replace it")


@dataclass(frozen=True, slots=True)
class Divided:
    """What was made: `kept` and `taken` layers, the public image's digest, and what to look at.

    `suspects` stay public; `scrubbed` do not.
    """

    sealed: Sealed
    digest: str
    kept: int
    taken: int
    suspects: tuple[Suspect, ...]
    scrubbed: tuple[Suspect, ...]


def divide(
    reference: Reference,
    choice: Choice,
    request: Request,
    public: Public,
    recipients: Recipients,
    progress: Progress,
    *,
    scrub: bool = False,
    signing_key: SigningKey | None = None,
    decrypt: Decrypt | None = None,
) -> Divided:
    """Seal the chosen layers of an image for `recipients`, and store an image of the others.

    Either both appear or neither.  Of an image whose place the public one takes, nothing stays that
    no other has: it may show what is sealed now.  Raises CisfsError, OSError, and Interrupted in a
    block of `interrupts.raised`.
    """
    public.check(force=request.force)
    progress.begin("reading")
    with ExitStack() as undo, ExitStack() as undo_if_it_fails:
        origin = _opened(reference, request, decrypt, undo)
        kept = choice.kept(origin.diff_ids, [layer.digest for layer in origin.layers])
        division.check_apart(origin.diff_ids[:kept], origin.diff_ids[kept:])
        document, taken = division.scrubbed(origin.document, find(origin.document) if scrub else [])
        configuration = division.public(document, kept)
        if not public.path.exists():
            undo_if_it_fails.callback(shutil.rmtree, public.path, ignore_errors=True)
        layout = Layout.create(public.path)
        image = _store(layout, origin, kept, configuration)
        undo_if_it_fails.callback(_remove, layout, image)
        sealed = seal(
            request,
            recipients,
            None,
            progress,
            signing_key,
            layers=partial(_index, origin, kept, request, taken),
            base=base_of(listed(configuration)),
        )
        replaced = layout.add(image, public.name)
        undo_if_it_fails.pop_all()
    try:
        layout.remove_unreferred(replaced)
    except FormatError as error:
        raise FormatError(f"sealed, but what {public} was before is still there: {error}") from None
    values = division.values_of(taken)
    suspects = find(configuration, values)
    before = find(division.public(origin.document, kept), values)
    gone = tuple(each for each in before if each not in suspects)
    return Divided(sealed, image.digest, kept, len(origin.layers) - kept, tuple(suspects), gone)


def diff_ids(reference: Reference) -> tuple[str, ...]:
    """Return the digests of an image's layers, as tars.  Raises CisfsError."""
    try:
        return listed(parse_object(tools.config(str(reference)), "its configuration"))
    except (EngineError, FormatError) as error:
        raise CisfsError(f"{reference}: {error}") from None


def _index(origin: Origin, kept: int, request: Request, taken: division.Json) -> Index:
    return index_layers(
        origin.tars(kept, len(origin.layers)),
        origin.tars(0, kept),
        Limits(max_size=request.max_size, devices=request.devices),
        request.output.parent,
        restored.packed(taken["env"], taken["labels"]),
    )


def _store(layout: Layout, origin: Origin, kept: int, configuration: division.Json) -> Descriptor:
    """Store the image of the lowest `kept` layers, without a name yet."""
    layers = [layer.store(layout) for layer in origin.layers[:kept]]
    if not layers:
        layers = [layout.put(division.EMPTY_LAYER, mediatypes.TAR)]
    config = layout.put(dump(configuration), mediatypes.CONFIG)
    return layout.put_manifest(build_manifest(config=config, layers=layers))


def _remove(layout: Layout, image: Descriptor) -> None:
    with suppress(FormatError, OSError):  # why nothing was sealed is what there is to say
        layout.remove_unreferred([image])


def _opened(
    reference: Reference, request: Request, decrypt: Decrypt | None, undo: ExitStack
) -> Origin:
    """Return the image, which `undo` lets go of."""
    label, scratch = str(reference), request.output.parent
    path, _, name = reference.rest.partition(":")
    if reference.transport == "oci":
        return undo.enter_context(_in_layout(Path(path), name, decrypt))
    if reference.transport == "docker-archive":
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            archive = open_archive(fd, label, request.max_size, scratch)
        finally:
            os.close(fd)
        return undo.enter_context(from_archive(archive, label, name or None))
    if reference.transport == "docker-daemon":
        stream = Chunks(_saved(reference.rest))
        archive = open_stream(stream, request.max_size, scratch)
        return undo.enter_context(from_archive(archive, label, None))
    place = undo.enter_context(Workplace(request.output))
    directory = undo.enter_context(encrypted_directory(place))
    layout, temporary = directory / "layout", directory / "temporary"
    temporary.mkdir()
    try:
        tools.fetch(label, layout, _NAME, temporary)
    except EngineError as error:
        raise CisfsError(str(error)) from None
    return undo.enter_context(_in_layout(layout, _NAME, decrypt))


def _in_layout(path: Path, name: str, decrypt: Decrypt | None) -> Origin:
    machine = platform.machine()
    return from_layout(path, name or None, ("linux", ARCHITECTURES.get(machine, machine)), decrypt)


def _saved(image: str) -> Iterator[bytes]:
    from cisfs.runtime.engines import docker

    try:
        yield from docker.saved(image)
    except EngineError as error:
        raise CisfsError(f"image {image}: {error}") from None
