"""What is at a path, a vault or a sealed layer, opened or described accordingly.

Decides by what is stored there, never by what the caller hopes for.  Knows neither format.  One
thread at a time.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

from cisfs.crypto.keys import SecretKey
from cisfs.errors import NotAVaultError
from cisfs.format.sealed import MAGIC
from cisfs.keys.credentials import Opener
from cisfs.layer import sealed, vault
from cisfs.layer.candidate import Admission
from cisfs.layer.sealed import SealedLayer
from cisfs.layer.vault import Vault

SUFFIX = ".cis"

Layer = Vault | SealedLayer


def is_sealed(path: Path) -> bool:
    """Tell whether `path` is to be taken for a sealed layer, damaged or not.

    It is if it is a regular file that begins as one or is named as one.  False for what is not
    there; raises OSError for what may not be read.
    """
    try:
        if not stat.S_ISREG(path.stat().st_mode):
            return False
    except (FileNotFoundError, NotADirectoryError):
        return False
    if path.suffix == SUFFIX:
        return True
    with path.open("rb", buffering=0) as file:
        return file.read(len(MAGIC)) == MAGIC


def open_layer(
    path: Path,
    credential: Opener | Callable[[], Opener],
    *,
    read_only: bool = True,
    admission: Admission | None = None,
) -> Layer:
    """Open the vault or sealed layer at `path`; see the `open` of each for what it raises.

    `read_only` is about vaults: a sealed layer is never written.  Whoever uses what is in a layer
    asks the trust policy first: `admission` is `cisfs.layer.admission`'s.
    """
    if is_sealed(path):
        return SealedLayer.open(path, credential, admission)
    _check_directory(path)
    return Vault.open(path, credential, read_only=read_only, admission=admission)


def describe(path: Path) -> dict[str, object]:
    """Return what the vault or sealed layer at `path` says to anyone; see `describe` of each."""
    if is_sealed(path):
        return sealed.describe(path)
    _check_directory(path)
    return vault.describe(path)


def key_id(path: Path, *, whole: bool = True) -> str:
    """Return what the key of the layer at `path` is known by, its id in hex, without the key.

    Nothing is authenticated.  `whole`: a sealed layer that is damaged behind its header has none.
    Raises as `describe` does.
    """
    if is_sealed(path):
        return sealed.identifier(path, whole=whole).hex()
    _check_directory(path)
    return vault.identifier(path).hex()


def master_key(path: Path, opener: Opener) -> SecretKey:
    """Return the master key of the layer at `path`; see `master_key` of each for what it raises."""
    if is_sealed(path):
        return sealed.master_key(path, opener)
    _check_directory(path)
    return vault.master_key(path, opener)


def _check_directory(path: Path) -> None:
    """Say of anything but a directory that it is neither; a vault says the rest itself."""
    try:
        if stat.S_ISDIR(os.stat(path).st_mode):
            return
        why = "it does not begin as a layer does, and it is no directory"
    except (FileNotFoundError, NotADirectoryError) as error:
        why = str(error.strerror)
    raise NotAVaultError(f"{path} is neither a vault nor a sealed layer: {why}")
