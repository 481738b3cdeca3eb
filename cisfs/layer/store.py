"""Where layers are that are named without a path: the host's own directory of them.

Does not look into what it finds.  Safe anywhere.
"""

from __future__ import annotations

from pathlib import Path

from cisfs.errors import NotAVaultError, UsageError
from cisfs.layer.opening import SUFFIX

DIRECTORY = Path("/var/lib/cisfs/layers")


def resolve(reference: str) -> Path:
    """Return the path of a layer that is named by an absolute path, or by its name in DIRECTORY.

    A name stands for the file or directory of that name, or for NAME.cis.  Raises UsageError for
    what is neither, NotAVaultError when nothing is there; both name the reference.
    """
    if "\0" in reference or reference in ("", ".", ".."):
        raise UsageError(f"{reference!r} names no layer")
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
    if reference and "\0" not in reference:
        path = Path(reference)
        if path.exists() or "/" in reference:
            return path
    return resolve(reference)


def _named(name: str) -> Path:
    for path in (DIRECTORY / name, DIRECTORY / f"{name}{SUFFIX}"):
        if path.exists():
            return path
    raise NotAVaultError(f"there is no layer {name!r} in {DIRECTORY}")
