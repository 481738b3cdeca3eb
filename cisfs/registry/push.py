"""Pushing: a public base and sealed layers become an image and its artifacts in a repository.

docs/FORMAT.md, section 15.  What was asked to be sealed is read through `BareSource` alone, which
takes nothing but sealed layers.  Threads of its own while it uploads; one call at a time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from cisfs.errors import UsageError
from cisfs.format.sealed import check_base
from cisfs.registry import artifacts, image, remote_keys
from cisfs.registry.artifacts import PushedLayer
from cisfs.registry.bare import BareSource
from cisfs.registry.descriptor import EMPTY, EMPTY_JSON, Descriptor
from cisfs.registry.download import Report
from cisfs.registry.layout import Layout
from cisfs.registry.manifest import Manifest
from cisfs.registry.repository import Repository
from cisfs.registry.source import BytesSource, FileSource, PartSource, Source
from cisfs.registry.transfer import Job, Progress, transfer


class Base(Protocol):
    """Where a public base image is taken from."""

    manifest: Manifest
    repository: str | None  # of the same registry: its blobs can be mounted

    def config(self) -> bytes:
        """Return the image's configuration, checked."""

    def opened(self, blob: Descriptor) -> AbstractContextManager[Source]:
        """Open a blob to be uploaded."""


class LayoutBase:
    """A base in an OCI image layout."""

    repository: str | None = None

    def __init__(self, layout: Layout, manifest: Manifest) -> None:
        self._layout = layout
        self.manifest = manifest

    def config(self) -> bytes:
        """See `Base`."""
        return self._layout.read(self.manifest.config, image.MAX_CONFIG)

    @contextmanager
    def opened(self, blob: Descriptor) -> Iterator[Source]:
        """See `Base`; the registry checks the digest."""
        fd = self._layout.open_blob(blob)
        try:
            yield FileSource(fd)
        finally:
            os.close(fd)


class RemoteBase:
    """A base in a registry; what cannot be mounted is fetched to an unnamed file first."""

    def __init__(self, repository: Repository, manifest: Manifest, same_registry: bool) -> None:
        self._repository = repository
        self.manifest = manifest
        self.repository = repository.session.repository if same_registry else None

    def config(self) -> bytes:
        """See `Base`."""
        return self._repository.read_blob(self.manifest.config, image.MAX_CONFIG)

    def opened(self, blob: Descriptor) -> AbstractContextManager[Source]:
        """See `Base`."""
        return self._repository.fetched(blob)


@dataclass(frozen=True, slots=True)
class Pushed:
    """What was pushed: digests of the manifests, identities of the layers, bytes sent.

    `kept` are those layers whose key slots stayed as they were there, which is later than here.
    """

    image: str
    layers_artifact: str
    identities: tuple[str, ...]
    uploaded: int
    kept: tuple[str, ...] = ()


def push(
    repository: Repository,
    tag: str,
    base: Base,
    layers: Sequence[Path],
    progress: Progress | None = None,
) -> Pushed:
    """Push `base` and the sealed layers at `layers`, the topmost first, as one image.

    Blobs go first, then the manifests, and the tag moves last, so that nobody ever finds half of
    it; what is there already is not sent again, and key slots that were changed there stay.  Raises
    NotAVaultError or FormatError for what is no sealed layer, BaseMismatchError for layers that
    belong on another base, UsageError, BusyError, IntegrityError for others that will not do,
    RegistryError, OSError.
    """
    with ExitStack() as undo:
        sources = []
        for path in layers:
            sources.append(BareSource(path))
            undo.callback(sources[-1].close)
        config = base.config()
        for source in sources:
            check_base(source.header, image.diff_ids(config))
        identities = [source.header.identity for source in sources]
        if len(set(identities)) != len(identities):
            raise UsageError("a sealed layer is named twice")
        return _push(repository, tag, base, config, sources, progress)


def push_layout(
    repository: Repository,
    tag: str,
    layout: Layout,
    manifest: Manifest,
    progress: Progress | None = None,
) -> None:
    """Push an image of a layout as it is.  Raises FormatError, RegistryError, OSError."""
    sent, base = _Sent(repository), LayoutBase(layout, manifest)
    blobs = {each.digest: each for each in (manifest.config, *manifest.layers)}
    jobs = [sent.job(blob, partial(base.opened, blob)) for blob in blobs.values()]
    transfer(jobs, progress)
    repository.put_manifest(manifest, tag)


def _push(
    repository: Repository,
    tag: str,
    base: Base,
    config: bytes,
    sources: Sequence[BareSource],
    progress: Progress | None,
) -> Pushed:
    named = ",".join(f"{repository.name}@{source.header.identity}" for source in sources)
    config = image.naming(config, named)
    described = Descriptor.of(config, image.CONFIG_TYPE)
    public = image.layer_types(base.manifest.layers)
    sent = _Sent(repository)
    bare = [_Bare(source) for source in sources]
    standing = {
        source.header.identity: remote_keys.standing(
            repository, source.header.identity, source.text
        )
        for source in sources
    }
    small = [(described, config), (EMPTY, EMPTY_JSON)]
    jobs = [sent.job(blob, partial(base.opened, blob), base.repository) for blob in public]
    jobs += [job for layer in bare for job in layer.jobs(sent)]
    jobs += [sent.job(blob, partial(_given, BytesSource(content))) for blob, content in small]
    transfer(jobs, progress)
    manifest = image.image(described, public, named, base.manifest.annotations)
    repository.put_manifest(manifest)
    artifact = artifacts.layers_artifact([each.pushed() for each in bare], manifest.descriptor)
    repository.put_referrer(artifact)
    for identity, slots in standing.items():
        remote_keys.put(repository, identity, slots.text, artifact.descriptor, slots.before)
    repository.put_manifest(manifest, tag)
    return Pushed(
        manifest.descriptor.digest,
        artifact.descriptor.digest,
        tuple(standing),
        sent.bytes,
        tuple(identity for identity, slots in standing.items() if slots.is_kept),
    )


class _Bare:
    """A bare layer on its way, part by part."""

    def __init__(self, source: BareSource) -> None:
        self.source = source
        self._parts: dict[int, Descriptor] = {}

    def jobs(self, sent: _Sent) -> list[Job]:
        """Return what sends the parts; each is hashed while others are under way."""
        return [Job(len(span), partial(self._send, sent, span)) for span in self.source.spans()]

    def _send(self, sent: _Sent, span: range, report: Report) -> None:
        part = self._parts[span.start] = self.source.part(span)
        opened = partial(_given, PartSource(self.source, span.start, len(span)))
        sent.send(part, opened, None, report)

    def pushed(self) -> PushedLayer:
        """Return the layer, all parts of which were sent."""
        parts = tuple(part for _, part in sorted(self._parts.items()))
        return PushedLayer(self.source.header.identity, parts)


def _given(source: Source) -> AbstractContextManager[Source]:
    return nullcontext(source)


class _Sent:
    """Uploads to one repository, and how many bytes they were."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self.bytes = 0

    def job(
        self,
        blob: Descriptor,
        opened: Callable[[], AbstractContextManager[Source]],
        mount_from: str | None = None,
    ) -> Job:
        """Return what sees to it that a blob is there."""
        return Job(blob.size, partial(self.send, blob, opened, mount_from))

    def send(
        self,
        blob: Descriptor,
        opened: Callable[[], AbstractContextManager[Source]],
        mount_from: str | None,
        report: Report,
    ) -> None:
        """See to it that a blob is there, mounted if it can be."""
        if self._repository.has_blob(blob) or (
            mount_from is not None and self._repository.mount(blob, mount_from)
        ):
            report(blob.size)
            return
        with opened() as source:
            if self._repository.upload(blob, source, report=report):
                self.bytes += blob.size
