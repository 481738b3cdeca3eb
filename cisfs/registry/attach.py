"""Layers that are named by repository and identity, put into the local store without their data.

Header and key slots are fetched; the rest comes when it is read (`cisfs.registry.fetcher`).  What
is here already may have come from elsewhere, so it is judged by the name that it has now, too.  One
thread; any number of processes.
"""

from __future__ import annotations

from pathlib import Path

from cisfs.errors import NotAVaultError, UsageError
from cisfs.layer import store
from cisfs.layer.pulled import is_stored

_HTTP = "httpx"


def resolve(reference: str, policy: Path | None = None) -> Path:
    """Return the path of a layer, as `store.resolve` does; one that is not here is attached.

    `policy` is the trust policy that has to allow it, if it is not the host's.  Raises as that
    does, and RegistryError, UntrustedError, FormatError, BusyError, OSError.
    """
    try:
        path = store.resolve(reference)
    except NotAVaultError:
        if not _is_remote(reference):
            raise
        return _attached(reference, policy)
    check(reference, path, policy)
    return path


def resolve_from_here(reference: str) -> Path:
    """The same as a user names layers, by their policy; see `store.resolve_from_here`."""
    from cisfs.layer import admission

    policy = admission.named_by_environment()
    try:
        path = store.resolve_from_here(reference)
    except NotAVaultError:
        if not _is_remote(reference):
            raise
        return _attached(reference, policy)
    check(reference, path, policy)
    return path


def check(reference: str, path: Path, policy: Path | None) -> None:
    """Raise UntrustedError if the layer at `path` may not be used under the repository it is named
    with, if it is: see `resolve`.
    """
    if not _is_remote(reference) or not is_stored(path):
        return
    from cisfs.layer import admission, sealed_file
    from cisfs.registry.reference import Reference

    name = Reference.parse(reference.rpartition("@")[0]).name
    with sealed_file.carried(path) as found:
        admission.load(policy).admit_as(found.candidate, name)


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
    from cisfs.registry.found import find_header, find_keys, find_layer
    from cisfs.registry.pull import origin_of
    from cisfs.registry.reference import Reference
    from cisfs.registry.repository import open_repository
    from cisfs.registry.session import Access

    name, _, identity = reference.rpartition("@")
    found, access, judge = Reference.parse(name), Access(), admission.load(policy)
    judge.check_name(found.name)
    with open_repository(found, access) as repository:
        keys = find_keys(repository, identity)
        judge.check(identity, keys.text.signatures, repository.name)
        layer = find_layer(repository, identity, keys)
        header = find_header(repository, layer)
        source = origin_of(repository, layer, access)
    return lazy.create(store.local(), header.pack(), keys.text, source)
