"""Dividing an image: which layers are sealed, and the configuration of what stays public.

Functions over parsed JSON; knows no files.  Safe anywhere.
Source: OCI image-spec 1.1, config.md.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cisfs.errors import FormatError, UsageError
from cisfs.registry.reference import is_digest
from cisfs.runtime.images.suspects import ENVIRONMENT, HISTORY, LABEL, Suspect

Json = dict[str, Any]

MAX_LAYERS = 1024

# An image has a layer at least: a tar of nothing, as engines spell it.
EMPTY_LAYER = bytes(1024)
EMPTY_DIFF_ID = "sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef"

_REMOVED = "removed by cisfs seal --scrub"
# What old engines add: the last step of the build with its environment, and names of their own.
_OF_THE_BUILD = ("container", "container_config", "id", "parent", "throwaway")


@dataclass(frozen=True, slots=True)
class Choice:
    """Which layers to seal: the `top` ones, those `from_layer` on, or all that `base` lacks.

    One of them is given: a number, a digest, or the diff_ids of another image.
    """

    top: int | None = None
    from_layer: str | None = None
    base: tuple[str, ...] | None = None

    def kept(self, diff_ids: Sequence[str], digests: Sequence[str]) -> int:
        """Return how many layers stay public, of those with `diff_ids` and blobs' `digests`.

        Raises UsageError if there is nothing to seal, or no such layers.
        """
        if self.top is not None:
            if not 1 <= self.top <= len(diff_ids):
                raise UsageError(f"--top {self.top}: the image has {len(diff_ids)} layers")
            return len(diff_ids) - self.top
        if self.from_layer is not None:
            return _position(self.from_layer, diff_ids, digests)
        base = self.base or ()
        if tuple(diff_ids[: len(base)]) != base:
            raise UsageError("--all-but: the image was not built on that one")
        if len(base) == len(diff_ids):
            raise UsageError("--all-but: the image has no layers but those, so none to seal")
        return len(base)


def diff_ids(document: Json) -> tuple[str, ...]:
    """Return the digests of an image's layers, as tars, the lowest first.  Raises FormatError."""
    rootfs = document.get("rootfs")
    found = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    if not isinstance(found, list) or len(found) > MAX_LAYERS:
        raise FormatError("its configuration does not list its layers")
    if not all(isinstance(each, str) and is_digest(each) for each in found):
        raise FormatError("its configuration lists layers by what is no digest of sha256")
    return tuple(found)


def check_apart(kept: Sequence[str], sealed: Sequence[str]) -> None:
    """Raise UsageError if a layer that is to be sealed would stay public as well."""
    for diff_id in set(kept) & set(sealed) - {EMPTY_DIFF_ID}:
        raise UsageError(
            f"layer {diff_id} occurs twice, below and above the division: it would be public all "
            "the same; seal from its first place on"
        )


def public(document: Json, kept: int) -> Json:
    """Return the configuration of an image of the lowest `kept` layers, if any.

    All else stays: the environment, the command, the labels.  What the history says of the layers
    that are gone goes with them.
    """
    made = copy.deepcopy(document)
    for key in _OF_THE_BUILD:
        made.pop(key, None)
    made["rootfs"] = {"type": "layers", "diff_ids": list(diff_ids(document)[:kept])}
    history = made.pop("history", None)
    if isinstance(history, list):
        made["history"] = _history_of(history, kept)
    if not kept:
        made["rootfs"]["diff_ids"] = [EMPTY_DIFF_ID]
        made["history"] = [{"created_by": "an empty layer"}]
    return made


def scrubbed(document: Json, found: Sequence[Suspect]) -> tuple[Json, Json]:
    """Return the configuration without what was found, and what was taken out of it.

    That is `env`, a list, and `labels`.  Of the history nothing is kept.  What is in commands stays
    where it is, because nothing could put it back.  Raises FormatError.
    """
    _check_kinds(document)
    made, taken = copy.deepcopy(document), {"env": [], "labels": {}}  # type: tuple[Json, Json]
    names = {(each.where, each.name) for each in found}
    config = made.get("config")
    config = config if isinstance(config, dict) else {}
    kept: list[str] = []
    for each in config.get("Env") or []:
        place = taken["env"] if (ENVIRONMENT, each.partition("=")[0]) in names else kept
        place.append(each)
    if kept or "Env" in config:
        config["Env"] = kept
    for name in list(config.get("Labels") or {}):
        if (LABEL, name) in names:
            taken["labels"][name] = config["Labels"].pop(name)
    for number, entry in enumerate(made.get("history") or [], 1):
        if (HISTORY, str(number)) in names:
            for key in ("comment", "author"):
                entry.pop(key, None)
            entry["created_by"] = _REMOVED
    return made, taken


def can_be_scrubbed(suspect: Suspect) -> bool:
    """Whether `scrubbed` takes it out."""
    return suspect.where in (ENVIRONMENT, LABEL, HISTORY)


def _check_kinds(document: Json) -> None:
    """Raise FormatError for a configuration that says what it says in no proper way."""
    config = document.get("config") or {}
    if not isinstance(config, dict) or not isinstance(document.get("history") or [], list):
        raise FormatError("its configuration has a config or history of the wrong kind")
    variables = config.get("Env") or []
    if not isinstance(variables, list) or not all(isinstance(each, str) for each in variables):
        raise FormatError("its configuration has variables that are no list of text")
    if not isinstance(config.get("Labels") or {}, dict):
        raise FormatError("its configuration has labels that are no object")


def _position(digest: str, diff_ids: Sequence[str], digests: Sequence[str]) -> int:
    for names in (diff_ids, digests):
        found = [n for n, each in enumerate(names) if each == digest]
        if not found and len(digest) >= len("sha256:") + 6:
            found = [n for n, each in enumerate(names) if each.startswith(digest)]
        if len({names[n] for n in found}) > 1:
            raise UsageError(f"--from-layer {digest}: more than one layer begins so")
        if found:
            return found[0]
    raise UsageError(f"--from-layer {digest}: the image has no such layer")


def _history_of(history: list[Any], kept: int) -> list[Any]:
    """What leads up to the first layer that is gone."""
    found: list[Any] = []
    for entry in history:
        if not (isinstance(entry, dict) and entry.get("empty_layer")):
            if not kept:
                break
            kept -= 1
        found.append(entry)
        if not kept:
            break  # what follows, layer or none, came with what is sealed
    return found
