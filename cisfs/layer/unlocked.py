"""What opens a layer, in the order in which it is tried.

What the command line or the environment names goes first; then the kernel's keyring, if the layer
was unlocked; then what stands ready for any layer: the key directory and the configured key
providers; who can be asked comes last.  The one place that decides so; does not know how any of
these keep keys.  One thread.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path

from cisfs.errors import NoKeyError
from cisfs.keys import credentials, keyring, options
from cisfs.keys.credentials import Identities, MasterKey, Opener, Passphrase, RawKey
from cisfs.keys.wrapping import Identity
from cisfs.layer.opening import key_id


def credential_for(path: Path) -> MasterKey | Identities:
    """Return what opens a layer without asking anybody: its unlocked key, or what stands ready.

    Raises NoKeyError that says how to unlock it when there is nothing, what `key_id` and `ready`
    raise.
    """
    found = find(path)
    if found is not None:
        return found
    offered = ready()
    if offered:
        return Identities(offered)
    from cisfs.keys import keydir

    raise NoKeyError(
        f"layer {path} is locked: its key is not in the kernel's keyring, there is none in "
        f"{keydir.directory()}, and no key provider is configured; unlock it with: "
        f"cisfs unlock {path}"
    )


def find(path: Path) -> MasterKey | None:
    """Return the key of the layer at `path` if it is unlocked.  Raises what `key_id` raises."""
    secret = keyring.find(key_id(path))
    return MasterKey(secret) if secret is not None else None


def ready() -> tuple[Identity | RawKey, ...]:
    """Return the keys in the key directory, and the configured key providers.

    Raises UsageError, NoKeyError for what is there and will not do.
    """
    from cisfs.keys import keydir, provider_config

    providers = provider_config.configured()
    if not providers:
        return tuple(keydir.identities())
    from cisfs.keys.provider import ProviderIdentity

    return (*keydir.identities(), *map(ProviderIdentity, providers))


def opener(
    path: Path,
    args: argparse.Namespace,
    ask: Callable[[], Passphrase] | None = None,
    *,
    kept: bool = True,
) -> Opener:
    """Return what opens the layer at `path`: what the key options in `args` or the environment say.

    When they say nothing, the unlocked key (unless `kept` is false); when there is none, what
    stands ready, and last what `ask` returns (default: what is typed on the terminal).  Raises what
    `named_opener`, `key_id`, `ready` and `ask` raise.
    """
    named = options.named_opener(args)
    if named is not None:
        return named
    found = find(path) if kept else None
    if found is not None:
        return found
    if ask is None:
        ask = partial(credentials.typed, f"passphrase for {path}")
    offered = ready()
    return Identities(offered, ask) if offered else ask()
