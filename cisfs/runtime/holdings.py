"""What a container holds open: encrypted layers and a persistent scratch.

Each is known by its path, which may come to mean another layer, and by its key's id, which may be
at another path.  Does not know how containers run.  For processes with one thread.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from cisfs.errors import CisfsError, NoKeyError, UsageError, WrongKeyError
from cisfs.format.sealed import check_base
from cisfs.keys import keyring
from cisfs.keys.credentials import Identities, MasterKey, Opener
from cisfs.layer.candidate import Admission
from cisfs.layer.opening import Layer, key_id, open_layer
from cisfs.layer.sealed import SealedLayer


@dataclass(frozen=True, slots=True)
class Holding:
    """A layer or scratch: its absolute path, and the hex id of its key, "" if not known yet."""

    path: str
    key: str


@dataclass(frozen=True, slots=True)
class Opened:
    """Open layers, what they are known by, and the ids of keys that `cisfs unlock` had kept."""

    layers: list[Layer]
    holdings: tuple[Holding, ...]
    kept: frozenset[str]


def open_layers(
    paths: Iterable[Path],
    opener: Callable[[Path], Opener],
    admission: Admission | None = None,
    below: Sequence[str] | None = None,
) -> Opened:
    """Open layers read-only, with what `opener` returns for each; all of them or none.

    `below` are the diff_ids of the image that they go on, None if it is not known.  `admission` is
    asked before `opener` is.  Raises UsageError for a layer that is named twice, what they and
    `open_layer` raise; after several keys were tried, the WrongKeyError names the layer.
    """
    layers: list[Layer] = []
    holdings: list[Holding] = []
    kept: set[str] = set()
    tried: set[str] = set()  # in vain with each of several keys, if at all

    def credential(path: Path, key: str) -> Opener:
        found = opener(path)
        if isinstance(found, MasterKey):
            kept.add(key)
        elif isinstance(found, Identities):
            tried.add(key)
        return found

    with contextlib.ExitStack() as undo:
        for path in paths:
            place = str(path.resolve())
            if any(each.path == place for each in holdings):  # it takes servers, and shows nothing
                raise UsageError(f"layer {path} is named twice: name each layer once")
            key = key_id(path)
            try:
                layer = open_layer(path, partial(credential, path, key), admission=admission)
            except WrongKeyError as error:
                if key not in tried:
                    raise
                advice = f"another key opens it after: cisfs unlock {path}"
                raise WrongKeyError(f"layer {path}: {error}; {advice}") from None
            undo.callback(layer.close)
            if below is not None and isinstance(layer, SealedLayer):
                check_base(layer.header, below)
            layers.append(layer)
            holdings.append(Holding(place, key))
        undo.pop_all()
    return Opened(layers, tuple(holdings), frozenset(kept))


def of_scratch(path: Path | None) -> tuple[Holding, ...]:
    """Return the holding of a persistent scratch, which may not be made yet; none for None."""
    if path is None:
        return ()
    key = ""
    with contextlib.suppress(CisfsError, OSError):  # who opens it says what is wrong with it
        key = key_id(path)
    return (Holding(str(path.resolve()), key),)


def confirm(opened: Opened) -> None:
    """Raise NoKeyError if a key that was found kept is so no more.

    For who is on the list of containers by now: `cisfs lock --stop` takes the key away before it
    looks at the list, so one of the two sees the other.
    """
    for each in opened.holdings:
        if each.key in opened.kept and keyring.terms(each.key) is None:
            raise NoKeyError(f"layer {each.path} was locked just now")
