"""One repository at a registry, with everything that can be asked of it.

A front for the modules that do it; their functions say what they raise.  For several threads, not
across a fork: a process that was forked opens its own.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from cisfs.registry import blobs, download, manifests, referrers, upload
from cisfs.registry.descriptor import Descriptor
from cisfs.registry.download import Report, silent
from cisfs.registry.logins import Login
from cisfs.registry.manifest import Index, Manifest
from cisfs.registry.reference import Reference
from cisfs.registry.session import Access, Session
from cisfs.registry.source import BytesSource, FileSource, Source
from cisfs.registry.transport import Transport


class Repository:
    """See the module.  `transport` may serve other repositories too."""

    def __init__(
        self,
        transport: Transport,
        registry: str,
        repository: str,
        *,
        login: Callable[[], Login | None] | None = None,
    ) -> None:
        """Reach nobody yet.  `login` is called when one is asked for: see `Session`."""
        self.session = Session(transport, registry, repository, login=login)

    @property
    def name(self) -> str:
        """Registry and repository."""
        return self.session.name

    # Blobs ------------------------------------------------------------------------------------

    def has_blob(self, blob: Descriptor) -> bool:
        """Tell whether a blob is there, with the right size: `upload.has`."""
        return upload.has(self.session, blob)

    def read_blob(self, blob: Descriptor, limit: int) -> bytes:
        """Return a small blob, checked: `blobs.read_blob`."""
        return blobs.read_blob(self.session, blob, limit)

    def open_range(
        self, blob: Descriptor, start: int = 0, stop: int | None = None
    ) -> AbstractContextManager[Iterator[bytes]]:
        """Yield bytes `start` to `stop` in pieces, unchecked: `blobs.open_range`."""
        return blobs.open_range(self.session, blob, start, stop)

    def download(self, blob: Descriptor, fd: int, report: Report = silent) -> None:
        """Make the file at `fd` exactly that blob, checked: `download.download`."""
        download.download(self.session, blob, fd, report)

    def download_part(self, blob: Descriptor, fd: int, at: int, report: Report = silent) -> None:
        """Make part of the file at `fd` that blob, checked: `download.download_part`."""
        download.download_part(self.session, blob, fd, at, report)

    @contextmanager
    def fetched(self, blob: Descriptor) -> Iterator[Source]:
        """Yield a public blob, which may lie on the disk until the end of the block."""
        with tempfile.TemporaryFile() as file:
            self.download(blob, file.fileno())
            yield FileSource(file.fileno())

    def upload(
        self,
        blob: Descriptor,
        source: Source,
        *,
        mount_from: str | None = None,
        chunk: int = upload.CHUNK,
        report: Report = silent,
    ) -> bool:
        """See to it that a blob is there; tells whether it was sent: `upload.upload`."""
        return upload.upload(
            self.session, blob, source, mount_from=mount_from, chunk=chunk, report=report
        )

    def upload_bytes(self, blob: Descriptor, content: bytes) -> bool:
        """The same for a small blob that is at hand."""
        return self.upload(blob, BytesSource(content))

    def mount(self, blob: Descriptor, from_repository: str) -> bool:
        """Take a blob over from another repository of the registry: `upload.mount`."""
        return upload.mount(self.session, blob, from_repository)

    # Manifests --------------------------------------------------------------------------------

    def manifest(self, target: str) -> Manifest | Index:
        """Return what a tag or digest stands for, checked: `manifests.get`."""
        return manifests.get(self.session, target)

    def described(self, descriptor: Descriptor) -> Manifest | Index:
        """Return what a descriptor names, checked: `manifests.get_described`."""
        return manifests.get_described(self.session, descriptor)

    def digest_at(self, target: str) -> str | None:
        """Return what digest a tag stands for now, None for none: `manifests.digest_at`."""
        return manifests.digest_at(self.session, target)

    def put_manifest(self, manifest: Manifest | Index, tag: str | None = None) -> None:
        """Store a manifest whose blobs are there: `manifests.put`.  Not for referrers."""
        manifests.put(self.session, manifest, tag)

    # Referrers --------------------------------------------------------------------------------

    def referrers(self, subject: str, artifact_type: str | None = None) -> list[Descriptor]:
        """Return what refers to a manifest: `referrers.referrers`."""
        return referrers.referrers(self.session, subject, artifact_type)

    def put_referrer(self, manifest: Manifest | Index) -> None:
        """Store a manifest that has a subject, to be found there: `referrers.put_referrer`."""
        referrers.put_referrer(self.session, manifest)


@contextmanager
def open_repository(reference: Reference, access: Access | None = None) -> Iterator[Repository]:
    """Yield the repository of a reference, until the end of the block.  Raises UsageError."""
    transport = (access or Access()).transport()
    try:
        yield Repository(transport, reference.registry, reference.repository)
    finally:
        transport.close()
