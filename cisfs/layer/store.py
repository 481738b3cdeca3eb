"""Where layers are that are named without a path: the host's own, and those that were pulled.

    DIRECTORY/NAME, DIRECTORY/NAME.cis       the host's own, by name
    STORE/sealed/sha256:HEX/layer.cis        pulled ones, by identity

Does not look into what it finds.  Safe anywhere.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from cisfs.errors import NotAVaultError, UsageError
from cisfs.layer.opening import SUFFIX
from cisfs.layer.pulled import LAYER, directory_of, is_stored, store_of

SYSTEM = Path("/var/lib/cisfs")
DIRECTORY = SYSTEM / "layers"
_IDENTITY = re.compile(r"(?:.*@)?(sha256:[0-9a-f]{64})")


def local() -> Path:
    """Return the store of the caller: the system's for root, else one below their home."""
    if os.geteuid() == 0:
        return SYSTEM
    data = os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share")
    return Path(data) / "cisfs"


def identity_in(reference: str) -> str | None:
    """Return the identity that a reference names a layer by: sha256:HEX or REPOSITORY@sha256:HEX.

    None if it names it otherwise.
    """
    found = _IDENTITY.fullmatch(reference)
    return found[1] if found is not None else None


def pulled(identity: str) -> Path:
    """Return the path of the layer of an identity, if it was pulled."""
    return directory_of(local(), identity) / LAYER


def has_pulled(path: Path) -> bool:
    """Tell whether an absolute path is that of a layer in the caller's store; there may be none."""
    stores = (str(local()), os.path.realpath(local()))
    return is_stored(path) and str(store_of(path.parent)) in stores


def resolve(reference: str) -> Path:
    """Return the path of a layer that is named by an absolute path, or by its name in DIRECTORY.

    A name stands for the file or directory of that name, or for NAME.cis; an identity, with or
    without a repository before it, for the layer that was pulled.  Raises UsageError for what is
    neither, NotAVaultError when nothing is there; both name the reference.
    """
    if "\0" in reference or reference in ("", ".", ".."):
        raise UsageError(f"{reference!r} names no layer")
    identity = identity_in(reference)
    if identity is not None:
        return _pulled(reference, identity)
    if "/" not in reference:
        return _named(reference)
    path = Path(reference)
    if not path.is_absolute():
        raise UsageError(f"layer {reference!r} is neither an absolute path nor a plain name")
    if not path.exists():
        raise NotAVaultError(f"there is no layer {reference}")
    return path


def resolve_from_here(reference: str) -> Path:
    """Return the path of a layer as a user names it: a relative path will do, too.

    What is in the working directory goes before a name in DIRECTORY.  Raises as `resolve` does.
    """
    if reference and "\0" not in reference and identity_in(reference) is None:
        path = Path(reference)
        if path.exists() or "/" in reference:
            return path
        try:
            return resolve(reference)
        except NotAVaultError as error:
            raise NotAVaultError(f"{error}, nor a file or directory of that name here") from None
    return resolve(reference)


def _pulled(reference: str, identity: str) -> Path:
    path = pulled(identity)
    if not path.exists():
        raise NotAVaultError(f"the layer {reference} is not here: pull it with cisfs pull")
    return path


def _named(name: str) -> Path:
    for path in (DIRECTORY / name, DIRECTORY / f"{name}{SUFFIX}"):
        if path.exists():
            return path
    raise NotAVaultError(f"there is no layer {name!r} in {DIRECTORY}")
