"""The key of a layer, taken from the kernel's keyring if the layer was unlocked.

The one place that decides between the keyring and what else may give a key.  Does not know how keys
are kept (`cisfs.keys.keyring`).  Safe anywhere.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from cisfs.errors import NoKeyError
from cisfs.keys import credentials, keyring, options
from cisfs.keys.credentials import Credential, MasterKey, Opener
from cisfs.layer.opening import key_id


def credential_for(path: Path) -> MasterKey:
    """Return the key of an unlocked layer, for who cannot ask anybody.

    Raises NoKeyError that says how to unlock it; what `key_id` raises.
    """
    found = find(path)
    if found is None:
        raise NoKeyError(f"layer {path} is locked: unlock it with: cisfs unlock {path}")
    return found


def find(path: Path) -> MasterKey | None:
    """Return the key of the layer at `path` if it is unlocked.  Raises what `key_id` raises."""
    secret = keyring.find(key_id(path))
    return MasterKey(secret) if secret is not None else None


def opener(
    path: Path, args: argparse.Namespace, ask: Callable[[], Credential] | None = None
) -> Opener:
    """Return what opens the layer at `path`: what the key options in `args` or the environment say.

    When they say nothing, the unlocked key; when there is none, what `ask` returns (default: what
    is typed on the terminal).  Raises what `from_options` and `key_id` raise.
    """
    named = options.named_opener(args)
    if named is not None:
        return named
    found = find(path)
    if found is not None:
        return found
    if ask is not None:
        return ask()
    return credentials.from_options(args, purpose=f"passphrase for {path}")
