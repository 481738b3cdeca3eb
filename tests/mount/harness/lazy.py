"""A sealed layer in a store, of which a registry has what is missing; see `sealed` for the rest.

The registry is in this process, a proxy in front of it does as a test says.  One test at a time.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from cisfs.format.sealed_geometry import HEADER_SIZE, UNITS_OFFSET
from cisfs.layer import lazy, slotarea
from cisfs.layer.origin import Origin
from cisfs.registry.descriptor import digest_of
from tests.mount.harness.judged import judged
from tests.mount.harness.layers import Material
from tests.mount.harness.processes import wait_until
from tests.mount.harness.sealed import HANG, SealedLab, guarded
from tests.registry.harness.modern import ModernRegistry, modern_registry
from tests.registry.harness.proxy import Proxy, proxy

REPOSITORY = "tests/layers"
PART = 2_500_000  # bytes: no unit begins with one


def bare(layer: Path) -> bytes:
    """A layer as a registry has it: without its key slots."""
    data = layer.read_bytes()
    return data[:HEADER_SIZE] + bytes(UNITS_OFFSET - HEADER_SIZE) + data[UNITS_OFFSET:]


class LazyLab(SealedLab):
    """A layer in the store below `base`, nothing of which is here but header and slots."""

    def __init__(self, base: Path, material: Material, registry: ModernRegistry, front: Proxy):
        """Take the layer of `material`."""
        super().__init__(base, material)
        self.registry, self.front = registry, front
        self.blob = bare(material.layer)
        self.parts = [self.blob[at : at + PART] for at in range(0, len(self.blob), PART)]
        for part in self.parts:
            registry.blobs[REPOSITORY, digest_of(part)] = part
        self.store = base / "store"
        self.layer = self.pulled()
        self.damaged = True  # it is filled in

    def pulled(self) -> Path:
        """Put into the store what a pull begins with."""
        fd = os.open(self.material.layer, os.O_RDONLY)
        try:
            slots = slotarea.read(fd).text
        finally:
            os.close(fd)
        parts = tuple((digest_of(part), len(part)) for part in self.parts)
        source = Origin(self.front.name, REPOSITORY, parts)
        return lazy.create(self.store, self.blob, slots, source)

    @property
    def fetchers(self) -> list[int]:
        """The fetchers of the layer."""
        return [*self.titled("fetcher", self.layer.parent)]

    @property
    def is_complete(self) -> bool:
        """Whether nothing is missing any more."""
        return not lazy.is_partial(self.layer)

    def wait_until_complete(self) -> None:
        """Wait for the last of it."""
        wait_until(lambda: self.is_complete, "the layer is all here", patience=60)

    def stored(self) -> bytes:
        """The layer as it is here, but for its slots."""
        return bare(self.layer)


@contextlib.contextmanager
def lazy_lab_in(
    base: Path, material: Material, *, bandwidth: float | None = None, patience: float = HANG
) -> Iterator[LazyLab]:
    """A lab that is closed, and judged, at the end."""
    with (
        guarded(base, patience),
        modern_registry() as registry,
        proxy((registry.host, registry.port), bandwidth=bandwidth) as front,
        judged(LazyLab(base, material, registry, front)) as lab,
    ):
        yield lab
