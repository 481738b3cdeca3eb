"""Where in a store the layers are that were pulled: STORE/sealed/sha256:HEX/layer.cis.

Does not look whether anything is there, nor which store it is.  Pure; safe anywhere.
"""

from __future__ import annotations

from pathlib import Path

from cisfs.errors import UsageError
from cisfs.format.signatures import is_identity

SEALED = "sealed"  # in the store
LAYER = "layer.cis"


def directory_of(store: Path, identity: str) -> Path:
    """Return where in `store` the layer of an identity is, or would be.  Raises ValueError."""
    if not is_identity(identity):
        raise ValueError(f"identity {identity!r}")
    return store / SEALED / identity


def is_stored(path: Path) -> bool:
    """Tell whether a path is that of a layer in a store, whichever that is."""
    return path.name == LAYER and is_identity(path.parent.name)


def check_is_own(path: Path) -> None:
    """Raise UsageError for a layer in a store, which is never given another identity."""
    if is_stored(path):
        raise UsageError(
            f"{path} was pulled, and is known in the store by its identity, which would change: "
            "copy it out first, and change the copy"
        )


def store_of(directory: Path) -> Path:
    """Return the store that a layer's directory is in."""
    return directory.parent.parent
