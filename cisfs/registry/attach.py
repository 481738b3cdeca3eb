"""Layers that are named by repository and identity, put into the local store without their data.

Header and key slots are fetched; the rest comes when it is read (`cisfs.registry.fetcher`).  One
thread; any number of processes.
"""

from __future__ import annotations

from pathlib import Path

from cisfs.errors import NotAVaultError, UsageError
from cisfs.format.sealed_geometry import HEADER_SIZE
from cisfs.layer import store

_HTTP = "httpx"


def resolve(reference: str, policy: Path | None = None) -> Path:
    """Return the path of a layer, as `store.resolve` does; one that is not here is attached.

    `policy` is the trust policy that has to allow it, if it is not the host's.  Raises as that
    does, and RegistryError, UntrustedError, FormatError, OSError.
    """
    try:
        return store.resolve(reference)
    except NotAVaultError:
        if not _is_remote(reference):
            raise
    return _attached(reference, policy)


def resolve_from_here(reference: str) -> Path:
    """The same as a user names layers, by their policy; see `store.resolve_from_here`."""
    try:
        return store.resolve_from_here(reference)
    except NotAVaultError:
        if not _is_remote(reference):
            raise
    from cisfs.layer import admission

    return _attached(reference, admission.named_by_environment())


def _is_remote(reference: str) -> bool:
    return "@" in reference and store.identity_in(reference) is not None


def _attached(reference: str, policy: Path | None) -> Path:
    import importlib.util

    if importlib.util.find_spec(_HTTP) is None:
        raise UsageError(
            f"the layer {reference} is not here, and registries take the package {_HTTP}: "
            "pip install 'cisfs[registry]'"
        )
    from cisfs.layer import admission, lazy
    from cisfs.registry.bare import checked_header
    from cisfs.registry.found import find_keys, find_layer
    from cisfs.registry.pull import origin_of
    from cisfs.registry.reference import Reference
    from cisfs.registry.repository import open_repository
    from cisfs.registry.session import Access

    name, _, identity = reference.rpartition("@")
    access = Access()
    with open_repository(Reference.parse(name), access) as repository:
        keys = find_keys(repository, identity)
        admission.load(policy).check(identity, keys.text.signatures, repository.name)
        layer = find_layer(repository, identity, keys)
        with repository.open_range(layer.parts[0], 0, HEADER_SIZE) as pieces:
            header = b"".join(pieces)
        checked_header(header, identity)
        source = origin_of(repository, layer, access)
    return lazy.create(store.local(), header, keys.text, source)
