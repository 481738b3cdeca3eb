"""A seal from end to end: the source is indexed, an image is laid out or compressed, and encrypted.

Knows the order of things and who owns what meanwhile; how each is done is known elsewhere.  Nothing
plaintext reaches a disk: an image that is not compressed is made piece by piece in the processes
that encrypt it.  One seal in a process.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cisfs.build import compressed, interrupts
from cisfs.build.directory import index_directory
from cisfs.build.erofs import ErofsImage
from cisfs.build.index import Index
from cisfs.build.progress import Progress
from cisfs.build.request import UNCOMPRESSED, Kind, Request
from cisfs.build.superblock import check_image
from cisfs.build.tar import Limits, index_tar
from cisfs.build.vault_source import index_vault
from cisfs.crypto.signatures import SigningKey
from cisfs.format.sealed import UNBOUND
from cisfs.format.sealed_geometry import LayerGeometry
from cisfs.keys.credentials import Identities, Opener, Recipients
from cisfs.layer.sealing import Image, StoredImage, seal_image
from cisfs.layer.vault import Vault


@dataclass(frozen=True, slots=True)
class Sealed:
    """What was made: sizes in bytes, `input_bytes` those in the files of the source."""

    identity: str
    entries: int
    input_bytes: int
    image_size: int
    stored_size: int
    seconds: float


@dataclass(frozen=True, slots=True)
class _Made:
    image: Image
    entries: int
    input_bytes: int


def seal(
    request: Request,
    recipients: Recipients,
    vault_opener: Opener | None,
    progress: Progress,
    signing_key: SigningKey | None = None,
    *,
    layers: Callable[[], Index] | None = None,
    base: bytes = UNBOUND,
) -> Sealed:
    """Seal for `recipients`; `vault_opener` opens a source that is a vault.

    With a `signing_key` the layer is signed.  `layers` makes the index of layers of an image;
    `base` is what the layer is bound to.

    The output appears whole or not at all, and nothing else is left behind.  Raises CisfsError,
    OSError, and Interrupted in a block of `interrupts.raised`.
    """
    began = time.monotonic()
    with ExitStack() as undo:
        undo.callback(progress.end)
        made = _make(request, layers or partial(_index, request, vault_opener), progress, undo)
        progress.begin("encrypting", made.image.size)
        identity = seal_image(
            made.image,
            request.output,
            recipients,
            unit_size=request.unit_size,
            workers=request.workers,
            force=request.force,
            signing_key=signing_key,
            progress=progress.update,
            base=base,
        )
        interrupts.settle()  # the layer is there
    return Sealed(
        identity=identity,
        entries=made.entries,
        input_bytes=made.input_bytes,
        image_size=made.image.size,
        stored_size=LayerGeometry(request.unit_size, made.image.size).stored_size,
        seconds=time.monotonic() - began,
    )


def _make(
    request: Request, source: Callable[[], Index], progress: Progress, undo: ExitStack
) -> _Made:
    """Return the image, which `undo` does away with."""
    if request.kind is Kind.IMAGE:
        return _ready_made(request.path, undo)
    progress.begin("reading")
    index = undo.enter_context(source())
    image: Image
    if request.compression == UNCOMPRESSED:
        image = ErofsImage(index)
    else:
        image = undo.enter_context(compressed.image(index, request, progress))
    return _Made(image, index.totals.entries, index.totals.content)


def _ready_made(path: Path, undo: ExitStack) -> _Made:
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    undo.callback(os.close, fd)
    size = os.fstat(fd).st_size
    return _Made(StoredImage(fd, size), check_image(fd, path).inodes, size)


def _index(request: Request, vault_opener: Opener | None) -> Index:
    """Return the index of a source; what it holds open goes with it."""
    if request.kind is Kind.DIRECTORY:
        return index_directory(request.path)
    if request.kind is Kind.VAULT:
        return index_vault(Vault.open(request.path, vault_opener or Identities(()), read_only=True))
    limits = Limits(max_size=request.max_size, devices=request.devices)
    if request.source is None:
        return index_tar(0, request.label, limits, request.output.parent)
    fd = os.open(request.source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return index_tar(fd, request.label, limits, request.output.parent)
    finally:
        os.close(fd)
