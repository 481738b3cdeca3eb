"""Dividing an image: which layers are sealed, and the configuration of what stays public.

Functions over parsed JSON; knows no files.  Safe anywhere.
Source: OCI image-spec 1.1, config.md.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from cisfs.errors import FormatError, UsageError
from cisfs.registry.image import listed
from cisfs.runtime.images.suspects import (
    ENVIRONMENT,
    HISTORY,
    KEPT_OF_HISTORY,
    LABEL,
    Suspect,
    history_text,
    is_distinct,
    repeats,
)

Json = dict[str, Any]

MAX_TAKEN = 1000  # values, each of which is looked for in all of the configuration

# An image has a layer at least: a tar of nothing, as engines spell it.
EMPTY_LAYER = bytes(1024)
EMPTY_DIFF_ID = "sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef"

_REMOVED = "removed by cisfs seal --scrub"
# What old engines add: the last step of the build with its environment, and names of their own; and
# BuildKit, in base64: arguments and sources of the build, and where all of its layers came from.
_OF_THE_BUILD = (
    *("container", "container_config", "id", "parent", "throwaway"),
    *("moby.buildkit.buildinfo.v1", "moby.buildkit.cache.v0"),
)


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
    made["rootfs"] = {"type": "layers", "diff_ids": list(listed(document)[:kept])}
    history = made.pop("history", None)
    if isinstance(history, list):
        made["history"] = _history_of(history, kept)
    if not kept:
        made["rootfs"]["diff_ids"] = [EMPTY_DIFF_ID]
        made["history"] = [{"created_by": "an empty layer"}]
    return made


def scrubbed(document: Json, found: Sequence[Suspect]) -> tuple[Json, Json]:
    """Return the configuration without what was found, and what was taken out of it.

    That is `env`, a list, and `labels`: what was found, and what repeats its values.  Of the
    history nothing is kept.  What is in commands stays where it is, because nothing could put it
    back.  Raises FormatError.
    """
    _check_kinds(document)
    made, taken = copy.deepcopy(document), {"env": [], "labels": {}}  # type: tuple[Json, Json]
    names = {(each.where, each.name) for each in found}
    config = made.get("config")
    config = config if isinstance(config, dict) else {}
    _take(config, taken, lambda where, name, _value: (where, name) in names)
    values = values_of(taken)
    if len(values) > MAX_TAKEN:
        raise FormatError(f"more than {MAX_TAKEN} variables and labels in it look like secrets")
    # A word like "app" may be in any path: only what certainly repeats it can be moved.
    long = {value for value in values if is_distinct(value)}
    _take(config, taken, lambda _where, _name, value: value in values or repeats(value, long))
    for number, entry in enumerate(made.get("history") or [], 1):
        if (HISTORY, str(number)) in names or repeats(history_text(entry), values):
            for key in entry.keys() - set(KEPT_OF_HISTORY):
                del entry[key]
            entry["created_by"] = _REMOVED
    return made, taken


def values_of(taken: Json) -> frozenset[str]:
    """Return the values of what `scrubbed` took out, which are secret wherever else they are.

    Those that JSON spells in another way, as histories do with commands, are there in both.
    """
    variables = (each.partition("=")[2] for each in taken["env"])
    values = {*variables, *map(str, taken["labels"].values())} - {""}
    return frozenset(values | {json.dumps(each, ensure_ascii=False)[1:-1] for each in values})


def _take(config: Json, taken: Json, is_secret: Callable[[str, str, str], bool]) -> None:
    """Move variables and labels, of which `is_secret` is told where, the name and the value."""
    kept: list[str] = []
    for each in config.get("Env") or []:
        name, _, value = each.partition("=")
        (taken["env"] if is_secret(ENVIRONMENT, name, value) else kept).append(each)
    if kept or "Env" in config:
        config["Env"] = kept
    for name, value in list((config.get("Labels") or {}).items()):
        if is_secret(LABEL, name, str(value)):
            taken["labels"][name] = config["Labels"].pop(name)


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
